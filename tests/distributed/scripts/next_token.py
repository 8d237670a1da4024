"""Run by the tests under a launcher: `run_recipes.py` in a program with an objective of its own, which predicts
the next token at every position.

Attention isn't causal, so the loss means little. What matters: all that the program knows of the objective is
said here.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mslt_ds.data.instances import (
    NO_LABEL,
    InstanceMaker,
    Layout,
    entries_of,
    first_sentence,
    num_predictions,
)
from mslt_ds.data.packing import pack
from mslt_ds.data.store import Corpus
from mslt_ds.model.objective import OBJECTIVES, DataSection, Objective
from mslt_ds.model.rows import TOKEN_PLACES, Places, Positions, Rows


@dataclass(frozen=True)
class WholeSentences(InstanceMaker):
    """[CLS] sentences of one document [SEP]; nothing is hidden. All but the last token have a next one."""

    seq_length: int
    input_format: str = "next_token"

    def layout(self, count: int) -> Layout:
        tokens = (count, self.seq_length)
        return {
            "input_ids": (tokens, np.int64),
            "token_type_ids": (tokens, np.int64),
            "attention_mask": (tokens, np.bool_),
        }

    def index_documents(
        self,
        corpus: Corpus,
        continues: np.ndarray,
        key: np.uint64,
        first: int,
        last: int,
        start: int | None = None,
    ) -> tuple[np.ndarray, int]:
        most, found = self.seq_length - 2, []
        following = int(corpus.documents[first]) if start is None else start
        for document in range(first, last):
            while (begin := following) < corpus.documents[document + 1]:
                following, count, _ = pack(
                    corpus.sentences, corpus.documents, document, begin, most, False
                )
                found.append((min(count, most) + 1, begin))
        return entries_of(*np.array(found, np.int64).reshape(-1, 2).T), following

    def build(
        self,
        corpus: Corpus,
        continues: np.ndarray,
        keys: np.ndarray,
        entries: np.ndarray,
        arrays: Mapping[str, np.ndarray],
    ) -> None:
        special = corpus.special
        arrays["input_ids"][:] = special.pad
        arrays["token_type_ids"][:] = 0
        arrays["attention_mask"][:] = False
        counts = num_predictions(entries)
        for row, (count, sentence) in enumerate(zip(counts, first_sentence(entries), strict=True)):
            low = corpus.sentences[sentence]
            text = corpus.tokens[low : low + count - 1]
            arrays["input_ids"][row, : count + 1] = [special.cls, *text, special.sep]
            arrays["attention_mask"][row, : count + 1] = True


class NextToken(Objective):
    input_format = "next_token"
    unread = frozenset({"masking", "masked_lm_prob", "max_predictions_per_seq", "short_seq_prob"})
    pipeline_tag = "text-generation"
    losses = ("lm",)
    heads = frozenset({"masked_lm"})
    fields = ("input_ids", "token_type_ids", "attention_mask")

    def instances(
        self, data: DataSection, seq_length: int, masked_lm_prob: float, max_predictions: int
    ) -> InstanceMaker:
        return WholeSentences(seq_length)

    def denominators(self, num_predictions: int, num_instances: int) -> tuple[int, ...]:
        return (num_predictions,)

    def positions(self, inputs: dict[str, Tensor], rows: Rows) -> Positions | None:
        return None

    def sums(
        self,
        hidden_states: Tensor,
        inputs: dict[str, Tensor],
        token_logits: Callable[[Tensor], Tensor],
        pair_logits: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, ...]:
        following, has_one = (
            F.pad(inputs[name][:, 1:], (0, 1)) for name in ("input_ids", "attention_mask")
        )
        batch, length = following.shape
        places = Places(batch, length, inputs.get(TOKEN_PLACES))
        labels = places.take(following.where(has_one, NO_LABEL))
        logits = token_logits(hidden_states).flatten(0, 1).float()
        return (F.cross_entropy(logits, labels.flatten(), reduction="sum"),)


if __name__ == "__main__":
    OBJECTIVES[NextToken.input_format] = NextToken()
    runpy.run_path(str(Path(__file__).with_name("run_recipes.py")))
