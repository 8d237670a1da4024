"""Prints a plan as a table, from the description that plan.json holds too (plan/cost.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 160  # columns if the output is no terminal, so that nothing is cut off


def print_plan(
    description: dict[str, Any], *, vocab_size_assumed: bool, console: Console | None = None
) -> None:
    """Print `description` (cost.describe_plan), with a note if its vocabulary size was assumed."""
    console = console or Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    console.print(_table(description))
    if "hours" in description:
        console.print(_times(description))
    for note in _notes(description, vocab_size_assumed):
        console.print(note, highlight=False, soft_wrap=True)


def _table(description: dict[str, Any]) -> Table:
    ranks = description["world_size"]
    table = Table(
        title=f"{description['name']}: {description['method']}, "
        f"{description['total_steps']:,} steps, {_short(description['total_tokens'])} tokens, "
        f"{ranks} {'rank' if ranks == 1 else 'ranks'}, ZeRO {description['zero_stage']}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    stages = description["stages"]
    columns = [
        (heading, cell)
        for heading, cell in _COLUMNS
        if heading not in _WHERE_STAGES_DIFFER or len({cell(stage) for stage in stages}) > 1
    ]
    for heading, _ in columns:
        table.add_column(heading, justify="left" if heading == "new layers" else "right")
    for stage in stages:
        table.add_row(*(cell(stage) for _, cell in columns))
    return table


def _times(description: dict[str, Any]) -> Table:
    """Hours, memory and money of the stages, the run and its twins."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    columns = [column for column in _TIMED_COLUMNS if column[0] != "cost" or "cost" in description]
    table.add_column("")
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    stages = {f"stage {stage['stage']}": stage for stage in description["stages"]}
    twins = description["twins"]
    shares = {name: f"{twin['share_of_its_hours']:.2f}" for name, twin in twins.items()}
    passes = {name: f"{twin['share_by_layer_passes']:.2f}" for name, twin in twins.items()}
    table.add_column("this plan's share", justify="right")
    table.add_column("backward = 6 forward", justify="right")
    for name, figures in stages.items():
        last = figures is description["stages"][-1]
        table.add_row(name, *(cell(figures) for _, cell in columns), end_section=last)
    for name, figures in {"this plan": description, **twins}.items():
        cells = (cell(figures) for _, cell in columns)
        table.add_row(name, *cells, shares.get(name, ""), passes.get(name, ""))
    return table


def _time_notes(description: dict[str, Any]) -> list[str]:
    """What the hours rest on."""
    notes = [
        "full, stacking: the same batches by the other methods; then this plan's share of their hours, and "
        "what it would be if a layer's backward pass cost 6 forward passes and nothing else counted."
    ]
    if (hardware := description.get("hardware")) is not None:
        notes.append(
            f"Assumed: {hardware['utilization']:.0%} of {_short(hardware['peak_flops'])}FLOP/s in forward "
            "and backward passes; then the gradient is reduced, at "
            f"{hardware['bandwidth'] / 1e9:.4g} GB/s; no padding. --calibrate measures."
        )
        if description["memory_per_gpu_bytes"] > hardware["gpu_memory"]:
            notes.append(
                f"The tensors don't fit a GPU of {_short(hardware['gpu_memory'])}B: lower the micro-batch "
                "size, or choose a higher ZeRO stage."
            )
    if (measured := description.get("calibrated")) is not None:
        notes.append(
            f"Measured here on {measured['steps']} steps of every stage; hours include starting, stage "
            "changes, evaluation and checkpoints. Those of the other methods are steps alone, at the "
            "rate of this plan's largest stage."
        )
    if (fitted := description.get("fitted")) is not None:
        options = " ".join(f"--set {override}" for override in fitted["set"])
        notes.append(f"This plan fits {fitted['hours']:g} hours: {options}")
    return notes


def _notes(description: dict[str, Any], vocab_size_assumed: bool) -> list[str]:
    notes = _time_notes(description) if "hours" in description else []
    notes += [
        "trainable, all: parameters. reduced/step: gradient elements that each rank hands to the "
        "reduction. emb: the embeddings, and the MLM decoder tied to them."
    ]
    if vocab_size_assumed:
        notes.append(
            "model.vocab_size is left to the token store, and there is none at data.path: "
            f"{description['vocab_size']:,} assumed."
        )
    if not description["stages"][-1]["train_embeddings"]:
        notes.append(
            "No joint stage: the embeddings and the lower layers end as an earlier stage left them "
            "(plan.joint_steps or plan.joint_share makes one)."
        )
    return notes


def _short(number: float) -> str:
    """Three digits and a unit: 26.2 G."""
    for unit, size in (
        ("Z", 10**21),
        ("E", 10**18),
        ("P", 10**15),
        ("T", 10**12),
        ("G", 10**9),
        ("M", 10**6),
        ("k", 10**3),
    ):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _frozen(stage: dict[str, Any]) -> str:
    layers = stage["frozen_layers"]
    named = f"top {layers}" if stage["freeze"] == "top" else str(layers)
    if stage["train_embeddings"]:
        return named if layers else "-"
    return f"{named} + emb" if layers else "emb"


_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("stage", lambda stage: str(stage["stage"])),
    ("depth", lambda stage: str(stage["depth"])),
    (
        "trains",
        lambda stage: f"{stage['trainable_layers']}{' + emb' if stage['train_embeddings'] else ''}",
    ),
    ("frozen", _frozen),
    ("new layers", lambda stage: stage["init"]),
    ("steps", lambda stage: f"{stage['steps']:,}"),
    ("length", lambda stage: str(stage["seq_length"])),
    ("batch", lambda stage: f"{stage['global_batch_size']:,}"),
    ("masked", lambda stage: f"{stage['masked_lm_prob']:.4g}"),
    ("tokens", lambda stage: _short(stage["tokens"])),
    ("rate from", lambda stage: f"{stage['learning_rate_from']:.2e}"),
    ("to", lambda stage: f"{stage['learning_rate_to']:.2e}"),
    ("trainable", lambda stage: _short(stage["trainable_parameters"])),
    ("all", lambda stage: _short(stage["total_parameters"])),
    ("share", lambda stage: f"{stage['trainable_share']:.1%}"),
    ("reduced/step", lambda stage: _short(stage["elements_reduced_per_step"])),
)
_TIMED_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("FLOP", lambda figures: _short(figures["flops"])),
    ("reduced by a rank", lambda figures: f"{_short(figures['bytes_reduced'])}B"),
    ("memory of a GPU", lambda figures: f"{_short(figures['memory_per_gpu_bytes'])}B"),
    ("step", lambda figures: f"{figures['seconds_per_step']:.3g} s"),
    ("hours", lambda figures: f"{figures['hours']:,.4g}"),
    ("GPU-hours", lambda figures: f"{figures['gpu_hours']:,.4g}"),
    ("cost", lambda figures: f"{figures['cost']:,.2f}"),
)
_WHERE_STAGES_DIFFER = ("batch", "masked")  # columns that are left out where all stages agree
