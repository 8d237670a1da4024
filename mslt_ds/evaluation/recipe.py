"""How a model is fine-tuned: one recipe with the paper's numbers as defaults.

`--config FILE` changes keys of it, `--set key=value` single ones; what is not named keeps its
default, in the sections too. Typed and checked as a training recipe is (config.py).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from mslt_ds.config import strict_yaml
from mslt_ds.config.messages import describe, show
from mslt_ds.config.sections import Positive, Probability, Section, Whole
from mslt_ds.errors import RecipeError
from mslt_ds.evaluation.glue.tasks import TASKS

Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
# A YAML list becomes the tuple, so these aren't strict about their container.
Rates = Annotated[tuple[Rate, ...], Field(strict=False, min_length=1)]
Seeds = Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)]


class FineTuning(Section):
    """What GLUE and SQuAD share. The grid is learning_rates x seeds."""

    learning_rates: Rates
    seeds: Seeds
    batch_size: Positive
    epochs: Positive
    warmup_share: Probability = 0.1  # of all steps; then linear to zero
    weight_decay: Annotated[float, Field(ge=0)] = 0.01  # not of biases and LayerNorm
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0  # of the global norm; 0: none
    train_examples: Positive | None = None  # so many, drawn once for all cells; None: all
    max_length: Annotated[Whole, Field(ge=8)]  # tokens
    eval_batch_size: Positive = 64
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("learning_rates", "seeds")
    @classmethod
    def _no_repetition(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError("a value stands there twice; name each once")
        return values

    def what_scores_depend_on(self, task: str) -> dict[str, Any]:
        """What makes cells of `task` comparable. Left out: the grid's extent, where and in what
        batches scores are computed, and `train_examples`, which shows in the examples themselves."""
        return self.model_dump(
            mode="json",
            exclude={"learning_rates", "seeds", "device", "eval_batch_size", "train_examples"},
        )

    def differences(self, papers: FineTuning) -> str:
        """A phrase: the paper's protocol, or what is different from it."""
        mine, theirs = (
            recipe.model_dump(mode="json", exclude={"device", "eval_batch_size"})
            for recipe in (self, papers)
        )
        changes = [f"{key} {show(mine[key])}" for key in mine if mine[key] != theirs[key]]
        return f"the paper's, but {', '.join(changes)}" if changes else "the paper's"

    @abstractmethod
    def protocol(self) -> str:
        """What is said of it in results."""

    def to_yaml(self) -> str:
        """The whole recipe, defaults included; `load` reads it back."""
        return strict_yaml.dump(self.model_dump(mode="json"))


class GlueRecipe(FineTuning):
    """The paper's: batch 32, four learning rates, 3 epochs (10 for STS-B and RTE), 5 seeds."""

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
        """What is said of it in results."""
        return self.differences(GlueRecipe())

    def what_scores_depend_on(self, task: str) -> dict[str, Any]:
        """As of any recipe, with the epochs of this task alone."""
        values = super().what_scores_depend_on(task)
        del values["epochs_of"]
        return values | {"epochs": self.epochs_for(task)}

    def epochs_for(self, task: str) -> int:
        return self.epochs_of.get(task, self.epochs)


class SquadRecipe(FineTuning):
    """The paper's: sequence 384, stride 128; the defaults of each version in `SQUAD_DEFAULTS`."""

    version: Literal["1.1", "2.0"] = "1.1"
    learning_rates: Rates = (3e-5,)
    seeds: Seeds = (1,)
    batch_size: Positive = 12
    epochs: Positive = 2
    max_length: Annotated[Whole, Field(ge=8)] = 384
    stride: Positive = 128  # tokens that a window shares with the one before
    max_question_length: Positive = 64  # tokens; a longer question is cut
    n_best: Positive = 20
    max_answer_length: Positive = 30  # tokens
    null_score_threshold: float = 0.0  # 2.0 only: no answer if it leads by more than this
    eval_batch_size: Positive = 32

    def protocol(self) -> str:
        """What is said of it in results. The defaults are those of the version."""
        return self.differences(SquadRecipe.model_validate(SQUAD_DEFAULTS[self.version]))


QUICK_GLUE: dict[str, Any] = {"learning_rates": [5e-5, 3e-5], "seeds": [1, 2, 3]}
"""The smaller grid: 6 runs a task instead of 20."""

SQUAD_DEFAULTS: dict[str, dict[str, Any]] = {
    "1.1": {"version": "1.1", "batch_size": 12, "epochs": 2, "learning_rates": [3e-5]},
    "2.0": {"version": "2.0", "batch_size": 48, "epochs": 2, "learning_rates": [5e-5]},
}

Recipe = TypeVar("Recipe", GlueRecipe, SquadRecipe)


def load(
    kind: type[Recipe], path: str | None, overrides: Sequence[str], defaults: Mapping[str, Any]
) -> Recipe:
    """A recipe: the class's defaults, then `defaults`, the file at `path`, the overrides.

    RecipeError lists every problem.
    """
    values = kind().model_dump() | dict(defaults)
    if path is not None:
        for key, value in strict_yaml.read_mapping(path).items():
            old = values.get(key)
            if isinstance(old, dict) and isinstance(value, dict):
                value = old | value
            values[key] = value
    values = strict_yaml.apply_overrides(values, overrides)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RecipeError("\n".join(describe(error, kind))) from None
