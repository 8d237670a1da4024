"""The plan as a table, from the same description that plan.json holds (cost.py)."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 160  # columns where the output is no terminal: nothing is cut off then


def print_plan(
    description: dict[str, Any], *, vocab_size_assumed: bool, console: Console | None = None
) -> None:
    """Print `description` (cost.describe_plan); a note tells if its vocabulary was assumed."""
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
        f"{ranks} {'rank' if ranks == 1 else 'ranks'}, ZeRO {description['zero_stage']}"
    )
    for heading in ("stage", "depth", "trains", "frozen"):
        table.add_column(heading, justify="right")
    table.add_column("new layers")
    for heading in (
        "steps",
        "seq",
        "batch",
        "tokens",
        "learning rate",
        "trainable",
        "all",
        "share",
        "reduced/step",
    ):
        table.add_column(heading, justify="right")
    for stage in description["stages"]:
        embeddings = " + emb" if stage["train_embeddings"] else ""
        table.add_row(
            str(stage["stage"]),
            str(stage["depth"]),
            f"{stage['trainable_layers']}{embeddings}",
            "-" if stage["train_embeddings"] else f"{stage['frozen_layers']} + emb",
            stage["init"],
            f"{stage['steps']:,}",
            str(stage["seq_length"]),
            f"{stage['micro_batch_size']} x {ranks} x {stage['gradient_accumulation_steps']}",
            _short(stage["tokens"]),
            f"{stage['learning_rate_from']:.2e} → {stage['learning_rate_to']:.2e}",
            f"{stage['trainable_parameters']:,}",
            f"{stage['total_parameters']:,}",
            f"{stage['trainable_share']:.1%}",
            f"{stage['elements_reduced_per_step']:,}",
        )
    return table


def _notes(description: dict[str, Any], vocab_size_assumed: bool) -> list[str]:
    notes = [
        "batch: micro-batch x ranks x accumulation. reduced/step: gradient elements each rank hands "
        "to the reduction. emb: embeddings and the MLM decoder tied to them."
    ]
    if vocab_size_assumed:
        notes.append(
            f"model.vocab_size is left to the token store; {description['vocab_size']:,} assumed."
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
