"""`mslt-ds doctor`: checks whether a machine, an allocation or an image can train.

`facts.py` holds the measured values; `machine.py` and `network.py` measure them; `judge.py` derives
findings from them and is pure; `page.py` prints both; `command.py` is the entry point.
"""
