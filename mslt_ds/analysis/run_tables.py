"""The report's tables about runs. Pure functions of their records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mslt_ds.analysis.comparison import (
    LEFT_NATS,
    full_twin,
    joint_stage,
    plateau,
    run_speed,
    stage_speeds,
)
from mslt_ds.analysis.table import Cell, Table, make_table, number, quantity, seconds
from mslt_ds.report.record import RunRecord
from mslt_ds.telemetry.metrics import MILESTONES, eval_losses, token_loss

Runs = Mapping[str, RunRecord]
"""The runs by the label that the report calls them by."""

_SPEED_NOTE = (
    "Speed-up: per instance, against {reference}. Ideal: by the layers' arithmetic alone, with a "
    "backward pass of twice the forward pass and none for frozen layers."
)


def runs_table(runs: Runs) -> Table:
    losses = _loss_names(runs)
    rows = []
    for label, run in runs.items():
        twin = full_twin(run, list(runs.values()))
        speed = run_speed(run, twin)
        held_out = last_held_out(run)
        rows.append(
            [
                label,
                run.plan.get("method") or "–",
                str(run.stages[-1]["depth"]),
                quantity(run.stages[-1].get("total_parameters")),
                Cell(run.steps_done, f"{run.steps_done:,} of {run.total_steps:,}"),
                run.state(),
                seconds(run.total_training_seconds or None),
                number("{:.2f}x", speed.measured),
                number("{:.2f}x", speed.ideal),
                *(number("{:.3f}", held_out.get(name)) for name in losses),
            ]
        )
    return make_table(
        "runs",
        "The runs, their training time and last held-out losses",
        [
            "run", "method", "layers", "parameters", "steps", "state", "training time",
            "speed-up", "ideal", *(f"held-out {name.upper()} (nats)" for name in losses),
        ],
        rows,
        "Training time: that of the steps alone, without growth, checkpoints and pauses. "
        + _SPEED_NOTE.format(reference=_reference(runs)),
    )  # fmt: skip


def stages_table(runs: Runs) -> Table:
    losses = _loss_names(runs)
    rows = []
    for label, run in runs.items():
        for index, stage in enumerate(run.stages, start=1):
            end = eval_losses(run.stage_ends.get(index, {}))
            rows.append(
                [
                    label,
                    _stage_cell(run, index),
                    number("{}", stage["depth"]),
                    number("{}", stage["trainable_layers"]),
                    number("{:.0%}", stage.get("trainable_share")),
                    number("{:,}", stage["steps"]),
                    number("{}", stage["seq_length"]),
                    number("{:,}", stage["global_batch_size"]),
                    *(number("{:.3f}", end.get(name)) for name in losses),
                ]
            )
    return make_table(
        "stages",
        "The stages: what trains in each, and the held-out loss at its end",
        [
            "run", "stage", "depth", "layers trained", "parameters trained", "steps", "length",
            "batch", *(f"held-out {name.upper()} (nats)" for name in losses),
        ],
        rows,
    )  # fmt: skip


def speed_table(runs: Runs) -> Table:
    has_mfu = any("mfu" in line for run in runs.values() for line in run.steps)
    rows = []
    for label, run in runs.items():
        speeds = stage_speeds(run, full_twin(run, list(runs.values())))
        for index, speed in enumerate(speeds, start=1):
            rows.append(
                [
                    label,
                    _stage_cell(run, index),
                    seconds(run.step_seconds(index)),
                    number("{:.2f}x", speed.measured),
                    number("{:.2f}x", speed.ideal),
                    seconds(run.stage_seconds(index) or None),
                    quantity(tokens_per_second(run, index)),
                    *([number("{:.1%}", run.median(index, "mfu"))] if has_mfu else []),
                    quantity(run.median(index, "elements_reduced")),
                    quantity(_memory(run, index), "B"),
                ]
            )
    return make_table(
        "speed",
        "How fast each stage was",
        [
            "run", "stage", "median step", "speed-up", "ideal", "training time", "tokens/s",
            *(["MFU"] if has_mfu else []), "elements reduced", "memory",
        ],
        rows,
        _SPEED_NOTE.format(reference=_reference(runs))
        + " Tokens: positions, unless the run counted real ones. Elements: of gradients, handed to the "
        "reduction by a rank in each step. Memory: the peak on rank 0's GPU, or of its process on a "
        "CPU, up to the stage's end.",
    )  # fmt: skip


def wall_clock_table(runs: Runs) -> Table:
    parts = {label: run.wall_clock() for label, run in runs.items()}
    names = [name for name in next(iter(parts.values())) if any(p[name] for p in parts.values())]
    rows = [
        [label, *(seconds(part[name]) for name in names), seconds(sum(part.values()))]
        for label, part in parts.items()
    ]
    return make_table(
        "wall_clock",
        "Where the wall-clock time between a run's first line and its last went",
        ["run", *names, "in all"],
        rows,
        "Pauses: between a stop or a kill and the resumed run's first step. The starts of the "
        "processes themselves aren't in it.",
    )


def profile_table(runs: Runs) -> Table | None:
    """Where the time of a step goes, of the stages that were profiled; None if none was."""
    found = [
        (label, line)
        for label, run in runs.items()
        for line in run.events("profile")
        if line.get("step_seconds")
    ]
    if not found:
        return None
    parts = list(dict.fromkeys(part for _, line in found for part in line["parts"]))
    rows = [
        [
            label,
            number("{}", line["stage"]),
            seconds(line["step_seconds"]),
            *(
                number("{:.0%}", line["parts"].get(part, 0.0) / line["step_seconds"])
                for part in parts
            ),
        ]
        for label, line in found
    ]
    return make_table(
        "profile", "Where the time of a step goes", ["run", "stage", "step", *parts], rows,
        "Means over the profiled steps (train.profile_steps). Parts that overlap add up to more than 100 %.",
    )  # fmt: skip


def plateau_table(runs: Runs) -> Table | None:
    """None if no run's unigram entropy is known."""
    found = {label: plateau(run) for label, run in runs.items()}
    rows = []
    for label, state in found.items():
        if state is None:
            continue
        loss = last_token_loss(runs[label])
        rows.append(
            [
                label,
                number("{:.3f}", state.entropy),
                number("{:,}", state.reached),
                Cell(state.left, "not left" if state.left is None else f"{state.left:,}"),
                seconds(state.left_seconds),
                number("{:.3f}", None if loss is None else state.entropy - loss),
            ]
        )
    if not rows:
        return None
    return make_table(
        "plateau",
        "The plateau of word frequencies: when a run reached it and when it left it",
        [
            "run", "unigram entropy (nats)", "reached at step", "left at step",
            "training time until then", "last held-out MLM below the entropy (nats)",
        ],
        rows,
        "A model that knows only how frequent each token is has the unigram entropy as its loss. "
        f"Left: the running median of the training loss is {LEFT_NATS:g} nat below it.",
    )  # fmt: skip


def joint_table(runs: Runs) -> Table | None:
    """Held-out losses with and without the joint stage; None if no run had one."""
    rows = []
    for label, run in runs.items():
        joint = joint_stage(run)
        if joint is None:
            continue
        before = token_loss(run.stage_ends.get(joint - 1, {}))
        after = token_loss(run.stage_ends.get(len(run.stages), {}))
        taken = sum(run.stage_seconds(index) for index in range(joint, len(run.stages) + 1))
        whole = run.total_training_seconds
        gain = None if before is None or after is None else before - after
        rows.append(
            [
                label,
                number("{:.3f}", before),
                number("{:.3f}", after),
                number("{:.3f}", gain),
                number("{:.0%}", taken / whole if whole else None),
            ]
        )
    if not rows:
        return None
    return make_table(
        "joint_stage",
        "The joint stage: held-out MLM loss without it and with it (the question of the paper's table 4)",
        ["run", "without (nats)", "with (nats)", "gain (nats)", "share of the training time"],
        rows,
        "Without: at the end of the last stage that froze layers; the model of that moment has had "
        "fewer steps.",
    )


def faults_table(runs: Runs) -> Table:
    rows = []
    for label, run in runs.items():
        rows += [[label, number("{}", line["step"]), what] for line, what in _faults(run)]
        if run.state() == "not running":
            rows.append(
                [label, number("{}", run.steps_done), "no line since; it may have been killed"]
            )
    return make_table(
        "faults",
        "What went wrong, or was interrupted, and at which step",
        ["run", "step", "what"],
        rows,
    )


def provenance_table(runs: Runs) -> Table:
    """Versions, hardware and data of each process start."""
    rows = []
    for label, run in runs.items():
        for start in run.starts:
            versions = start.get("versions", {})
            cuda = f", CUDA {start['cuda']}" if start.get("cuda") else ""
            rows.append(
                [
                    label,
                    f"{start.get('device', '–')}, {start.get('cores', '–')} cores on {start.get('host', '–')}",
                    number("{}", start.get("world_size")),
                    ", ".join(f"{name} {version}" for name, version in versions.items()) + cuda,
                    ", ".join(f"{key} {d[:16]}…" for key, d in start.get("data", {}).items()),
                ]
            )
        if not run.starts:
            rows.append([label, "–", number("{}", run.plan.get("world_size")), "–", "–"])
    return make_table(
        "provenance",
        "Hardware, versions and digests of the data, for each process that worked on a run",
        ["run", "hardware", "ranks", "versions", "data"],
        rows,
        "A dash: the run was started by a version that didn't record this.",
    )


def recipe_table(runs: Runs) -> Table | None:
    """The keys in which recipes differ, or all keys of a single run; None without any recipe."""
    flat = {label: flatten(run.recipe) for label, run in runs.items()}
    keys = list(dict.fromkeys(key for values in flat.values() for key in values))
    if len(runs) > 1:
        keys = [key for key in keys if len({_key_text(v.get(key)) for v in flat.values()}) > 1]
    if not keys:
        return None
    rows = [[key, *(_key_text(values.get(key)) for values in flat.values())] for key in keys]
    caption = "The keys in which the recipes differ" if len(runs) > 1 else "The resolved recipe"
    return make_table("recipe", caption, ["key", *runs], rows)


def last_held_out(run: RunRecord) -> dict[str, float | None]:
    """The losses at the end of the last stage that has ended."""
    ends = run.stage_ends
    return eval_losses(ends[max(ends)]) if ends else {}


def last_token_loss(run: RunRecord) -> float | None:
    """The first of `last_held_out`."""
    return next(iter(last_held_out(run).values()), None)


def tokens_per_second(run: RunRecord, stage: int) -> float | None:
    """Median over the stage's lines: real tokens if the run counted them, else positions."""
    if (counted := run.median(stage, "tokens_per_second")) is not None:
        return counted
    sequences = run.median(stage, "sequences_per_second")
    return sequences and sequences * run.stages[stage - 1]["seq_length"]


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _key_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _stage_cell(run: RunRecord, index: int) -> Cell:
    joint = joint_stage(run)
    return Cell(index, f"{index}, joint" if joint and index >= joint else str(index))


def _faults(run: RunRecord) -> list[tuple[dict[str, Any], str]]:
    """(line, in words) in the file's order, then the warnings."""
    resumes = {id(line) for line in run.resumes()}
    found = []
    skipped = Counter(line.get("reason", "") for line in run.events("step_skipped"))
    for line in run.lines:
        event = line.get("event")
        if event == "stage_start" and id(line) in resumes:
            found.append((line, "the run went on after a stop or a kill"))
        elif event == "stopped":
            found.append((line, "stopped by a signal; a checkpoint was written"))
        elif event == "rolled_back":
            text = f"went back to step {line.get('to_step')}: {line.get('reason', '')}"
            found.append((line, text))
        elif event == "step_skipped":
            reason = line.get("reason", "")
            if times := skipped.pop(reason, 0):  # one row for each reason, at its first step
                found.append((line, f"{times} steps skipped: {reason}"))
        elif event is not None and event not in MILESTONES:
            rest = {k: v for k, v in line.items() if k not in ("event", "step", "time")}
            found.append((line, f"{event}: {json.dumps(rest)}"))
    kinds = Counter(warning["kind"] for warning in run.warnings)
    for warning in run.warnings:
        if times := kinds.pop(warning["kind"], 0):  # one row for each kind, at its first step
            done = [line for line in run.steps if line.get("time", 0.0) <= warning["time"]]
            what = "warning" if times == 1 else f"{times} warnings of this kind, the first"
            found.append((done[-1] if done else {"step": 0}, f"{what}: {warning['text']}"))
    return found


def _memory(run: RunRecord, stage: int) -> float | None:
    lines = [line for line in run.steps if line.get("stage") == stage]
    for key in ("cuda_memory_peak", "memory_peak"):
        if found := [line[key] for line in lines if line.get(key) is not None]:
            return max(found)
    return None


def _loss_names(runs: Runs) -> list[str]:
    return list(
        dict.fromkeys(
            name for run in runs.values() for end in run.stage_ends.values() for name in eval_losses(end)
        )
    )  # fmt: skip


def _reference(runs: Runs) -> str:
    twins = {label for label, run in runs.items() if full_twin(run, [run]) is run}
    if not twins:
        return "a step of the whole model, everything trained, in the same run"
    return f"the full twin ({', '.join(sorted(twins))}), where a run has one here"
