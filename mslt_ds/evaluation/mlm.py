"""Held-out loss: how well a masked language model predicts the hidden tokens of a token store.

The instances are training's: sentences of one document, packed (`doc_sentences`), with the masks that
(store, seed) draws, so the same store gives the same instances to every model and family. Documents of a
source follow each other in a store, which gives each source a loss of its own. The model is Hugging Face's; its head
runs at the masked positions only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForMaskedLM

from mslt_ds.data.instances import InstanceOptions, first_sentence, num_predictions
from mslt_ds.data.loader import InstanceSequence
from mslt_ds.data.store import TokenStore
from mslt_ds.errors import CheckpointError, DataError, RecipeError
from mslt_ds.evaluation.batches import sample
from mslt_ds.evaluation.encoder import Encoder, position_limit
from mslt_ds.evaluation.finetune import autocast, to_device
from mslt_ds.evaluation.results import markdown

_USUAL_LENGTH = 512


@dataclass(frozen=True)
class HeldOut:
    """The loss on one source, or on all: summed over `predictions` masked tokens of `instances`."""

    name: str
    documents: int
    instances: int
    predictions: int
    summed_loss: float

    @property
    def loss(self) -> float:
        """Nats per masked token; NaN where none of the instances is of this source."""
        return self.summed_loss / self.predictions if self.predictions else math.nan

    def as_json(self) -> dict[str, Any]:
        known = self.predictions > 0
        return {
            "name": self.name,
            "documents": self.documents,
            "instances": self.instances,
            "predictions": self.predictions,
            "loss": self.loss if known else None,
            "perplexity": math.exp(self.loss) if known else None,
        }


def build(encoder: Encoder) -> nn.Module:
    """The model with its head. CheckpointError if the folder has none."""
    model, fresh = encoder.build(AutoModelForMaskedLM, seed=0)
    if fresh:
        raise CheckpointError(
            f"--model: {encoder.path}: {', '.join(fresh)} missing, so it has no masked-LM head to "
            "evaluate; name a folder that was saved with it, such as a run's model/"
        )
    return model.eval()


def sequence_length(model: nn.Module, encoder: Encoder, asked: int | None) -> int:
    """Tokens of the longest instances: `asked`, or 512 or what the model has positions for."""
    limit = position_limit(model)
    if asked is not None and limit is not None and asked > limit:
        raise RecipeError(
            f"--seq-length: {asked}, but {encoder.path} is made for {limit} positions; choose "
            f"{limit} or less"
        )
    return asked or min(limit or _USUAL_LENGTH, _USUAL_LENGTH)


def options_of(seq_length: int, masked_lm_prob: float) -> InstanceOptions:
    """Instances of whole sentences of one document, `masked_lm_prob` of whose tokens are hidden."""
    return InstanceOptions(
        seq_length, seq_length, masked_lm_prob=masked_lm_prob, input_format="doc_sentences"
    )


@dataclass(frozen=True)
class MaskedText:
    """Instances of a store that are evaluated, of epoch 0.

    rows: in the epoch's index, which is in the documents' order
    sources: the number of each row's source
    """

    sequence: InstanceSequence
    rows: np.ndarray
    sources: np.ndarray

    @classmethod
    def of(
        cls, store: TokenStore, options: InstanceOptions, seed: int, wanted: int | None
    ) -> MaskedText:
        """wanted: instances, drawn from all; None: all of them. DataError if there is none."""
        sequence = InstanceSequence(store, options, seed)
        index = sequence.index(0)
        rows = np.array(sample(len(index), wanted, seed), np.int64)
        if not len(rows):
            raise DataError(f"--data: {store.path}: it holds no instance")
        begins = store.corpus.documents[np.cumsum([0, *documents_by_source(store).values()])[1:-1]]
        sources = np.searchsorted(begins, first_sentence(index[rows]), side="right")
        return cls(sequence, rows, sources)

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """(positions in `rows`, their instances) of instances of similar length, the longest first.

        Padding that no row of the batch needs is cut off.
        """
        entries = self.sequence.index(0)[self.rows]
        order = np.argsort(-num_predictions(entries), kind="stable")
        keys = np.full(size, self.sequence.key(0))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            batch = self.sequence.build(entries[chosen], keys[: len(chosen)])
            longest = int(batch["attention_mask"].sum(1).max())
            for name in ("input_ids", "attention_mask"):
                batch[name] = batch[name][:, :longest]
            yield chosen, batch


def documents_by_source(store: TokenStore) -> dict[str, int]:
    """How many documents the store has of each source, in their order there. A store that doesn't say has
    one source, itself."""
    sources = store.manifest.get("sources", [])
    try:
        found = {source["name"]: int(source["stored"]["documents"]) for source in sources}
    except (KeyError, TypeError):
        found = {}
    if len(found) != len(sources) or sum(found.values()) != store.num_documents:
        return {store.path.name: store.num_documents}
    return found


@torch.inference_mode()
def prediction_losses(model: nn.Module, batch: dict[str, Tensor], precision: str) -> Tensor:
    """The loss of each instance, summed over its masked tokens, (batch,) fp64 on the CPU."""
    device = next(model.parameters()).device
    here = to_device(batch, device)
    rows, columns = here["masked_weights"].nonzero(as_tuple=True)
    places = rows, here["masked_positions"][rows, columns]

    def at_places(module: nn.Module, arguments: Any, output: Any) -> None:
        # (1, predictions, hidden)
        output.last_hidden_state = output.last_hidden_state[places].unsqueeze(0)

    # What stands above the encoder is computed for each token alone, in every masked LM.
    hook = model.base_model.register_forward_hook(at_places)  # type: ignore[operator, union-attr]
    try:
        with autocast(device, precision):
            inputs = {
                "input_ids": here["input_ids"],
                "attention_mask": here["attention_mask"].long(),
            }
            logits = model(**inputs).logits[0]
    finally:
        hook.remove()
    labels = here["masked_labels"][rows, columns]
    losses = cross_entropy(logits.float(), labels, reduction="none").double().cpu()
    return torch.zeros(len(batch["input_ids"]), dtype=torch.float64).index_add_(
        0, rows.cpu(), losses
    )


def by_source(
    text: MaskedText, losses: Sequence[float] | np.ndarray, counts: np.ndarray
) -> list[HeldOut]:
    """The results of each source, and after them those of all.

    losses, counts: summed loss and masked tokens of each row
    """
    documents = documents_by_source(text.sequence.store)
    losses = np.asarray(losses)
    found = []
    for number, (name, count) in enumerate(documents.items()):
        own = text.sources == number
        found.append(
            HeldOut(name, count, int(own.sum()), int(counts[own].sum()), float(losses[own].sum()))
        )
    total = sum(documents.values())
    everything = HeldOut("all", total, len(losses), int(counts.sum()), float(losses.sum()))
    return [*found, everything]


def table(rows: Sequence[HeldOut]) -> str:
    """A Markdown table: a row for each source, and the last one for all."""
    cells = [["source", "documents", "instances", "masked tokens", "loss", "perplexity"]]
    for row in rows:
        figures = [f"{row.loss:.4f}", f"{math.exp(row.loss):,.2f}"] if row.predictions else ["", ""]
        counts = [row.documents, row.instances, row.predictions]
        cells.append([row.name, *(f"{count:,}" for count in counts), *figures])
    return "\n".join(markdown(cells)) + "\n"
