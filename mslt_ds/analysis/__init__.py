"""Pages about what was trained: `mslt-ds report` on runs, `mslt-ds attention` on heads.

Everything is read from files that runs and evaluations wrote; nothing here trains.
"""
