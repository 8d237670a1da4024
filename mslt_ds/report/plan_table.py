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


def _notes(description: dict[str, Any], vocab_size_assumed: bool) -> list[str]:
    notes = [
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


def _short(number: int) -> str:
    """Three digits and a unit: 26.2 G."""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


_COLUMNS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("stage", lambda stage: str(stage["stage"])),
    ("depth", lambda stage: str(stage["depth"])),
    (
        "trains",
        lambda stage: f"{stage['trainable_layers']}{' + emb' if stage['train_embeddings'] else ''}",
    ),
    (
        "frozen",
        lambda stage: "-" if stage["train_embeddings"] else f"{stage['frozen_layers']} + emb",
    ),
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
_WHERE_STAGES_DIFFER = ("batch", "masked")  # columns that are left out where all stages agree
