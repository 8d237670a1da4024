"""An experiment: methods, budgets, learning rates and seeds, and the cells that follow from them.

A pure description, without files and processes. A *cell* is one pretraining run. What a budget buys is
the same for all methods: the FLOPs (`mslt_ds.plan.flops`) that the `reference` method spends on the
budget's steps. So every method has as many steps as its own FLOPs allow, and its schedule decays at
the end of its own steps.

Cells come in parts, because later ones depend on the losses of earlier ones:

    tune      every method at every learning rate, the smallest budget, the first `num_tuning_seeds` seeds
    main      every method at its tuned rate, every budget, every seed
    check     the tuned rate's neighbours in the grid, at the budget `checked_at`, the first seed
    variants  one factor changed, at the smallest budget, the first seed
    finals    the `finalists` variants that gain most over their method, at `checked_at`, the first seed

Where a method's best rate is the lowest or the highest of the grid, the grid grows for it by another rate at
that end, until its best rate lies between two others (`grid`).
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from mslt_ds.config import strict_yaml
from mslt_ds.config.messages import describe
from mslt_ds.config.sections import Positive, Section, Share
from mslt_ds.errors import RecipeError
from mslt_ds.plan.flops import instance_flops
from mslt_ds.recipe.loading import Recipe, parse_recipe

Changes = dict[str, Any]
"""Nested keys of a recipe. In `plan.stages`, `share` stands for `steps`: a share of all steps."""


class Corpus(Section):
    """Where the text comes from: the docstrings of installed packages, or files."""

    packages: list[str] | None = None
    train: list[str] | None = None  # text files, relative to the current directory
    held_out: list[str] | None = None
    vocab_size: Positive

    @model_validator(mode="after")
    def _one_kind(self) -> Corpus:
        if (self.packages is None) == (self.train is None or self.held_out is None):
            raise ValueError("give either packages, or both train and held_out")
        return self


class Variant(Section):
    """A method with one factor changed."""

    of: str
    changes: Changes


class Experiment(Section):
    """The keys of an experiment's YAML."""

    recipe: Changes  # what all cells share
    launch: list[str]  # the command that trains, without --config
    threads: Positive = 1  # of each process
    corpus: Corpus
    reference: str = "full"
    budgets: Annotated[list[Positive], Field(min_length=1)]  # in steps of the reference, increasing
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.05  # of a cell's steps
    decay_share: Share = 0.2  # of a cell's steps, where the schedule is wsd
    checked_at: Positive | None = None  # not the smallest budget; by default the largest
    learning_rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)]
    num_tuning_seeds: Positive = 1  # how many of the seeds choose a method's rate
    methods: dict[str, Changes]
    variants: dict[str, Variant] = Field(default_factory=dict)
    finalists: Annotated[int, Field(ge=0)] = 2

    @model_validator(mode="after")
    def _is_consistent(self) -> Experiment:
        known = self.methods.keys()
        wrong = {self.reference, *(variant.of for variant in self.variants.values())} - known
        if wrong:
            raise ValueError(f"{min(wrong)} isn't one of the methods {', '.join(known)}")
        if twice := known & self.variants.keys():
            raise ValueError(f"{min(twice)} is a method and a variant")
        if sorted(set(self.budgets)) != self.budgets:
            raise ValueError(f"budgets {self.budgets} have to increase")
        if sorted({_rounded(rate) for rate in self.learning_rates}) != self.learning_rates:
            raise ValueError(
                f"learning_rates {self.learning_rates} have to increase and have at most three digits"
            )
        if self.checked_at is not None and self.checked_at not in self.budgets[1:]:
            raise ValueError(
                f"checked_at {self.checked_at} isn't one of the larger budgets {self.budgets[1:]}"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} have to differ")
        if self.num_tuning_seeds > len(self.seeds):
            raise ValueError(
                f"num_tuning_seeds {self.num_tuning_seeds} is more than the seeds {self.seeds}"
            )
        return self

    @property
    def tuning_seeds(self) -> list[int]:
        """The seeds that choose a method's rate."""
        return self.seeds[: self.num_tuning_seeds]

    @property
    def check_budget(self) -> int:
        """The budget of checks and finals."""
        return self.checked_at or self.budgets[-1]

    def changes_of(self, method: str) -> Changes:
        """What a method or a variant changes in the recipe that all cells share."""
        if method in self.methods:
            return self.methods[method]
        variant = self.variants[method]
        return merged(self.methods[variant.of], variant.changes)


@dataclass(frozen=True, order=True)
class Cell:
    """One pretraining run."""

    method: str
    budget: int  # in steps of the reference method
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Also where its result lies: mslt/750/1e-03/1."""
        return f"{self.method}/{self.budget}/{self.learning_rate:.3g}/{self.seed}"


Losses = Mapping[Cell, float]
"""Finished cells -> final held-out loss, infinite where the run diverged."""


_MOST_EXTENSIONS = 3
"""Of a grid of learning rates."""


def load(path: Path) -> Experiment:
    """The experiment in the file at `path`. RecipeError lists all problems."""
    try:
        return Experiment.model_validate(strict_yaml.read_mapping(path))
    except ValidationError as error:
        lines = (f"{path}: {line}" for line in describe(error, Experiment))
        raise RecipeError("\n".join(lines)) from None


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Changes:
    """`base` with nested `changes`; lists are replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merged(old, value)
        result[key] = value
    return result


# ---- which cells there are -----------------------------------------------------------------


def parts(experiment: Experiment, losses: Losses) -> dict[str, list[Cell]]:
    """Part -> its cells, as far as the losses so far decide which they are."""
    small, large = experiment.budgets[0], experiment.check_budget
    first = experiment.seeds[0]
    grids = {method: grid(experiment, method, losses) for method in experiment.methods}
    rates = {method: _best(experiment, method, tried, losses) for method, tried in grids.items()}
    found: dict[str, list[Cell]] = {
        "tune": [
            Cell(method, small, rate, seed)
            for seed in experiment.tuning_seeds
            for method, tried in grids.items()
            for rate in tried
        ],
        "main": [
            Cell(method, budget, rate, seed)
            for seed in experiment.seeds
            for budget in experiment.budgets
            for method, rate in rates.items()
            if rate is not None
        ],
        "check": [
            Cell(method, large, neighbour, first)
            for method, rate in rates.items()
            if rate is not None
            for neighbour in neighbours(grids[method], rate)
        ],
        "variants": [
            Cell(name, small, rate, first)
            for name, variant in experiment.variants.items()
            if (rate := rates[variant.of]) is not None
        ],
    }

    def gain(cell: Cell) -> float:
        method = experiment.variants[cell.method].of
        return losses[cell] - losses[Cell(method, cell.budget, cell.learning_rate, first)]

    done = [cell for cell in found["variants"] if cell in losses]
    finals = []
    if len(done) == len(experiment.variants):
        best = sorted(done, key=gain)[: experiment.finalists]
        finals = [Cell(cell.method, large, cell.learning_rate, first) for cell in best]
    return found | {"finals": finals}


def cells(experiment: Experiment, losses: Losses) -> list[Cell]:
    """All cells that are known so far, each once, in the order in which to run them."""
    return list(dict.fromkeys(cell for part in parts(experiment, losses).values() for cell in part))


def grid(experiment: Experiment, method: str, losses: Losses) -> list[float]:
    """The rates at which a method is tuned, increasing, as far as the losses decide: the experiment's, extended at
    an end by the ratio of its two outermost rates as long as the best rate lies there, three times at most."""
    rates = list(experiment.learning_rates)
    if len(rates) == 1:
        return rates  # given, not tuned
    down, up = rates[0] / rates[1], rates[-1] / rates[-2]
    for _ in range(_MOST_EXTENSIONS):
        best = _best(experiment, method, rates, losses)
        if best == rates[0]:
            rates.insert(0, _rounded(rates[0] * down))
        elif best == rates[-1]:
            rates.append(_rounded(rates[-1] * up))
    return rates


def tuned_rate(experiment: Experiment, method: str, losses: Losses) -> float | None:
    """The best of the grid at the smallest budget; None until all of the grid is done."""
    return _best(experiment, method, grid(experiment, method, losses), losses)


def tuning_loss(experiment: Experiment, method: str, rate: float, losses: Losses) -> float | None:
    """The mean over the seeds that tune, at the smallest budget; None until all of them are done."""
    small = experiment.budgets[0]
    found = [losses.get(Cell(method, small, rate, seed)) for seed in experiment.tuning_seeds]
    done = [loss for loss in found if loss is not None]
    return statistics.mean(done) if len(done) == len(found) else None


def _best(experiment: Experiment, method: str, rates: list[float], losses: Losses) -> float | None:
    """The rate with the lowest loss, of equal ones the lowest rate; None until all are done."""
    means = {}
    for rate in rates:
        loss = tuning_loss(experiment, method, rate, losses)
        if loss is None:
            return None
        means[rate] = loss
    return min(means, key=lambda rate: means[rate])


def _rounded(rate: float) -> float:
    """To the digits of a cell's name."""
    return float(f"{rate:.3g}")


def neighbours(rates: list[float], rate: float) -> list[float]:
    """The next lower and the next higher of increasing rates, where there are such."""
    place = rates.index(rate)
    return [rates[i] for i in (place - 1, place + 1) if 0 <= i < len(rates)]


# ---- what a cell runs ----------------------------------------------------------------------


def recipe_of(experiment: Experiment, cell: Cell, vocab_size: int) -> Changes:
    """The keys of the cell's recipe; data paths and folders aren't among them."""
    reference = Cell(experiment.reference, cell.budget, cell.learning_rate, cell.seed)
    budget = flops(experiment, reference, cell.budget, vocab_size)
    return _with_steps(experiment, cell, steps_within(experiment, cell, budget, vocab_size))


def steps_within(experiment: Experiment, cell: Cell, budget: float, vocab_size: int) -> int:
    """The most steps whose FLOPs are at most `budget`."""
    plan = merged(experiment.recipe, experiment.changes_of(cell.method))["plan"]
    stages = plan.get("stages") or ()
    # A stage has at least a step, and more than it takes to warm up.
    warm = [math.ceil((s["warmup_steps"] + 1) / s["share"]) for s in stages if "warmup_steps" in s]
    fewest = max([len(stages) or 16, *warm])
    low, high = fewest, fewest + 1
    while flops(experiment, cell, high, vocab_size) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        fits = flops(experiment, cell, middle, vocab_size) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return low


def flops(experiment: Experiment, cell: Cell, steps: int, vocab_size: int) -> float:
    """FLOPs of the cell's method over `steps` steps."""
    return sum(stage_flops(checked(_with_steps(experiment, cell, steps)), vocab_size))


def stage_flops(recipe: Recipe, vocab_size: int) -> list[float]:
    """FLOPs of each stage of a recipe."""
    return [
        instance_flops(recipe.config, stage, vocab_size).total
        * stage.global_batch_size
        * stage.steps
        for stage in recipe.plan.stages
    ]


def checked(recipe: Changes) -> Recipe:
    """The recipe with a placeholder for the data, as the main program sees it."""
    return parse_recipe(merged({"name": "cell", "data": {"path": "store"}}, recipe))


def _with_steps(experiment: Experiment, cell: Cell, steps: int) -> Changes:
    recipe = merged(experiment.recipe, experiment.changes_of(cell.method))
    plan = dict(recipe["plan"])
    if plan["method"] == "custom":
        plan["stages"] = _stages(plan["stages"], steps)
    else:
        plan["total_steps"] = steps
    schedule = dict(recipe.get("schedule", {}))
    schedule["warmup_steps"] = round(experiment.warmup_share * steps)
    if schedule.get("name") == "wsd":
        schedule["decay_steps"] = max(1, round(experiment.decay_share * steps))
    optimizer = {"learning_rate": cell.learning_rate}
    changes = {"plan": plan, "schedule": schedule, "optimizer": optimizer, "seed": cell.seed}
    return merged(recipe, changes)


def _stages(stages: list[Changes], steps: int) -> list[Changes]:
    """Stages with `share`s of `steps`, at least one step each."""
    shares = [stage["share"] for stage in stages]
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise RecipeError(f"plan.stages: the shares {shares} sum to {sum(shares):g}, not to 1")
    ends = [round(steps * sum(shares[:i])) for i in range(len(shares) + 1)]
    return [
        {key: value for key, value in stage.items() if key != "share"}
        | {"steps": max(1, end - start)}
        for stage, start, end in zip(stages, ends, ends[1:], strict=False)
    ]


def digest_of(recipe: Changes) -> str:
    """16 hexadecimal digits that stand for the keys of a recipe."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
