"""What is learned: the instances and what is read of them, the losses, and what they're divided by.

The loss of a step is defined on the *global* batch. An objective gives each loss as a sum over a
micro-batch and the number of its terms in the whole global batch; sum / number, added up over
micro-batches, ranks and losses, is the loss that is trained. An objective asks the model for
logits and knows no model family.

Nothing else in the program knows an objective by name, except the table at the end. docs/families.md
shows how to add one. Importing this module imports no torch: the checks of a recipe and `mslt-ds plan`
need objectives too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol

from mslt_ds.model.family import Heads
from mslt_ds.model.rows import PREDICTION_PLACES, TOKEN_PLACES, Places

if TYPE_CHECKING:
    from torch import Tensor

    from mslt_ds.data.instances import InstanceMaker
    from mslt_ds.data.masking import Masking
    from mslt_ds.model.rows import Positions, Rows


class DataSection(Protocol):
    """The `data` section of a recipe, as far as objectives read it (`config.sections.DataConfig`)."""

    @property
    def short_seq_prob(self) -> float: ...
    @property
    def masking(self) -> Masking: ...


class Objective(ABC):
    """What a model is trained for. One instance stands for it; it has no state."""

    input_format: str
    """The recipe's `data.input_format`."""
    unread: frozenset[str] = frozenset()
    """Keys of a recipe's sections `data` and `plan`, its stages included, that it doesn't read."""
    pipeline_tag = "fill-mask"
    """What Hugging Face's hub calls the use of such a model."""
    losses: tuple[str, ...]
    """The names of its losses, in the order of all that is aligned with them. Metrics call them
    `<name>_loss` and, on held-out text, `eval_<name>_loss`."""
    heads: Heads
    """The heads of the model that it reads."""
    fields: tuple[str, ...]
    """The fields of its instances that it and the model read."""
    grids: ClassVar[Mapping[str, str]] = {TOKEN_PLACES: "attention_mask"}
    """What runs where padding is left out: the name of the places that run -> the field that is above 0 at
    those in use."""

    @abstractmethod
    def instances(
        self, data: DataSection, seq_length: int, masked_lm_prob: float, max_predictions: int
    ) -> InstanceMaker:
        """The maker of its instances.

        masked_lm_prob: share of the tokens to predict, of the stage
        max_predictions: the most positions of an instance that this share masks
        """

    @abstractmethod
    def denominators(self, num_predictions: int, num_instances: int) -> tuple[int, ...]:
        """The number of terms of each loss in a global batch.

        num_predictions: positions with a label, as the index of the instances counts them
        """

    @abstractmethod
    def positions(self, inputs: dict[str, Tensor], rows: Rows) -> Positions | None:
        """Where the top layer's output is used; None: everywhere."""

    def num_positions(self, tokens: float, max_predictions: float) -> float:
        """How many `positions` an instance of so many tokens has."""
        return tokens

    def num_logits(self, tokens: float, max_predictions: float) -> float:
        """At how many of them `sums` asks for logits over the vocabulary."""
        return tokens

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

    unread = frozenset({"short_seq_prob"})
    losses: tuple[str, ...] = ("mlm",)
    heads = frozenset({"masked_lm"})
    fields: tuple[str, ...] = (
        "input_ids", "token_type_ids", "attention_mask",
        "masked_positions", "masked_labels", "masked_weights",
    )  # fmt: skip
    grids: ClassVar[Mapping[str, str]] = {**Objective.grids, PREDICTION_PLACES: "masked_weights"}

    def __init__(self, input_format: str) -> None:
        self.input_format = input_format

    def instances(
        self, data: DataSection, seq_length: int, masked_lm_prob: float, max_predictions: int
    ) -> InstanceMaker:
        from mslt_ds.data.instances import InstanceOptions

        return InstanceOptions(
            seq_length,
            max_predictions,
            masked_lm_prob,
            data.short_seq_prob,
            self.input_format,
            data.masking,
        )

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

    def num_positions(self, tokens: float, max_predictions: float) -> float:
        return max_predictions + 1

    def num_logits(self, tokens: float, max_predictions: float) -> float:
        return max_predictions

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

    input_format: `nsp`, whether B follows A (Devlin et al. 2018, section 3.1), or `sop`, whether A
        and B are in order (Lan et al. 2020, section 3.1)
    """

    unread = frozenset()
    heads = frozenset({"masked_lm", "pair"})
    fields = (*MaskedLM.fields, "pair_labels")

    def __init__(self, input_format: str) -> None:
        super().__init__(input_format)
        self.losses = (*MaskedLM.losses, input_format)

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
    objective.input_format: objective
    for objective in (
        MaskedLMAndPairs("nsp"),
        MaskedLMAndPairs("sop"),
        MaskedLM("full_sentences"),
        MaskedLM("doc_sentences"),
    )
}
"""By `data.input_format`. Where the recipe names none, it's the first that the family has the heads of."""
