"""The parts of a step that are timed, under the names that a profile shows.

Outside of a profile a part costs about a microsecond.
"""

from __future__ import annotations

from torch.profiler import record_function

PREFIX, SUFFIX, BACKWARD = "prefix", "suffix forward", "backward"
REDUCTION, OPTIMIZER, DATA = "reduction", "optimizer", "data"
PARTS: tuple[str, ...] = (PREFIX, SUFFIX, BACKWARD, REDUCTION, OPTIMIZER, DATA)
_LABEL = "mslt_ds: "


def timed(part: str) -> record_function:
    """A context manager around one of PARTS."""
    return record_function(f"{_LABEL}{part}")


def part_of(event_name: str) -> str | None:
    """The part that a profiler's event is; None for any other event."""
    return event_name.removeprefix(_LABEL) if event_name.startswith(_LABEL) else None
