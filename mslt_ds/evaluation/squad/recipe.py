"""How a model is fine-tuned on SQuAD: the paper's numbers as defaults, which differ by version."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from mslt_ds.config.sections import Positive, Whole
from mslt_ds.evaluation.recipe import FineTuning, Rates, Seeds


class SquadRecipe(FineTuning):
    """The paper's protocol: 384 tokens, stride 128. `SQUAD_DEFAULTS` holds what differs by version."""

    version: Literal["1.1", "2.0"] = "1.1"
    learning_rates: Rates = (3e-5,)
    seeds: Seeds = (1,)
    batch_size: Positive = 12
    epochs: Positive = 2
    max_length: Annotated[Whole, Field(ge=8)] = 384
    stride: Positive = 128  # tokens that consecutive windows share
    max_question_length: Positive = 64  # tokens; longer questions are truncated
    n_best: Positive = 20
    max_answer_length: Positive = 30  # tokens
    null_score_threshold: float = (
        0.0  # 2.0 only: no answer if its lead over the best span exceeds this
    )
    eval_batch_size: Positive = 32

    def protocol(self) -> str:
        """The phrase that describes the recipe in results, compared with the defaults of its version."""
        return self.differences(SquadRecipe.model_validate(SQUAD_DEFAULTS[self.version]))


SQUAD_DEFAULTS: dict[str, dict[str, Any]] = {
    "1.1": {"version": "1.1", "batch_size": 12, "epochs": 2, "learning_rates": [3e-5]},
    "2.0": {"version": "2.0", "batch_size": 48, "epochs": 2, "learning_rates": [5e-5]},
}
