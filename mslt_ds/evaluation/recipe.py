"""What the recipes of GLUE and SQuAD share: types, checks, loading.

`--config FILE` changes some keys of a recipe, `--set key=value` a single one. All other keys keep
their defaults, the paper's numbers. Types and errors are those of a training recipe (config/).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator

from mslt_ds.config import strict_yaml
from mslt_ds.config.messages import describe, show
from mslt_ds.config.sections import Positive, Probability, Section, Whole
from mslt_ds.errors import RecipeError

Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
# YAML gives a list, so the container isn't checked strictly.
Rates = Annotated[tuple[Rate, ...], Field(strict=False, min_length=1)]
Seeds = Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)]


class FineTuning(Section):
    """The keys of both recipes. The grid is learning_rates x seeds."""

    learning_rates: Rates
    seeds: Seeds
    batch_size: Positive
    epochs: Positive
    warmup_share: Probability = 0.1  # of all steps; afterwards the rate decays linearly to 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01  # none for biases and LayerNorm
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0  # global norm; 0 switches it off
    train_examples: Positive | None = None  # drawn once for all cells; None: all
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
        """The keys that the scores of `task` depend on.

        Excluded are the extent of the grid, the device and batch size of scoring, and
        `train_examples`, which determines the examples and thereby their own fingerprint.
        """
        return self.model_dump(
            mode="json",
            exclude={"learning_rates", "seeds", "device", "eval_batch_size", "train_examples"},
        )

    def differences(self, papers: FineTuning) -> str:
        """A phrase that names the paper's protocol and the keys that differ from it."""
        mine, theirs = (
            recipe.model_dump(mode="json", exclude={"device", "eval_batch_size"})
            for recipe in (self, papers)
        )
        changes = [f"{key} {show(mine[key])}" for key in mine if mine[key] != theirs[key]]
        return f"the paper's, but {', '.join(changes)}" if changes else "the paper's"

    @abstractmethod
    def protocol(self) -> str:
        """The phrase that describes the recipe in results."""

    def to_yaml(self) -> str:
        """The whole recipe with its defaults; `load` reads it back."""
        return strict_yaml.dump(self.model_dump(mode="json"))


Recipe = TypeVar("Recipe", bound=FineTuning)


def load(
    kind: type[Recipe], path: Path | None, overrides: Sequence[str], defaults: Mapping[str, Any]
) -> Recipe:
    """The recipe that results from the class's defaults, `defaults`, the file at `path` and the
    overrides, in this order.

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
