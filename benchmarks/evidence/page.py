"""The page of an experiment: its tables and figures, and what was found of the models of its cells.

Beside the cells it shows, where they are there, `attention/NAME/` (outputs of `mslt-ds attention`),
`fine_tuning/NAME/` (outputs of `mslt-ds evaluate`) and `probe/` (the output of `mslt-ds probe`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence.tables import Evidence, fine_tuning, probe, tables
from mslt_ds.analysis.attention_page import ATTENTION_FILE, one_of_several, read_findings
from mslt_ds.analysis.drawing import MUTED, Drawing, legend, style_of
from mslt_ds.analysis.page import Page, Section
from mslt_ds.evaluation.results_file import RESULTS, read_results
from mslt_ds.probe import FINDINGS, read_trials


def page(evidence: Evidence, folder: Path) -> Page:
    """folder: of the results, for what lies beside the cells."""
    experiment = evidence.experiment
    found = {table.name: table for table in tables(evidence)}
    drawings = [draw for draw in (_budgets(evidence), _curves(evidence)) if draw is not None]
    return Page(
        title="Evidence: staged training and ordinary training at equal FLOPs",
        lead=f"{len(evidence.results)} runs of {len(experiment.methods)} methods at "
        f"{len(experiment.budgets)} budgets.",
        facts=(),
        sections=[
            Section("Budgets", parts=[*drawings, *(found[n] for n in ("budgets", "reached") if n in found)]),
            Section("Learning rates", parts=[found[n] for n in ("rates", "check") if n in found]),
            Section("Variants", parts=[found[n] for n in ("variants",) if n in found]),
            *_attention(folder / "attention"),
            *_fine_tuning(folder / "fine_tuning"),
            *_probe(folder / "probe"),
        ],
        files="tables/ (Markdown, CSV) and figures/ (SVG, PNG)",
    )  # fmt: skip


def _attention(folder: Path) -> list[Section]:
    paths = sorted(folder.glob(f"*/{ATTENTION_FILE}"))
    return [one_of_several(read_findings(p), p.parent.name, p.parent.name) for p in paths]


def _fine_tuning(folder: Path) -> list[Section]:
    models = {path.parent.name: read_results(path) for path in sorted(folder.glob(f"*/{RESULTS}"))}
    return [Section("Fine-tuning", parts=[fine_tuning(models)])] if models else []


def _probe(folder: Path) -> list[Section]:
    if not (folder / FINDINGS).exists():
        return []
    return [Section("Growth operators", parts=[probe(*read_trials(folder))])]


def _budgets(evidence: Evidence) -> Drawing | None:
    """Final loss against FLOPs: a point for each seed, a line through the means."""
    experiment = evidence.experiment
    series: dict[str, list[tuple[float, float, list[float]]]] = {}
    for method in experiment.methods:
        for budget in experiment.budgets:
            mean = evidence.mean(method, budget)
            if mean is None or math.isinf(mean):
                continue
            cells = evidence.at(method, budget)
            losses = [loss for cell in cells if (loss := evidence.loss(cell)) is not None]
            series.setdefault(method, []).append(
                (evidence.results[cells[0]]["flops"], mean, losses)
            )
    if not series:
        return None

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for index, (method, points) in enumerate(series.items()):
            flops, means, _ = zip(*points, strict=True)
            axes.plot(flops, means, marker="o", markersize=4, label=method, **style_of(index))
            for x, _, losses in points:
                color = style_of(index)["color"]
                axes.plot([x] * len(losses), losses, ".", color=color, alpha=0.4)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("FLOPs of the run, each decayed at its end")
        axes.set_ylabel("held-out MLM loss (nats)")
        legend(figure, axes, narrow)

    told = "; ".join(
        f"{method}: {', '.join(f'{mean:.2f}' for _, mean, _ in points)}"
        for method, points in series.items()
    )
    return Drawing(
        "budgets", "Held-out loss against FLOPs",
        f"A line for each method, from the smallest budget to the largest. {told}.", draw,
        note="Line: mean over the seeds. Dots: seeds.",
    )  # fmt: skip


def _curves(evidence: Evidence) -> Drawing | None:
    """Training loss over the largest budget that is done, and the entropy of word frequencies."""
    experiment = evidence.experiment
    series: dict[str, list[tuple[float, float]]] = {}
    entropy = math.nan
    for method in experiment.methods:
        cells = [c for budget in experiment.budgets for c in evidence.at(method, budget)[:1]]
        if not cells or evidence.results[cells[-1]]["diverged"]:
            continue
        result = evidence.results[cells[-1]]
        entropy = result["unigram_entropy"]
        series[method] = [
            (flops_at(result, step), loss) for step, loss in result["curve"] if loss is not None
        ]
    if not series:
        return None

    def draw(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for index, (method, points) in enumerate(series.items()):
            axes.plot(*zip(*points, strict=True), label=method, linewidth=1, **style_of(index))
        axes.axhline(entropy, linestyle=":", color=MUTED, label="entropy of word frequencies")
        axes.set_xlabel("FLOPs")
        axes.set_ylabel("training MLM loss (nats)")
        legend(figure, axes, narrow)

    ends = "; ".join(f"{method} ends at {points[-1][1]:.2f}" for method, points in series.items())
    return Drawing(
        "curves", "Training loss against FLOPs, at the largest budget, first seed",
        f"A line for each method, and the entropy of word frequencies at {entropy:.2f}. {ends}.",
        draw, note="Each point is the loss of a few steps, not a mean over many.",
    )  # fmt: skip


def flops_at(result: dict[str, Any], step: int) -> float:
    """FLOPs of a run's steps before `step`."""
    total = 0.0
    for stage in result["stages"]:
        done = min(step, stage["steps"])
        total += stage["flops"] * done / stage["steps"]
        step -= done
    return total
