"""What is learned: the fields of a batch that are read, the losses, and what they're divided by.

The loss of a step is defined on the *global* batch. An objective gives each loss as a sum over a
micro-batch and the number of its terms in the whole global batch; sum / number, added up over
micro-batches, ranks and losses, is the loss that is trained. An objective asks the model for
logits and knows no model family.

Importing this module imports no torch: the checks of a recipe need an objective's heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from mslt_ds.model.family import Heads
from mslt_ds.model.rows import PREDICTION_PLACES, Places

if TYPE_CHECKING:
    from torch import Tensor

    from mslt_ds.model.rows import Positions, Rows


class Objective(ABC):
    """What a model is trained for."""

    losses: tuple[str, ...]
    """The names of its losses, in the order of all that is aligned with them. Metrics call them
    `<name>_loss` and, on held-out text, `eval_<name>_loss`."""
    heads: Heads
    """The heads of the model that it reads."""
    fields: tuple[str, ...]
    """The fields of a batch that it and the model read, by the names of `InstanceArrays`."""

    @abstractmethod
    def denominators(self, num_predictions: int, num_instances: int) -> tuple[int, ...]:
        """The number of terms of each loss in a global batch.

        num_predictions: positions with a label, as the index of the instances counts them
        """

    @abstractmethod
    def positions(self, inputs: dict[str, Tensor], rows: Rows) -> Positions | None:
        """Where the top layer's output is used; None: everywhere."""

    @abstractmethod
    def sums(
        self,
        hidden_states: Tensor,
        inputs: dict[str, Tensor],
        token_logits: Callable[[Tensor], Tensor],
        pair_logits: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, ...]:
        """Each loss, summed over the micro-batch, () fp32.

        hidden_states: the top layer's output at `positions`, as `Positions.gather` has it; where
            these are None, as all layers have it
        token_logits, pair_logits: the model's heads, see `Family`
        """


class MaskedLM(Objective):
    """Masked language modeling alone (Liu et al. 2019, RoBERTa, section 4.2)."""

    losses: tuple[str, ...] = ("mlm",)
    heads = frozenset({"masked_lm"})
    fields: tuple[str, ...] = (
        "input_ids", "token_type_ids", "attention_mask",
        "masked_positions", "masked_labels", "masked_weights",
    )  # fmt: skip

    def denominators(self, num_predictions: int, num_instances: int) -> tuple[int, ...]:
        return (num_predictions,)

    def positions(self, inputs: dict[str, Tensor], rows: Rows) -> Positions:
        """[CLS], which is position 0, then the masked positions, so that all heads read one
        gathered tensor: (batch, 1 + max_predictions, hidden), or (1, batch + predictions, hidden).
        [CLS] is there even if no head reads it: dropout in the top layer then draws the same
        numbers whatever the objective is."""
        import torch
        import torch.nn.functional as F

        in_rows = F.pad(inputs["masked_positions"], (1, 0))
        used = inputs.get(PREDICTION_PLACES)
        if used is not None:
            batch, length = in_rows.shape
            cls = torch.arange(0, batch * length, length, device=used.device)
            used = torch.cat([cls, used + used // (length - 1) + 1])
        return rows.at(in_rows, used)

    def sums(
        self,
        hidden_states: Tensor,
        inputs: dict[str, Tensor],
        token_logits: Callable[[Tensor], Tensor],
        pair_logits: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, ...]:
        import torch.nn.functional as F

        logits = token_logits(hidden_states[:, _num_cls(hidden_states, inputs) :])
        labels, weights = inputs["masked_labels"], inputs["masked_weights"]
        used = Places(len(labels), labels.shape[1], inputs.get(PREDICTION_PLACES))
        per_position = F.cross_entropy(
            logits.flatten(0, 1).float(), used.take(labels).flatten(), reduction="none"
        )
        return ((per_position * used.take(weights).flatten()).sum(),)


class MaskedLMAndPairs(MaskedLM):
    """Masked language modeling, and one of two labels for each pair of segments.

    pair_loss: `nsp`, whether B follows A (Devlin et al. 2018, section 3.1), or `sop`, whether A
        and B are in order (Lan et al. 2020, section 3.1)
    """

    heads = frozenset({"masked_lm", "pair"})
    fields = (*MaskedLM.fields, "pair_labels")

    def __init__(self, pair_loss: str) -> None:
        self.losses = (*MaskedLM.losses, pair_loss)

    def denominators(self, num_predictions: int, num_instances: int) -> tuple[int, ...]:
        return (num_predictions, num_instances)

    def sums(
        self,
        hidden_states: Tensor,
        inputs: dict[str, Tensor],
        token_logits: Callable[[Tensor], Tensor],
        pair_logits: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, ...]:
        import torch.nn.functional as F

        masked_lm = super().sums(hidden_states, inputs, token_logits, pair_logits)
        cls_states = hidden_states[:, : _num_cls(hidden_states, inputs)]
        logits = pair_logits(cls_states.reshape(-1, 1, cls_states.shape[-1]))  # (batch, 2)
        pairs = F.cross_entropy(logits.float(), inputs["pair_labels"], reduction="sum")
        return (*masked_lm, pairs)


def _num_cls(hidden_states: Tensor, inputs: dict[str, Tensor]) -> int:
    """How many [CLS] each row of the gathered states begins with: one, or those of all instances."""
    return len(inputs["attention_mask"]) // len(hidden_states)


OBJECTIVES: dict[str, Objective] = {
    "nsp": MaskedLMAndPairs("nsp"),
    "sop": MaskedLMAndPairs("sop"),
    "full_sentences": MaskedLM(),
    "doc_sentences": MaskedLM(),
}
"""By `data.input_format`, which decides what the instances have labels for."""
