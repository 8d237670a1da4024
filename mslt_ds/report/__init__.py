"""Tables of a plan and of a run, and the command that prints a plan."""
