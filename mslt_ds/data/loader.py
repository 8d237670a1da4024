"""Global batches of training instances, the same whatever ranks and workers share the work.

Instances stand in one endless sequence: epoch after epoch, each in an order of its own. A global
batch is the next `global_batch_size` of them, and micro-batch m of it a fixed slice, so ranks and
accumulation only decide who computes which slice. Everything about instance n is a function of n:
nothing is replayed to go on at any step.

Notable: the number of masked positions of the whole global batch, which the loss is divided by,
is read from the index, so every rank knows it without building or asking for the others'
instances. Workers are threads, because compiled code holds no interpreter lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from mslt_ds.data.compiled import key_of
from mslt_ds.data.epoch_index import epoch_index
from mslt_ds.data.instances import InstanceArrays, InstanceOptions, build, epoch_key, num_masked
from mslt_ds.data.order import permute
from mslt_ds.data.store import TokenStore
from mslt_ds.errors import RecipeError

_BATCHES_AHEAD_PER_WORKER = 2
_EPOCHS_MAPPED = 2


@dataclass
class MicroBatch:
    """What one forward pass takes; tensors in main memory."""

    index: int  # in the global batch
    input_ids: Tensor  # (micro_batch, seq_length) int64
    token_type_ids: Tensor  # (micro_batch, seq_length) int64: 0 for A, 1 for B
    attention_mask: Tensor  # (micro_batch, seq_length) bool: False at padding
    masked_positions: Tensor  # (micro_batch, max_predictions) int64
    masked_labels: Tensor  # (micro_batch, max_predictions) int64
    masked_weights: Tensor  # (micro_batch, max_predictions) float32: 0 where unused, else 1
    next_sentence_labels: Tensor  # (micro_batch,) int64: 1 where B is random


@dataclass
class GlobalBatch:
    """One step's data: this rank's micro-batches, and the global figures its loss needs."""

    micro_batches: list[MicroBatch]
    num_masked: int  # masked positions in the global batch, all ranks together
    num_instances: int  # instances in the global batch, all ranks together


def global_batches(
    store: TokenStore,
    *,
    seed: int,
    seq_length: int,
    max_predictions: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    start_step: int,
    num_steps: int,
    masked_lm_prob: float = 0.15,
    short_seq_prob: float = 0.1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[GlobalBatch]:
    """This rank's part of the global batches `start_step` to `start_step + num_steps` (excluded).

    Steps count from the beginning of the run at this sequence length. Micro-batch m of a global
    batch holds its instances m * micro_batch_size to (m + 1) * micro_batch_size; the rank's
    accumulation i is m = i * world_size + rank.

    num_workers: threads that work ahead; 0: each batch is built when it's asked for.
    """
    whole = micro_batch_size * world_size
    if global_batch_size < 1 or global_batch_size % whole:
        raise RecipeError(
            f"train.global_batch_size: {global_batch_size} is not a multiple of "
            f"train.micro_batch_size {micro_batch_size} x {world_size} ranks = {whole}"
        )
    options = InstanceOptions(seq_length, max_predictions, masked_lm_prob, short_seq_prob)
    sequence = InstanceSequence(store, options, seed)
    micro_batches = range(rank, global_batch_size // micro_batch_size, world_size)

    def make(step: int) -> GlobalBatch:
        entries = sequence.entries(step * global_batch_size, global_batch_size)
        return GlobalBatch(
            [
                _micro_batch(sequence, entries, index, micro_batch_size, pin_memory)
                for index in micro_batches
            ],
            num_masked=sum(int(num_masked(part).sum()) for _, part in entries),
            num_instances=global_batch_size,
        )

    steps = range(start_step, start_step + num_steps)
    if num_workers == 0:
        return map(make, steps)
    # The next epoch's index is made while this one's is in use.
    last_epoch = sequence.epoch_of(steps.stop * global_batch_size - 1)

    def make_ahead(step: int) -> None:
        epoch = sequence.epoch_of(step * global_batch_size) + 1
        if epoch <= last_epoch:
            sequence.index(epoch)

    return _work_ahead(make, make_ahead, steps, num_workers)


def _work_ahead(
    make: Callable[[int], GlobalBatch],
    make_ahead: Callable[[int], None],
    steps: range,
    num_workers: int,
) -> Iterator[GlobalBatch]:
    # One thread more than asked for: what is made ahead must not keep a batch waiting.
    executor = ThreadPoolExecutor(num_workers + 1, thread_name_prefix="mslt-data")
    pending: deque[Future[GlobalBatch]] = deque()
    ahead: Future[None] | None = None
    try:
        for step in steps:
            if ahead is None or ahead.done():
                if ahead is not None:
                    ahead.result()
                ahead = executor.submit(make_ahead, step)
            pending.append(executor.submit(make, step))
            if len(pending) > num_workers * _BATCHES_AHEAD_PER_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


EpochEntries = list[tuple[int, np.ndarray]]
"""Index entries by epoch, in the order of the instance sequence."""


class InstanceSequence:
    """The endless sequence of instances at one sequence length.

    All epochs are counted as long as epoch 0, so that instance n lies in epoch n // length: an
    epoch of more instances leaves a random few out, one of fewer begins its order once more.
    """

    def __init__(self, store: TokenStore, options: InstanceOptions, seed: int) -> None:
        self.store = store
        self.options = options
        self.seed = seed
        self._indices: dict[int, np.ndarray] = {}
        self._lock = Lock()
        self.length = len(self.index(0))

    def epoch_of(self, instance: int) -> int:
        return instance // self.length

    def entries(self, start: int, count: int) -> EpochEntries:
        """Of the instances `start` to `start + count` (excluded)."""
        parts = []
        end = start + count
        while start < end:
            epoch, position = divmod(start, self.length)
            size = min(self.length - position, end - start)
            index = self.index(epoch)
            order = key_of("order", self.seed, epoch, self.options.seq_length)
            positions = np.arange(position, position + size, dtype=np.int64) % len(index)
            parts.append((epoch, index[permute(order, positions, len(index))]))
            start += size
        return parts

    def build(self, entries: EpochEntries) -> InstanceArrays:
        """The instances of `entries`, in their order."""
        arrays = [
            build(
                self.store.corpus, self.options,
                epoch_key(self.store.digest, self.seed, epoch), part,
            )
            for epoch, part in entries
        ]  # fmt: skip
        if len(arrays) == 1:
            return arrays[0]
        return InstanceArrays(
            **{
                name: np.concatenate([getattr(part, name) for part in arrays])
                for name in InstanceArrays.__dataclass_fields__
            }
        )

    def index(self, epoch: int) -> np.ndarray:
        """The epoch's index entries, (instances,) uint64, in document order."""
        index = self._indices.get(epoch)  # without the lock: it's held while another is made
        if index is not None:
            return index
        with self._lock:
            index = self._indices.get(epoch)
            if index is None:
                index = epoch_index(self.store, self.options, self.seed, epoch)
                # Work moves on from epoch to epoch; those it left are unmapped.
                kept = sorted(self._indices.items())[-_EPOCHS_MAPPED:]
                self._indices = dict(kept) | {epoch: index}
        return index


def _micro_batch(
    sequence: InstanceSequence, entries: EpochEntries, index: int, size: int, pin_memory: bool
) -> MicroBatch:
    arrays = sequence.build(_cut(entries, index * size, (index + 1) * size))
    tensors = {
        name: torch.from_numpy(getattr(arrays, name))
        for name in InstanceArrays.__dataclass_fields__
    }
    if pin_memory:
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return MicroBatch(index=index, **tensors)


def _cut(entries: EpochEntries, start: int, end: int) -> EpochEntries:
    """The entries `start` to `end` (excluded) of the concatenation of all parts."""
    cut = []
    offset = 0
    for epoch, part in entries:
        piece = part[max(0, start - offset) : max(0, end - offset)]
        if len(piece):
            cut.append((epoch, piece))
        offset += len(part)
    return cut
