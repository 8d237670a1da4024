"""The feed: micro-batches in, what the trainable suffix takes out.

The frozen prefix runs here, outside the engine and without a gradient, one micro-batch after the
other. The sequence is flat: it doesn't stop at the end of a step, so that the prefix of a micro-batch
depends on nothing that the engine does with those before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mslt_ds.data.loader import GlobalBatch, MicroBatch
from mslt_ds.model.staged import FrozenPrefix


class SuffixInputs(NamedTuple):
    """The arguments of `TrainableSuffix.forward` for one micro-batch, on the device."""

    fields: dict[str, Tensor]
    hidden_states: Tensor | None  # (micro_batch, seq_length, hidden); None without a prefix
    decoder_weight: Tensor | None  # (vocab, embedding size); None without a prefix


@dataclass(frozen=True)
class Fed:
    """A micro-batch that is ready for the engine."""

    step: int
    batch: GlobalBatch  # that it is a part of
    inputs: SuffixInputs
    dropout_seed: int  # of the suffix
    begins_step: bool  # on this rank
    ends_step: bool  # on this rank


class Feed:
    """Runs the prefix of a stage.

    prefix: None where nothing is frozen
    seed: the run's. Dropout is seeded by it, the step and the micro-batch's index, in prefix and
        suffix apart: no order of execution can change a number
    """

    def __init__(self, prefix: FrozenPrefix | None, device: torch.device, seed: int) -> None:
        self._prefix, self._device, self._seed = prefix, device, seed

    def training(self, batches: Iterable[GlobalBatch], first_step: int) -> Iterator[Fed]:
        """The micro-batches of `batches`, which are those of the steps from `first_step` on."""
        for step, batch in enumerate(batches, start=first_step):
            last = len(batch.micro_batches) - 1
            for position, micro_batch in enumerate(batch.micro_batches):
                key = f"{self._seed}/{step}/{micro_batch.index}"
                if self._prefix is not None and self._prefix.dropout:
                    torch.manual_seed(seed_of(f"{key}/prefix"))
                yield Fed(
                    step,
                    batch,
                    self._inputs(micro_batch),
                    seed_of(key),
                    begins_step=position == 0,
                    ends_step=position == last,
                )

    def evaluation(self, batches: Iterable[GlobalBatch]) -> Iterator[SuffixInputs]:
        """The micro-batches of `batches`, the prefix without dropout."""
        for batch in batches:
            for micro_batch in batch.micro_batches:
                with self._prefix.without_dropout() if self._prefix else nullcontext():
                    inputs = self._inputs(micro_batch)
                yield inputs

    def _inputs(self, micro_batch: MicroBatch) -> SuffixInputs:
        fields = to_device(micro_batch, self._device)
        if self._prefix is None:
            return SuffixInputs(fields, None, None)
        return SuffixInputs(fields, self._prefix(fields), self._prefix.decoder_weight)


def to_device(micro_batch: MicroBatch, device: torch.device) -> dict[str, Tensor]:
    """The micro-batch's tensors by name; from pinned memory the copy is asynchronous."""
    return {name: value.to(device, non_blocking=True) for name, value in micro_batch.fields.items()}


def seed_of(key: str) -> int:
    """64 bits that stand for `key`."""
    return int.from_bytes(
        hashlib.blake2b(key.encode(), digest_size=8).digest(), "little", signed=True
    )
