"""What a run wrote about itself: the one place that reads a run folder's records.

A record can be read at any time: of a run that is going on, that was killed, or that an older version
wrote. What isn't there is None or missing, and a line that a kill cut off is left out.

Times: `training_seconds` adds up the time of the steps alone, so it's the time that methods are compared
by. The rest of the wall-clock time, such as growth, checkpoints and pauses, is in `wall_clock`.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mslt_ds.data.store import TokenStore
from mslt_ds.errors import CheckpointError, DataError
from mslt_ds.json_object import read_object
from mslt_ds.model.objective import OBJECTIVES, Objective
from mslt_ds.plan.stages import Plan, Stage
from mslt_ds.telemetry import METRICS_FILE
from mslt_ds.telemetry.metrics import read_lines
from mslt_ds.telemetry.starts import STARTS_FILE
from mslt_ds.telemetry.warned import WARNINGS_FILE

PLAN_FILE, RECIPE_FILE = "plan.json", "recipe.yaml"

_ALIVE_SECONDS = 600.0  # a run that has written nothing for so long ...
_ALIVE_LINES = 20  # ... and for the time of so many lines isn't taken to be running

_WALL_CLOCK_PARTS: tuple[str, ...] = (
    "steps", "waiting for data", "held-out evaluation", "stage changes", "checkpoints and logging",
    "pauses",
)  # fmt: skip

Line = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """A run folder's plan, recipe and lines."""

    path: Path
    plan: dict[str, Any]
    recipe: dict[str, Any]
    """The resolved recipe; empty if the folder has none."""
    lines: tuple[Line, ...]
    """All of metrics.jsonl, in order."""
    starts: tuple[Line, ...]
    """What each process that worked on the run was (`telemetry/starts.py`); empty for an older version."""
    warnings: tuple[Line, ...]
    """What it warned of (`telemetry/warned.py`)."""

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """CheckpointError if `path` isn't a run folder."""
        plan_file = _existing(path / PLAN_FILE)
        try:
            plan = read_object(plan_file)
            stages = plan["stages"]
            if not stages or not all(stage["depth"] and stage["steps"] for stage in stages):
                raise ValueError("a stage without layers or steps, or no stage")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{plan_file}: not the plan of a run ({type(error).__name__}: {error}); "
                "the run writes it when it starts"
            ) from error
        lines = tuple(read_lines(_existing(path / METRICS_FILE)))
        starts, warnings = (_json_lines(path / name) for name in (STARTS_FILE, WARNINGS_FILE))
        return cls(path, plan, _recipe(path / RECIPE_FILE), lines, starts, warnings)

    # ---- what it is ----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.plan.get("name") or self.path.resolve().name

    @property
    def objective(self) -> Objective | None:
        """What was learned; None if the recipe is missing or names what this version doesn't know."""
        return OBJECTIVES.get(self.recipe.get("data", {}).get("input_format"))

    @property
    def stages(self) -> list[Line]:
        """The plan's stages."""
        return self.plan["stages"]

    @cached_property
    def stage_starts(self) -> list[int]:
        """The first step of each stage."""
        steps = [stage["steps"] for stage in self.stages]
        return [sum(steps[:index]) for index in range(len(steps))]

    @property
    def total_steps(self) -> int:
        return sum(stage["steps"] for stage in self.stages)

    @cached_property
    def stage_plan(self) -> Plan:
        """The plan as the value that it was made from, as far as its file has it."""
        stages = [
            Stage(
                index=index,
                depth=stage["depth"],
                trainable_layers=stage["trainable_layers"],
                train_embeddings=stage["train_embeddings"],
                freeze=stage.get("freeze", "bottom"),
                steps=stage["steps"],
                start_step=start,
                first_instance=stage.get("first_instance", 0),
                seq_length=stage["seq_length"],
                micro_batch_size=stage.get("micro_batch_size", stage["global_batch_size"]),
                global_batch_size=stage["global_batch_size"],
                masked_lm_prob=stage.get("masked_lm_prob", 0.0),
                init=stage.get("init", "keep"),
            )
            for index, (stage, start) in enumerate(
                zip(self.stages, self.stage_starts, strict=True), start=1
            )
        ]
        return Plan(tuple(stages))

    # ---- what happened -------------------------------------------------------------------------

    @cached_property
    def steps(self) -> list[Line]:
        """The lines of steps."""
        return [line for line in self.lines if "event" not in line]

    def events(self, name: str) -> list[Line]:
        return [line for line in self.lines if line.get("event") == name]

    @cached_property
    def stage_ends(self) -> dict[int, Line]:
        """Stage, from 1 -> its `stage_end`."""
        return {line["stage"]: line for line in self.events("stage_end")}

    @cached_property
    def run_end(self) -> Line:
        """The event `run_end`; empty if the run hasn't ended."""
        return next(iter(self.events("run_end")[-1:]), {})

    @property
    def steps_done(self) -> int:
        """Steps that are known to be done."""
        if self.run_end:
            return self.total_steps
        done = [line["step"] + 1 for line in self.steps]
        done += [line["step"] + 1 for line in (*self.events("stage_end"), *self.events("stopped"))]
        return max(done, default=0)

    @cached_property
    def unigram_entropy(self) -> float | None:
        """Of the training text, nats per token: from the run, else from its token store."""
        if "unigram_entropy" in self.run_end:
            return self.run_end["unigram_entropy"]
        path = self.recipe.get("data", {}).get("path")
        try:
            return None if path is None else TokenStore.open(path).unigram_entropy()
        except DataError:  # moved since, or of another version
            return None

    def state(self, now: float | None = None) -> str:
        """`finished`, `stopped` (by a signal, with a checkpoint), `running`, or `not running`: its last
        line is older than a running one's would be.

        now: Unix time; None: the clock's
        """
        if self.run_end:
            return "finished"
        last = self.lines[-1] if self.lines else {}
        if last.get("event") == "stopped":
            return "stopped"
        written = max((line.get("time", 0.0) for line in (*self.lines, *self.starts)), default=0.0)
        gaps = [b.get("time", 0.0) - a.get("time", 0.0) for a, b in zip(self.steps, self.steps[1:], strict=False)]  # fmt: skip
        patience = max(_ALIVE_SECONDS, _ALIVE_LINES * statistics.median(gaps) if gaps else 0.0)
        return "running" if (now or time.time()) - written < patience else "not running"

    # ---- time ----------------------------------------------------------------------------------

    def step_seconds(self, stage: int) -> float | None:
        """Median seconds of a step, from the stage's end event, else from the steps logged so far."""
        if (median := self.stage_ends.get(stage, {}).get("median_step_seconds")) is not None:
            return median
        return self.median(stage, "step_seconds")

    def median(self, stage: int, key: str) -> float | None:
        """The median of a key over the stage's lines; None if no line has it."""
        of_stage = (line.get(key) for line in self.steps if line.get("stage") == stage)
        found = [value for value in of_stage if value is not None]
        return statistics.median(found) if found else None

    @cached_property
    def training_seconds(self) -> list[float]:
        """After each line of `steps`: the time of all steps so far, without anything between them."""
        return [after for _, after, _ in self._timeline]

    @property
    def total_training_seconds(self) -> float:
        return self.training_seconds[-1] if self.steps else 0.0

    def stage_seconds(self, stage: int) -> float:
        """The time of the stage's steps so far."""
        return sum(taken for index, _, taken in self._timeline if index == stage)

    @cached_property
    def _timeline(self) -> list[tuple[int, float, float]]:
        """(stage, training seconds after it, its own) of each line of `steps`.

        A line's `step_seconds` is the mean since the line before. Steps at a stage's end that have no
        line take as long as those of the stage's last line.
        """
        found: list[tuple[int, float, float]] = []
        total, previous, last = 0.0, -1, 0.0
        for line in self.lines:
            if line.get("event") == "stage_start":
                unlogged = max(0, line["step"] - 1 - previous)
                if found and unlogged:
                    stage, _, taken = found[-1]
                    total += unlogged * last
                    found[-1] = stage, total, taken + unlogged * last
                previous = line["step"] - 1
            elif "event" not in line:
                last = line.get("step_seconds") or last
                taken = max(0, line["step"] - previous) * last
                total, previous = total + taken, line["step"]
                found.append((line.get("stage", 0), total, taken))
        return found

    def wall_clock(self) -> dict[str, float]:
        """Where the wall-clock time between the first line and the last went, in seconds."""
        parts: dict[str, float] = dict.fromkeys(_WALL_CLOCK_PARTS, 0.0)
        resumed_at = {id(line) for line in self.resumes()}
        previous: Line = {}
        covered_to = -1
        for line in self.lines:
            gap = max(0.0, line.get("time", 0.0) - previous["time"]) if "time" in previous else 0.0
            if "event" not in line:
                steps = max(0, line["step"] - covered_to)
                covered_to = line["step"]
                own = min(gap, steps * (line.get("step_seconds") or 0.0))
                waited = min(own, steps * (line.get("data_wait_seconds") or 0.0))
                parts["steps"] += own - waited
                parts["waiting for data"] += waited
                parts["checkpoints and logging"] += gap - own
            elif id(line) in resumed_at:
                parts["pauses"] += gap
                covered_to = line["step"] - 1
            elif line["event"] == "stage_start":
                parts["stage changes"] += gap
                covered_to = line["step"] - 1
            elif line["event"] == "stage_end":
                parts["held-out evaluation"] += gap
            elif line["event"] in ("first_step", "profile"):  # inside of a line's steps
                continue
            else:
                parts["checkpoints and logging"] += gap
            previous = line if "time" in line else previous
        return parts

    def resumes(self) -> list[Line]:
        """Each `stage_start` by which a stopped or killed run went on: inside a stage, or right after
        an orderly stop."""
        first = set(self.stage_starts)
        before = [None, *self.lines]
        return [
            line
            for previous, line in zip(before, self.lines, strict=False)
            if line.get("event") == "stage_start"
            and (line["step"] not in first or (previous or {}).get("event") == "stopped")
        ]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; a run folder is <output_dir>/<name> of a run that has started"
        )
    return path


def _recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _json_lines(path: Path) -> tuple[Line, ...]:
    if not path.is_file():
        return ()
    found = []
    for raw in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(json.loads(raw))
        except (ValueError, RecursionError):  # cut off by a kill
            continue
    return tuple(line for line in found if isinstance(line, dict))
