"""The processes of a run: ranks, signals, communication."""
