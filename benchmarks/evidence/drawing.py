"""Tables and figures of an experiment, computed from its cells alone."""

from __future__ import annotations

import csv
import io
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence.experiment import Cell, Experiment, neighbours, parts, tuned_rate
from mslt_ds.analysis.comparison import LEFT_NATS, running_median
from mslt_ds.atomic import replace_text


@dataclass(frozen=True)
class Table:
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def csv(self) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()


@dataclass(frozen=True)
class Evidence:
    """An experiment with the results of its finished cells.

    timing: method -> seconds of a step of each of its stages, on a quiet machine; empty if unmeasured
    """

    experiment: Experiment
    results: dict[Cell, dict[str, Any]]
    timing: dict[str, list[float]]

    def loss(self, cell: Cell) -> float | None:
        """Final held-out loss: infinite where the run diverged, None where it isn't done."""
        result = self.results.get(cell)
        if result is None:
            return None
        return math.inf if result["diverged"] else result["held_out_loss"]

    @property
    def losses(self) -> dict[Cell, float]:
        return {cell: loss for cell in self.results if (loss := self.loss(cell)) is not None}

    def rate(self, method: str) -> float | None:
        """The tuned learning rate of a method or of the method that a variant is made of."""
        variant = self.experiment.variants.get(method)
        return tuned_rate(self.experiment, variant.of if variant else method, self.losses)

    def at(self, method: str, budget: int) -> list[Cell]:
        """The finished cells of a method at its tuned rate, one for each seed."""
        rate = self.rate(method)
        cells = [Cell(method, budget, rate or 0.0, seed) for seed in self.experiment.seeds]
        return [cell for cell in cells if cell in self.results]

    def hours(self, cell: Cell) -> float | None:
        """The sum of the cell's step times on a quiet machine; None if they weren't measured."""
        seconds = self.timing.get(cell.method)
        if seconds is None:
            return None
        stages = self.results[cell]["stages"]
        return sum(s * stage["steps"] for s, stage in zip(seconds, stages, strict=True)) / 3600

    def left_plateau(self, cell: Cell) -> float | None:
        """The share of the cell's steps after which it has left the plateau, as reports count it."""
        result = self.results[cell]
        if result["diverged"]:
            return None
        steps, losses = zip(*result["curve"], strict=True)
        below = result["unigram_entropy"] - LEFT_NATS
        smooth = zip(steps, running_median(losses), strict=True)
        left = next((step for step, loss in smooth if loss is not None and loss <= below), None)
        return None if left is None else left / result["steps"]


# ---- tables --------------------------------------------------------------------------------


def tables(evidence: Evidence) -> dict[str, Table]:
    """File name -> table, those without a row left out."""
    found = {
        "budgets": budgets(evidence),
        "reached": reached(evidence),
        "rates": rates(evidence),
        "check": check(evidence),
        "variants": variants(evidence),
    }
    return {name: table for name, table in found.items() if table.rows}


def budgets(evidence: Evidence) -> Table:
    """Every method at every budget, at its tuned rate."""
    rows = []
    for budget in evidence.experiment.budgets:
        for method in evidence.experiment.methods:
            cells = evidence.at(method, budget)
            if not cells:
                continue
            losses = [evidence.loss(cell) or math.nan for cell in cells]
            result = evidence.results[cells[0]]
            hours = evidence.hours(cells[0])
            left = [evidence.left_plateau(cell) for cell in cells]
            known = [share for share in left if share is not None]
            rows.append(
                [
                    f"{budget:,}", method, f"{cells[0].learning_rate:.3g}", str(len(cells)),
                    f"{statistics.mean(losses):.3f}", _spread(losses), f"{result['flops']:.3g}",
                    f"{result['steps']:,}", "" if hours is None else f"{hours * 60:.1f}",
                    f"{statistics.mean(known):.0%}" if len(known) == len(left) else "never",
                ]
            )  # fmt: skip
    header = [
        "budget (steps of " + evidence.experiment.reference + ")", "method", "learning rate", "seeds",
        "held-out loss", "lowest to highest", "FLOPs", "steps", "minutes, quiet machine",
        "left the plateau after",
    ]  # fmt: skip
    return Table("Held-out masked-LM loss (nats) by budget", header, rows)


def reached(evidence: Evidence) -> Table:
    """The share of the reference's largest budget that a method needs for the reference's loss.

    The method's loss between two budgets is interpolated over the logarithm of the budget: each of
    them is the end of a run of its own, decayed there.
    """
    experiment = evidence.experiment
    goal = _mean(evidence, experiment.reference, experiment.budgets[-1])
    rows = []
    for method in experiment.methods:
        points = [
            (math.log(budget), loss)
            for budget in experiment.budgets
            if (loss := _mean(evidence, method, budget)) is not None
        ]
        if goal is None or not points:
            continue
        budget = crossing(points, goal)
        if budget is None:
            share, minutes = f"more than {math.exp(points[-1][0]) / experiment.budgets[-1]:.0%}", ""
        else:
            least = budget <= experiment.budgets[0]
            ratio = budget / experiment.budgets[-1]
            share = f"{'at most ' if least else ''}{ratio:.0%}"
            minutes = _share_of_time(evidence, method, ratio)
        rows.append([method, f"{goal:.3f}", share, minutes])
    header = [
        "method", f"loss of {experiment.reference} at the largest budget", "share of its FLOPs",
        "share of its time",
    ]  # fmt: skip
    return Table("What it takes to reach the loss of ordinary training", header, rows)


def crossing(points: Sequence[tuple[float, float]], goal: float) -> float | None:
    """The budget at which the loss reaches `goal`; None if it doesn't. points: (log budget, loss)."""
    if points[0][1] <= goal:
        return math.exp(points[0][0])
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y1 <= goal:
            return math.exp(x0 + (x1 - x0) * (y0 - goal) / (y0 - y1))
    return None


def _share_of_time(evidence: Evidence, method: str, share_of_flops: float) -> str:
    experiment = evidence.experiment
    largest = experiment.budgets[-1]
    own, reference = evidence.at(method, largest), evidence.at(experiment.reference, largest)
    if not own or not reference:
        return ""
    time, whole = evidence.hours(own[0]), evidence.hours(reference[0])
    return "" if time is None or whole is None else f"{share_of_flops * time / whole:.0%}"


def rates(evidence: Evidence) -> Table:
    """The grid at the smallest budget."""
    experiment = evidence.experiment
    grid = sorted(experiment.learning_rates)
    rows = []
    for method in experiment.methods:
        cells = [Cell(method, experiment.budgets[0], rate, experiment.seeds[0]) for rate in grid]
        losses = [evidence.loss(cell) for cell in cells]
        if any(loss is not None for loss in losses):
            best = min(loss for loss in losses if loss is not None)
            rows.append([method, *(_text(loss, bold=loss == best) for loss in losses)])
    title = f"Learning rates, {experiment.budgets[0]:,} steps of {experiment.reference}, one seed"
    return Table(title, ["method", *(f"{rate:.3g}" for rate in grid)], rows)


def check(evidence: Evidence) -> Table:
    """The tuned rate and its neighbours at the largest budget."""
    experiment = evidence.experiment
    rows = []
    for method in experiment.methods:
        tuned = evidence.rate(method)
        if tuned is None:
            continue
        around = sorted([tuned, *neighbours(experiment.learning_rates, tuned)])
        cells = [Cell(method, experiment.budgets[-1], r, experiment.seeds[0]) for r in around]
        losses = {cell: loss for cell in cells if (loss := evidence.loss(cell)) is not None}
        if len(losses) > 1:
            best = min(losses, key=lambda cell: losses[cell])
            tried = ", ".join(f"{c.learning_rate:.3g}: {_text(x)}" for c, x in losses.items())
            rows.append([method, f"{tuned:.3g}", tried, f"{best.learning_rate:.3g}"])
    header = ["method", "tuned", "losses at the largest budget", "best there"]
    return Table("Do the tuned rates hold at the largest budget?", header, rows)


def variants(evidence: Evidence) -> Table:
    """One factor at a time, beside the method that it changes, by the first seed."""
    experiment = evidence.experiment
    first = experiment.seeds[0]
    rows = []
    for name, variant in experiment.variants.items():
        rate = evidence.rate(name)
        if rate is None:
            continue
        row = [name, variant.of]
        for budget in (experiment.budgets[0], experiment.budgets[-1]):
            own = evidence.loss(Cell(name, budget, rate, first))
            base = evidence.loss(Cell(variant.of, budget, rate, first))
            row += [
                _text(own),
                f"{own - base:+.3f}" if own is not None and base is not None else "",
            ]
        if any(row[2:]):
            rows.append(row)
    small, large = (f"{b:,}" for b in (experiment.budgets[0], experiment.budgets[-1]))
    header = ["variant", "of", f"loss at {small}", "difference", f"loss at {large}", "difference"]
    return Table("One factor changed, one seed", header, rows)


def _mean(evidence: Evidence, method: str, budget: int) -> float | None:
    losses = [evidence.loss(cell) for cell in evidence.at(method, budget)]
    return statistics.mean(loss for loss in losses if loss is not None) if losses else None


def _spread(losses: Sequence[float]) -> str:
    return f"{min(losses):.3f} to {max(losses):.3f}" if len(losses) > 1 else ""


def _text(loss: float | None, *, bold: bool = False) -> str:
    if loss is None:
        return ""
    text = "diverged" if math.isinf(loss) else f"{loss:.3f}"
    return f"**{text}**" if bold else text


# ---- figures -------------------------------------------------------------------------------


def draw(evidence: Evidence, folder: Path) -> list[Path]:
    """Write tables/*.{md,csv} and figures/*.{png,svg} into `folder`; the tables' paths."""
    written = []
    for name, table in tables(evidence).items():
        for suffix, text in ((".md", table.markdown()), (".csv", table.csv())):
            path = folder / "tables" / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, text)
            written.append(path)
    _draw_budgets(evidence, folder / "figures")
    _draw_curves(evidence, folder / "figures")
    return written


def _draw_budgets(evidence: Evidence, folder: Path) -> None:
    """Final loss against FLOPs: a point for each seed, a line through the means."""
    experiment = evidence.experiment
    figure, axes = _axes()
    for method in experiment.methods:
        means: list[tuple[float, float]] = []
        color = None
        for budget in experiment.budgets:
            cells = evidence.at(method, budget)
            mean = _mean(evidence, method, budget)
            if mean is None or math.isinf(mean):
                continue
            means.append((evidence.results[cells[0]]["flops"], mean))
        if means:
            color = axes.plot(*zip(*means, strict=True), marker="o", label=method)[0].get_color()
        for budget in experiment.budgets:
            for cell in evidence.at(method, budget):
                loss = evidence.loss(cell)
                if loss is not None and not math.isinf(loss):
                    axes.plot(evidence.results[cell]["flops"], loss, ".", color=color, alpha=0.4)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("FLOPs of the run, each decayed at its end")
    axes.set_ylabel("held-out masked-LM loss (nats)")
    _save(figure, axes, folder / "budgets")


def _draw_curves(evidence: Evidence, folder: Path) -> None:
    """Training loss over the largest budget that is done, and the entropy of word frequencies."""
    experiment = evidence.experiment
    figure, axes = _axes()
    entropy = None
    for method in experiment.methods:
        cells = [c for budget in experiment.budgets for c in evidence.at(method, budget)[:1]]
        if not cells or evidence.results[cells[-1]]["diverged"]:
            continue
        result = evidence.results[cells[-1]]
        entropy = result["unigram_entropy"]
        points = [(flops_at(result, step), loss) for step, loss in result["curve"]]
        axes.plot(*zip(*points, strict=True), label=method, linewidth=1)
    if entropy is not None:
        axes.axhline(entropy, linestyle=":", color="gray", label="entropy of word frequencies")
    axes.set_xlabel("FLOPs")
    axes.set_ylabel("training masked-LM loss (nats)")
    _save(figure, axes, folder / "curves")


def flops_at(result: dict[str, Any], step: int) -> float:
    """FLOPs of a run's steps before `step`."""
    total = 0.0
    for stage in result["stages"]:
        done = min(step, stage["steps"])
        total += stage["flops"] * done / stage["steps"]
        step -= done
    return total


def _axes() -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix in (".png", ".svg"):
            figure.savefig(path.with_suffix(suffix), dpi=150, metadata=_dateless(suffix))
    plt.close(figure)


def _dateless(suffix: str) -> dict[str, Any]:
    """Figures of equal results are equal files."""
    return {"Date": None} if suffix == ".svg" else {}


def progress(evidence: Evidence) -> Iterable[str]:
    """A line for each part: how many of the cells known so far are done."""
    for name, cells in parts(evidence.experiment, evidence.losses).items():
        yield f"{name}: {sum(cell in evidence.results for cell in cells)} of {len(cells)} cells"
