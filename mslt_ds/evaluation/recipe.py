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


Recipe = TypeVar("Recipe", bound=FineTuning)


def load(
    kind: type[Recipe], path: str | None, overrides: Sequence[str], defaults: Mapping[str, Any]
) -> Recipe:
    """A recipe: the class's defaults, then `defaults`, the file at `path`, the overrides.

    RecipeError lists every problem.
    """
    values = kind.model_validate({}).model_dump() | dict(defaults)
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
