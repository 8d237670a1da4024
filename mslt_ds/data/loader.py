"""Global batches of training instances, which don't depend on the number of ranks and workers.

The instances of a sequence length form one endless sequence: epoch after epoch, each in an order of
its own. A global batch is the next `global_batch_size` of them, and micro-batch m of it is a fixed
slice, so ranks and accumulation only decide who computes which slice. Instance n is a function of n,
so a run can go on anywhere without replaying what came before. Its place in the corpus doesn't depend
on the share of masked tokens, so stages that mask other shares go on in the same sequence.

The loss is divided by the number of positions with a label of the whole global batch. Each rank reads it
from the index and needs no other rank's instances. Instances are built in pinned memory if a GPU will
fetch them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from threading import Lock
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from mslt_ds.data import ahead, tokenizer
from mslt_ds.data.compiled import key_of
from mslt_ds.data.epoch_index import Say, epoch_index
from mslt_ds.data.instances import InstanceMaker, epoch_key, num_predictions
from mslt_ds.data.order import permute
from mslt_ds.data.store import TOKENS, TokenStore
from mslt_ds.data.unpadding import places_to_run
from mslt_ds.errors import DataError

_EPOCHS_MAPPED = 2
_CPU = torch.device("cpu")


class Reader(Protocol):
    """What the loader asks of an objective (`model.objective.Objective`, which explains it)."""

    grids: ClassVar[Mapping[str, str]]

    @property
    def fields(self) -> tuple[str, ...]: ...
    def denominators(self, num_predictions: int, num_instances: int) -> tuple[int, ...]: ...


@dataclass
class MicroBatch:
    """What one forward pass takes; tensors in main memory."""

    index: int  # in the global batch
    fields: dict[str, Tensor]  # the objective's, of the instances, and those of `places_to_run`


@dataclass
class GlobalBatch:
    """One step's data: this rank's micro-batches, and the global figures its loss needs."""

    micro_batches: list[MicroBatch]
    denominators: tuple[int, ...]  # of the objective's losses, all ranks together
    num_instances: int  # instances in the global batch, all ranks together
    instances: tuple[int, int]  # of the endless sequence: its first, and the one after its last

    def count_tokens(self) -> int:
        """Tokens of this rank's micro-batches, padding left out; counted in main memory."""
        return sum(int(batch.fields["attention_mask"].sum()) for batch in self.micro_batches)


def global_batches(
    store: TokenStore,
    options: InstanceMaker,
    objective: Reader,
    *,
    seed: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    first_instance: int,
    num_steps: int,
    first_step: int = 0,
    gaps: tuple[tuple[int, int], ...] = (),
    unpadded_sizes: int | None = None,
    always_places: bool = False,
    num_workers: int = 0,
    device: torch.device = _CPU,
    say: Say | None = None,
) -> Iterator[GlobalBatch]:
    """This rank's part of `num_steps` global batches, which begin at instance `first_instance`.

    Micro-batch m of a global batch holds its instances m * micro_batch_size to (m + 1) *
    micro_batch_size (excluded); the rank's micro-batch i is m = i * world_size + rank. The global
    batch is a whole number of micro-batches for each rank (`Stage.gradient_accumulation_steps`).

    first_instance: counted from the beginning of the sequence at this sequence length
    first_step: the number of the first of the steps, for messages
    gaps: ranges of instances (first, one after the last) to leave out; each begins with a global
        batch, and later batches move up
    unpadded_sizes, always_places: see `places_to_run`; no sizes: padding runs like tokens
    num_workers: threads that work ahead; 0: each batch is built when it's asked for
    device: that the batches are for; their tensors are pinned if it's a CUDA device
    say: told on rank 0, once for each epoch, that its index takes long to make
    """
    sequence = InstanceSequence(store, options, seed, say if rank == 0 else None)
    steps = range(first_step, first_step + num_steps)

    def start_of(step: int) -> int:
        return passing_over(first_instance + (step - first_step) * global_batch_size, gaps)

    # Made here, because the wait for a batch has a time limit.
    sequence.index(sequence.epoch_of(start_of(first_step)))

    def micro_batch(tensors: dict[str, Tensor], i: int) -> MicroBatch:
        own = slice(i * micro_batch_size, (i + 1) * micro_batch_size)
        fields = {name: tensors[name][own] for name in objective.fields}
        if unpadded_sizes is not None:
            fields |= places_to_run(fields, objective.grids, unpadded_sizes, always=always_places)
        return MicroBatch(i * world_size + rank, fields)

    def make(step: int) -> GlobalBatch:
        sequence.check_files()
        start = start_of(step)
        entries, keys = sequence.entries(start, global_batch_size)
        micro_batches = np.arange(global_batch_size).reshape(-1, micro_batch_size)[rank::world_size]
        own = micro_batches.ravel()
        tensors = sequence.build(entries[own], keys[own], pinned=device.type == "cuda")
        return GlobalBatch(
            [micro_batch(tensors, i) for i in range(len(micro_batches))],
            instances=(start, start + global_batch_size),
            # Not 0, as it may be where no word is short enough: the loss is divided by it.
            denominators=objective.denominators(
                max(1, int(num_predictions(entries).sum())), global_batch_size
            ),
            num_instances=global_batch_size,
        )

    # The next epoch's index is made while this one's is in use.
    last_epoch = sequence.epoch_of(start_of(steps.stop) - 1)

    def make_ahead(step: int) -> None:
        epoch = sequence.epoch_of(start_of(step)) + 1
        if epoch <= last_epoch:
            sequence.index(epoch)

    return ahead.work_ahead(
        make, make_ahead, steps, num_workers, place=str(store.path), device=device
    )


def passing_over(instance: int, gaps: tuple[tuple[int, int], ...]) -> int:
    """Where the `instance` of a sequence lies once `gaps` are left out of it.

    gaps: (first, one after the last) each, in the numbers of the whole sequence
    """
    for first, end in sorted(gaps):
        if instance >= first:
            instance += end - first
    return instance


class InstanceSequence:
    """The endless sequence of instances at one sequence length.

    All epochs are counted as long as epoch 0, so that instance n lies in epoch n // length: an
    epoch of more instances leaves a random few out, one of fewer begins its order once more.
    """

    def __init__(
        self, store: TokenStore, options: InstanceMaker, seed: int, say: Say | None = None
    ) -> None:
        self.store = store
        self.options = options
        self.seed = seed
        self._say = say
        self._continues = np.zeros(0, np.bool_)
        if options.reads_words:
            self._continues = tokenizer.load(store.tokenizer_dir).continuing_tokens()
        self._indices: dict[int, np.ndarray] = {}
        self._lock = Lock()
        self.length = len(self.index(0))

    def epoch_of(self, instance: int) -> int:
        return instance // self.length

    def key(self, epoch: int) -> np.uint64:
        """The key that all draws of the epoch's instances derive from."""
        return epoch_key(self.store.digest, self.seed, epoch)

    def entries(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Index entries of the instances `start` to `start + count` (excluded), and the keys of
        their epochs; each (count,) uint64."""
        entries, keys = np.empty(count, np.uint64), np.empty(count, np.uint64)
        done = 0
        while done < count:
            epoch, position = divmod(start + done, self.length)
            part = slice(done, done + min(self.length - position, count - done))
            index = self.index(epoch)
            order = key_of("order", self.seed, epoch, self.options.seq_length)
            positions = np.arange(position, position + part.stop - part.start) % len(index)
            entries[part] = index[permute(order, positions, len(index))]
            keys[part] = self.key(epoch)
            done = part.stop
        return entries, keys

    def build(
        self, entries: np.ndarray, keys: np.ndarray, *, pinned: bool = False
    ) -> dict[str, Tensor]:
        """The instances of `entries`, in their order: tensors by the names of their fields."""
        tensors = {
            name: torch.empty(shape, dtype=_TORCH[dtype], pin_memory=pinned)
            for name, (shape, dtype) in self.options.layout(len(entries)).items()
        }
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.options.build(self.store.corpus, self._continues, keys, entries, arrays)
        largest = max(arrays[name].max(initial=0) for name in self.options.token_fields)
        if largest >= self.store.vocab_size:
            raise DataError(
                f"{self.store.path / TOKENS}: damaged, it holds the token {largest} of a vocabulary of "
                f"{self.store.vocab_size}; prepare the store again"
            )
        return tensors

    def index(self, epoch: int) -> np.ndarray:
        """The epoch's index entries, (instances,) uint64, in document order."""
        index = self._indices.get(epoch)  # without the lock: it's held while another is made
        if index is not None:
            return index
        with self._lock:
            index = self._indices.get(epoch)
            if index is None:
                index = epoch_index(
                    self.store, self._continues, self.options, self.seed, epoch, self._say
                )
                # Work moves on from epoch to epoch; those it left are unmapped.
                kept = sorted(self._indices.items())[-_EPOCHS_MAPPED:]
                self._indices = dict(kept) | {epoch: index}
        return index

    def check_files(self) -> None:
        """DataError if a mapped file has become shorter, since reading past its end kills the process, or
        if the verification of the store has found damage."""
        self.store.check()
        corpus = self.store.corpus
        arrays = (corpus.tokens, corpus.sentences, corpus.documents, corpus.groups)
        for array in (*arrays, *self._indices.values()):
            mapped: Any = array.base
            if not isinstance(mapped, np.memmap):
                continue
            file: Any = mapped.base
            if isinstance(file, mmap) and (size := file.size()) < mapped.nbytes:
                raise DataError(
                    f"{mapped.filename}: damaged while it was in use, {size} bytes are left of "
                    f"{mapped.nbytes}; the checkpoints are kept. Delete it if it's in a folder "
                    "named index, else prepare the store again, and start the same command again"
                )


_TORCH = {np.int64: torch.int64, np.float32: torch.float32, np.bool_: torch.bool}
