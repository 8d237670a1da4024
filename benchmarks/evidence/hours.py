"""The hours that an experiment's cells would take on GPUs: arithmetic, as `mslt-ds plan` does it for a recipe."""

from __future__ import annotations

from collections import defaultdict

from benchmarks.evidence.experiment import Cell, Experiment, checked, recipe_of
from mslt_ds.plan.hours import Cluster, Model


def predicted(experiment: Experiment, on: Cluster) -> str:
    """Hours of a cell of each method at each budget, and of each part. Tuning takes longer where a grid grows."""
    rate, seed = experiment.learning_rates[0], experiment.seeds[0]
    hours = {
        (method, budget): hours_of(experiment, Cell(method, budget, rate, seed), on)
        for method in [*experiment.methods, *experiment.variants]
        for budget in experiment.budgets
    }
    lines = ["".join([f"{'hours of a cell':<24}", *(f"{b:>12,}" for b in experiment.budgets)])]
    lines += [
        "".join([f"{method:<24}", *(f"{hours[method, b]:>12.3g}" for b in experiment.budgets)])
        for method in [*experiment.methods, *experiment.variants]
    ]
    small, large = experiment.budgets[0], experiment.check_budget
    tuning, is_tuned = experiment.num_tuning_seeds, len(experiment.learning_rates) > 1
    parts: dict[str, float] = defaultdict(float)
    for method in experiment.methods:
        parts["tune, at least"] += tuning * len(experiment.learning_rates) * hours[method, small]
        # At the smallest budget, the seeds that tune have been trained.
        parts["main"] += len(experiment.seeds) * sum(hours[method, b] for b in experiment.budgets)
        parts["main"] -= tuning * hours[method, small]
        parts["check"] += 2 * is_tuned * hours[method, large]
    for name in experiment.variants:
        parts["variants"] += hours[name, small]
    dearest = sorted((hours[name, large] for name in experiment.variants), reverse=True)
    parts["finals, at most"] = sum(dearest[: experiment.finalists])
    lines += [
        f"{name}: {part:.3g} hours, {on.gpus * part:.3g} GPU-hours" for name, part in parts.items()
    ]
    return "\n".join(lines)


def hours_of(experiment: Experiment, cell: Cell, on: Cluster) -> float:
    """The sum of the cell's step times on a cluster."""
    vocab_size = experiment.corpus.vocab_size
    recipe = checked(recipe_of(experiment, cell, vocab_size))
    recipe.check_world(on.gpus)
    on.check_precision(recipe.config)
    model = Model(recipe.config, vocab_size, recipe.zero_stage)
    seconds = (stage.steps * model.step_seconds(stage, on).total for stage in recipe.plan.stages)
    return sum(seconds) / 3600
