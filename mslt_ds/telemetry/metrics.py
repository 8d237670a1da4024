"""metrics.jsonl: one JSON object a line, steps and events in one file. Schema: docs/metrics.md.

A resumed run first drops the lines of the steps that it will repeat, and a last line that a kill left
incomplete. The file then has the same lines as that of an uninterrupted run.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mslt_ds.atomic import replace_text

logger = logging.getLogger(__name__)

Line = Mapping[str, Any]
"""`step`, `time` and either a step's metrics or, where `event` names it, an event's fields."""


MILESTONES = ("stage_start", "first_step", "profile", "stage_end", "run_end")
"""Events of a run in which nothing goes wrong."""
FAULTS = ("step_skipped", "rolled_back", "checkpoint_damaged")
"""Events of faults that the run recovered from."""


def json_safe(value: Any) -> Any:
    """`value` with None for every NaN and infinity, which JSON has no numbers for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value


def scalars(line: Line) -> dict[str, float]:
    """The line's numbers by tag, for TensorBoard and wandb.

    A tag is `train/<key>` for a step, `<event>/<key>` for an event; nested keys are joined by `/`.
    """
    fields = {key: value for key, value in line.items() if key not in ("event", "step", "time")}
    return dict(_numbers(fields, prefix=line.get("event", "train")))


def eval_losses(line: Line) -> dict[str, float | None]:
    """The held-out losses of a `stage_end` line by the objective's names for them, in nats."""
    return {
        key.removeprefix("eval_").removesuffix("_loss"): value
        for key, value in line.items()
        if key.startswith("eval_") and key.endswith("_loss")
    }


def token_loss(line: Line) -> float | None:
    """The objective's first loss, that of tokens, in nats: a step's, or the held-out one of a `stage_end` line.
    A line without it has only the whole loss, if any."""
    losses = (value for key, value in line.items() if key.endswith("_loss"))
    return next(losses, line.get("loss"))


def _numbers(fields: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in fields.items():
        tag = f"{prefix}/{key}"
        if isinstance(value, Mapping):
            yield from _numbers(value, tag)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield tag, value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The file's lines in order. A line that can't be read is skipped with a warning."""
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            logger.warning(
                "%s, line %d: not a metrics line (cut off by a kill?); left out", path, number
            )
            continue
        yield line


class MetricsWriter:
    """Appends lines to `path`, after dropping those of steps from `resume_step` on.

    Faults stay whatever step they were at, since a run that went back doesn't meet them again. One that
    is met again, by a run that was killed meanwhile, isn't written twice.

    A disk that fails doesn't end the run: lines are kept in memory, and written once it works again.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        self._path = path
        self._faults: set[str] = set()
        if path.exists():
            lines = list(read_lines(path))
            self._faults = {key for line in lines if (key := _fault(line))}
            kept = [line for line in lines if line["step"] < resume_step or _fault(line)]
            replace_text(path, "".join(map(_encode, kept)))
        self._pending = b""
        self._descriptor: int | None = None
        self._append()

    def write(self, line: Line) -> None:
        """Write the line to the operating system; flush events, which are few, to the disk."""
        if (key := _fault(line)) is not None:
            if key in self._faults:
                return
            self._faults.add(key)
        fails = bool(self._pending)
        self._pending += _encode(line).encode()
        try:
            self._append()
            if "event" in line and self._descriptor is not None:
                os.fsync(self._descriptor)
        except OSError as error:
            self._close()
            if not fails:
                logger.warning(
                    "%s can't be written (%s); lines are kept in memory until it can",
                    self._path, error.strerror,
                )  # fmt: skip

    def close(self) -> None:
        """Write what is pending, if it can be."""
        try:
            self._append()
        except OSError as error:
            logger.warning(
                "%s can't be written (%s): its last %d lines are lost",
                self._path, error.strerror, self._pending.count(b"\n"),
            )  # fmt: skip
        self._close()

    def _append(self) -> None:
        # The folder isn't made: where it is gone, so is the disk.
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._descriptor = os.open(self._path, flags, 0o666)
        while self._pending:
            self._pending = self._pending[os.write(self._descriptor, self._pending) :]

    def _close(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


def _fault(line: Line) -> str | None:
    """What distinguishes a fault from another; None for any other line."""
    if line.get("event") not in FAULTS:
        return None
    return json.dumps({key: json_safe(line[key]) for key in sorted(line) if key != "time"})


def _encode(line: Line) -> str:
    return json.dumps(json_safe(line), allow_nan=False) + "\n"
