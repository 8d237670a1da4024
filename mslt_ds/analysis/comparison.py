"""Runs side by side: the full twin, speed-ups, and the plateau of word frequencies. Pure functions.

*Full twin*: of the runs that are compared, the one that trained the same model in the ordinary way, all
layers from its first step to its last. Speed-ups are per instance, so that batch sizes don't matter.

*Ideal speed-up*: what the layers' arithmetic alone allows, with a backward pass of twice the forward
pass and none for frozen layers (`telemetry/pace.py`); embeddings, heads and communication are
neglected.

*Plateau*: before a masked LM uses context, its loss stays near the unigram entropy, that of a model that
knows only how frequent each token is. A run has reached the plateau where the running median of its loss
is at the entropy, and left it where that is `LEFT_NATS` below: runs that were looked at stayed up to 0.8
nats below the entropy for thousands of steps, and fell fast after that.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mslt_ds.plan.flops import layer_passes
from mslt_ds.report.record import RunRecord
from mslt_ds.report.summary import full_instance_seconds
from mslt_ds.telemetry.metrics import token_loss

LEFT_NATS = 1.0
_REACHED_NATS = 0.1  # above the entropy at most
MEDIAN_LINES = 9


@dataclass(frozen=True)
class Speed:
    """Seconds of an instance, and how many times faster that is than in the full twin.

    None: not measured, or there is nothing to compare with.
    """

    measured: float | None
    ideal: float


@dataclass(frozen=True)
class Plateau:
    """Steps at which the plateau was reached and left, and training seconds until then."""

    entropy: float
    reached: int | None
    left: int | None
    left_seconds: float | None


def full_twin(run: RunRecord, runs: Sequence[RunRecord]) -> RunRecord | None:
    """The first of `runs` that trained the run's model in full; None if there is none."""
    wanted = _size(run)
    return next((other for other in runs if _is_full(other) and _size(other) == wanted), None)


def stage_speeds(run: RunRecord, twin: RunRecord | None) -> list[Speed]:
    """Of each stage; without a twin, against the run's own step of the whole model."""
    reference = full_instance_seconds(twin or run)
    depth = run.stages[-1]["depth"]
    speeds = []
    for index, stage in enumerate(run.stages, start=1):
        own, full = run.step_seconds(index), reference.get(stage["seq_length"])
        measured = full * stage["global_batch_size"] / own if own and full else None
        ideal = layer_passes(depth, depth) / layer_passes(stage["depth"], stage["trainable_layers"])
        speeds.append(Speed(measured, ideal))
    return speeds


def run_speed(run: RunRecord, twin: RunRecord | None) -> Speed:
    """Of the whole run: the instances of all its stages, each at its stage's speed-up."""
    speeds = stage_speeds(run, twin)
    work = [
        stage["steps"] * stage["global_batch_size"] * stage["seq_length"] for stage in run.stages
    ]

    def mean(values: list[float]) -> float:
        """Harmonic: times add up."""
        return sum(work) / sum(w / value for w, value in zip(work, values, strict=True))

    measured = [speed.measured for speed in speeds]
    known = [value for value in measured if value is not None]
    return Speed(
        mean(known) if len(known) == len(measured) else None,
        mean([speed.ideal for speed in speeds]),
    )


def running_median(values: Sequence[float | None], lines: int = MEDIAN_LINES) -> list[float | None]:
    """The median of each value and its neighbours, `lines` in all.

    Fewer at both ends: as many before as after at the beginning, where a loss falls fast.
    """
    found = []
    for index in range(len(values)):
        half = min(lines // 2, index)
        near = [v for v in values[index - half : index + half + 1] if v is not None]
        found.append(statistics.median(near) if near else None)
    return found


def plateau(run: RunRecord) -> Plateau | None:
    """None if the unigram entropy isn't known."""
    entropy = run.unigram_entropy
    if entropy is None:
        return None
    reached = left = left_seconds = None
    smooth = running_median([token_loss(line) for line in run.steps])
    for line, seconds, loss in zip(run.steps, run.training_seconds, smooth, strict=True):
        if loss is None:
            continue
        if reached is None and loss <= entropy + _REACHED_NATS:
            reached = line["step"]
        if loss <= entropy - LEFT_NATS:
            left, left_seconds = line["step"], seconds
            break
    return Plateau(entropy, reached, left, left_seconds)


def joint_stage(run: RunRecord) -> int | None:
    """The number of the stage with which everything trains again, after stages that froze layers."""
    frozen = [index for index, stage in enumerate(run.stages, 1) if stage["frozen_layers"]]
    return frozen[-1] + 1 if frozen and frozen[-1] < len(run.stages) else None


def _is_full(run: RunRecord) -> bool:
    return all(
        stage["frozen_layers"] == 0 and stage["depth"] == run.stages[-1]["depth"]
        for stage in run.stages
    )


def _size(run: RunRecord) -> tuple:
    last = run.stages[-1]
    lengths = {stage["seq_length"] for stage in run.stages}
    return last["depth"], last.get("total_parameters"), frozenset(lengths)
