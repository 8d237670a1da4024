"""`mslt-ds doctor`: is this machine, allocation or image fit to train, and if not, what to do.

`facts.py` holds what is known, as values; `machine.py` and `network.py` measure it; `judge.py` turns
facts into findings, and is pure; `command.py` brings them together and prints.
"""
