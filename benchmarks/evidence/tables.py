"""Tables of an experiment, computed from its cells alone."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.evidence.experiment import (
    Cell,
    Experiment,
    grid,
    parts,
    tuned_rate,
    tuning_loss,
)
from mslt_ds.analysis import table
from mslt_ds.analysis.comparison import LEFT_NATS, running_median
from mslt_ds.analysis.table import Table, make_table, number
from mslt_ds.evaluation.results import METRIC_NAMES, Results, percent


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
        return self._done(method, budget, self.rate(method) or 0.0)

    def _done(self, method: str, budget: int, rate: float) -> list[Cell]:
        cells = [Cell(method, budget, rate, seed) for seed in self.experiment.seeds]
        return [cell for cell in cells if cell in self.results]

    def mean(self, method: str, budget: int) -> float | None:
        """Of the seeds' losses; None where there are none."""
        return self._mean(self.at(method, budget))

    def _mean(self, cells: Sequence[Cell]) -> float | None:
        losses = [loss for cell in cells if (loss := self.loss(cell)) is not None]
        return statistics.mean(losses) if losses else None

    def rates_at(self, method: str, budget: int) -> list[float]:
        """The learning rates at which a method was trained with a budget, increasing."""
        found = {c.learning_rate for c in self.results if (c.method, c.budget) == (method, budget)}
        return sorted(found)

    def goal(self, budget: int) -> float | None:
        """The reference's loss at a budget, the lowest mean of the rates that were tried there: a tuned rate that
        doesn't hold there is no advantage for the others. None until the tuned rate is done there."""
        method = self.experiment.reference
        if not self.at(method, budget):
            return None
        means = [self._mean(self._done(method, budget, r)) for r in self.rates_at(method, budget)]
        return min((mean for mean in means if mean is not None), default=None)

    def hours(self, cell: Cell) -> float | None:
        """The sum of the cell's step times on a quiet machine; None if they weren't measured."""
        seconds = self.timing.get(cell.method)
        if seconds is None or self.results[cell]["diverged"]:
            return None
        stages = self.results[cell]["stages"]
        return sum(s * stage["steps"] for s, stage in zip(seconds, stages, strict=True)) / 3600

    def left_plateau(self, cell: Cell) -> float | None:
        """The share of the cell's steps after which it has left the plateau: by the rule of reports, on the thinned
        curve of its result."""
        result = self.results[cell]
        if result["diverged"]:
            return None
        steps, losses = zip(*result["curve"], strict=True)
        below = result["unigram_entropy"] - LEFT_NATS
        smooth = zip(steps, running_median(losses), strict=True)
        left = next((step for step, loss in smooth if loss is not None and loss <= below), None)
        return None if left is None else left / result["steps"]


def tables(evidence: Evidence) -> list[Table]:
    """Those without a row left out."""
    makers = (budgets, reached, rates, check, variants)
    return [table for maker in makers if (table := maker(evidence)).rows]


def budgets(evidence: Evidence) -> Table:
    """Every method at every budget, at its tuned rate."""
    rows = []
    for budget, method in itertools.product(
        evidence.experiment.budgets, evidence.experiment.methods
    ):
        cells = evidence.at(method, budget)
        if not cells:
            continue
        losses = [evidence.loss(cell) or math.nan for cell in cells]
        result = evidence.results[cells[0]]
        hours = evidence.hours(cells[0])
        rows.append(
            [
                number("{:,}", budget), method, number("{:.3g}", cells[0].learning_rate),
                str(len(cells)), _loss(statistics.mean(losses)), _spread(losses),
                number("{:.3g}", result["flops"]), number("{:,}", result["steps"]),
                number("{:.1f}", None if hours is None else hours * 60),
                _left([evidence.left_plateau(cell) for cell in cells]),
            ]
        )  # fmt: skip
    header = [
        "budget (steps of " + evidence.experiment.reference + ")", "method", "learning rate", "seeds",
        "held-out loss", "lowest to highest", "FLOPs", "steps", "minutes, quiet machine",
        "left the plateau after",
    ]  # fmt: skip
    return make_table("budgets", "Held-out masked-LM loss (nats) by budget", header, rows)


def reached(evidence: Evidence) -> Table:
    """The share of each of the reference's budgets that a method needs for the reference's loss there.

    The method's loss between two budgets is interpolated over the logarithm of the budget: each of
    them is the end of a run of its own, decayed there. The smallest budget is no goal, unless it is the only one: a
    method that is ahead there has no smaller budget to be measured at.
    """
    experiment = evidence.experiment
    others = [method for method in experiment.methods if method != experiment.reference]
    rows = []
    for goal_budget, method in itertools.product(
        experiment.budgets[1:] or experiment.budgets, others
    ):
        goal = evidence.goal(goal_budget)
        losses = {
            budget: loss
            for budget in experiment.budgets
            if (loss := evidence.mean(method, budget)) is not None
        }
        if goal is None or math.isinf(goal) or not losses:
            continue
        budget = crossing([(math.log(budget), loss) for budget, loss in losses.items()], goal)
        smallest, largest = min(losses), max(losses)
        if budget is None and largest < goal_budget:
            continue  # it wasn't tried with as much
        if budget is None:
            share, of_time = f"more than {largest / goal_budget:.0%}", ""
        else:
            bound = "at most " if losses[smallest] <= goal else ""
            share = f"{bound}{budget / goal_budget:.0%}"
            of_time = _share_of_time(evidence, method, budget / goal_budget)
            of_time = of_time and f"{bound}{of_time}"
        rows.append([number("{:,}", goal_budget), number("{:.3f}", goal), method, share, of_time])
    header = [
        f"budget of {experiment.reference}", "its loss", "method", "share of its FLOPs", "share of its time",
    ]  # fmt: skip
    return make_table(
        "reached", "What it takes to reach the loss of ordinary training", header, rows
    )


def crossing(points: Sequence[tuple[float, float]], goal: float) -> float | None:
    """The budget at which the loss reaches `goal`; None if it doesn't. points: (log budget, loss), which is infinite
    where a run diverged."""
    if points[0][1] <= goal:
        return math.exp(points[0][0])
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y1 <= goal:
            share = 1.0 if math.isinf(y0) else (y0 - goal) / (y0 - y1)
            return math.exp(x0 + (x1 - x0) * share)
    return None


def _share_of_time(evidence: Evidence, method: str, share_of_flops: float) -> str:
    """By the time for a FLOP at the largest budgets that are done; empty where it isn't known."""
    experiment = evidence.experiment
    costs = []
    for name in (method, experiment.reference):
        cells = [c for budget in experiment.budgets for c in evidence.at(name, budget)[:1]]
        hours = evidence.hours(cells[-1]) if cells else None
        if hours is None:
            return ""
        costs.append(hours / evidence.results[cells[-1]]["flops"])
    own, reference = costs
    return f"{share_of_flops * own / reference:.0%}"


def rates(evidence: Evidence) -> Table:
    """What tuning saw at the smallest budget; without rows where a rate was given, not tuned."""
    experiment, losses = evidence.experiment, evidence.losses
    grids = {method: grid(experiment, method, losses) for method in experiment.methods}
    columns = sorted(
        {
            rate
            for method, tried in grids.items()
            for rate in tried
            if tuning_loss(experiment, method, rate, losses) is not None
        }
    )
    rows = []
    for method in experiment.methods if len(columns) > 1 else ():
        found = {rate: tuning_loss(experiment, method, rate, losses) for rate in columns}
        tuned = evidence.rate(method)
        if any(loss is not None for loss in found.values()):
            rows.append([method, *(_loss(loss, bold=r == tuned) for r, loss in found.items())])
    tuning = experiment.num_tuning_seeds
    seeds = "one seed" if tuning == 1 else f"mean of {tuning} seeds"
    caption = f"Learning rates, {experiment.budgets[0]:,} steps of {experiment.reference}, {seeds}"
    return make_table("rates", caption, ["method", *(f"{rate:.3g}" for rate in columns)], rows)


def check(evidence: Evidence) -> Table:
    """The rates that were tried at budgets above the one at which they were tuned, by the first seed."""
    experiment = evidence.experiment
    first = experiment.seeds[0]
    rows = []
    for method, budget in itertools.product(experiment.methods, experiment.budgets[1:]):
        tuned = evidence.rate(method)
        losses = {
            rate: loss
            for rate in evidence.rates_at(method, budget)
            if (loss := evidence.loss(Cell(method, budget, rate, first))) is not None
        }
        if tuned in losses and len(losses) > 1:
            best = min(losses, key=lambda rate: losses[rate])
            tried = ", ".join(f"{rate:.3g}: {_loss(loss).text}" for rate, loss in losses.items())
            rows.append([method, f"{tuned:.3g}", number("{:,}", budget), tried, f"{best:.3g}"])
    header = ["method", "tuned", "budget", "losses there", "best there"]
    return make_table("check", "Do the tuned rates hold at larger budgets?", header, rows)


def variants(evidence: Evidence) -> Table:
    """One factor at a time, beside the method that it changes, by the first seed."""
    experiment = evidence.experiment
    first = experiment.seeds[0]
    budgets = [
        budget
        for budget in experiment.budgets
        if any(evidence.rates_at(name, budget) for name in experiment.variants)
    ]
    rows = []
    for name, variant in experiment.variants.items():
        rate = evidence.rate(name)
        if rate is None:
            continue
        row: list[table.Cell | str] = [name, variant.of]
        for budget in budgets:
            own = evidence.loss(Cell(name, budget, rate, first))
            base = evidence.loss(Cell(variant.of, budget, rate, first))
            difference = None if own is None or base is None else own - base
            row += [_loss(own), _empty("{:+.3f}", difference)]
        if any(cell.text for cell in row[2:] if isinstance(cell, table.Cell)):
            rows.append(row)
    columns = [text for budget in budgets for text in (f"loss at {budget:,}", "difference")]
    return make_table("variants", "One factor changed, one seed", ["variant", "of", *columns], rows)


def fine_tuning(models: Mapping[str, Results]) -> Table:
    """Medians of the main metrics, with the spread of the seeds. models: name -> results."""
    columns = [
        (task, name)
        for results in models.values()
        for task, content in results["tasks"].items()
        for name in content["columns"]
    ]
    columns = list(dict.fromkeys(columns))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    rows = []
    for model, results in models.items():
        row: list[table.Cell | str] = [model]
        for task, name in columns:
            column = results["tasks"].get(task, {}).get("columns", {}).get(name)
            if column is None:
                row.append(number("", None))
                continue
            found[task, name] = column
            main = column[column["metric"]]
            text = f"{percent(main['median'])} ({percent(main['spread'])})"
            row.append(table.Cell(main["median"], text))
        rows.append(row)
    mains = [found[at][found[at]["metric"]] for at in columns]
    constants = [main["one_answer_for_all"] for main in mains]
    if any(value is not None for value in constants):
        shown = (table.Cell(v, table.MISSING if v is None else percent(v)) for v in constants)
        rows.append(["one answer for all", *shown])
    header = [f"{at[1]}, {METRIC_NAMES[found[at]['metric']]}" for at in columns]
    return make_table(
        "fine_tuning",
        "Fine-tuned on tasks, in percent: the median over the seeds, and in brackets the largest minus the smallest score",
        ["model", *header],
        rows,
    )  # fmt: skip


def probe(rows: Sequence[Mapping[str, Any]], steps: int) -> Table:
    """Growth operators, the best first. rows: as `mslt_ds.probe.read_trials` gives them."""
    found = [
        [
            row["operator"], f"{row['learning_rate']:.3g}", _loss(row["first_loss"]),
            _loss(row["highest_loss"]), _loss(row["held_out_loss"]),
        ]
        for row in rows
    ]  # fmt: skip
    header = [
        "operator", "learning rate", "training loss just after growth", "highest training loss",
        f"held-out loss after {steps} steps",
    ]  # fmt: skip
    return make_table("probe", "One model, grown by each operator and trained on", header, found)


def _left(shares: Sequence[float | None]) -> table.Cell:
    """After which share of their steps the seeds left the plateau: the mean of those that did."""
    known = [share for share in shares if share is not None]
    if not known:
        return table.Cell(None, "never")
    mean = statistics.mean(known)
    told = f" ({len(known)} of {len(shares)} seeds)" if len(known) < len(shares) else ""
    return table.Cell(mean, f"{mean:.0%}{told}")


def _spread(losses: Sequence[float]) -> str:
    return f"{min(losses):.3f} to {max(losses):.3f}" if len(losses) > 1 else ""


def _loss(loss: float | None, *, bold: bool = False) -> table.Cell:
    if loss is not None and math.isinf(loss):
        return table.Cell(loss, "diverged")
    return _empty("**{:.3f}**" if bold else "{:.3f}", loss)


def _empty(template: str, value: float | None) -> table.Cell:
    """An empty cell where there is no value yet: the table grows with the cells."""
    return table.Cell(value, "" if value is None else template.format(value))


def progress(evidence: Evidence) -> list[str]:
    """A line for each part: how many of the cells known so far are done."""
    return [
        f"{name}: {sum(cell in evidence.results for cell in cells)} of {len(cells)} cells"
        for name, cells in parts(evidence.experiment, evidence.losses).items()
    ]
