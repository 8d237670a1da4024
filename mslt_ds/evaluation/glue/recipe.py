"""How a model is fine-tuned on GLUE: the paper's numbers as defaults."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator

from mslt_ds.config.sections import Positive, Whole
from mslt_ds.evaluation.glue.tasks import TASKS
from mslt_ds.evaluation.recipe import FineTuning, Rates, Seeds


class GlueRecipe(FineTuning):
    """The paper's protocol: batch 32, 4 learning rates, 5 seeds, 3 epochs (STS-B and RTE: 10)."""

    learning_rates: Rates = (5e-5, 4e-5, 3e-5, 2e-5)
    seeds: Seeds = (1, 2, 3, 4, 5)
    batch_size: Positive = 32
    epochs: Positive = 3
    epochs_of: dict[str, Positive] = {"STS-B": 10, "RTE": 10}  # noqa: RUF012 - a field's default
    max_length: Annotated[Whole, Field(ge=8)] = 128

    @field_validator("epochs_of")
    @classmethod
    def _known_tasks(cls, values: dict[str, int]) -> dict[str, int]:
        for name in values:
            if name not in TASKS:
                raise ValueError(f"{name} is no task; choose among {', '.join(TASKS)}")
        return values

    def protocol(self) -> str:
        """The phrase that describes the recipe in results."""
        return self.differences(GlueRecipe())

    def what_scores_depend_on(self, task: str) -> dict[str, Any]:
        """The keys that the scores of `task` depend on, with the epochs of this task only."""
        values = super().what_scores_depend_on(task)
        del values["epochs_of"]
        return values | {"epochs": self.epochs_for(task)}

    def epochs_for(self, task: str) -> int:
        return self.epochs_of.get(task, self.epochs)


QUICK_GLUE: dict[str, Any] = {"learning_rates": [5e-5, 3e-5], "seeds": [1, 2, 3]}
"""A smaller grid: 6 runs of each task instead of 20."""
