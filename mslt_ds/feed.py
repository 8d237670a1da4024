"""The feed turns micro-batches into the inputs of the trainable suffix.

The frozen prefix runs here, outside the engine and without a gradient. The sequence of micro-batches
is flat: it doesn't stop at the end of a step, and what the prefix computes depends on nothing that the
engine does. So the prefix can take several micro-batches at once, and run one pass ahead: while this
micro-batch's gradients are computed and reduced and the optimizer steps, the next one's prefix runs,
in a thread on a CPU, in a stream of its own on a GPU. Neither changes what is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mslt_ds.data.loader import GlobalBatch, MicroBatch
from mslt_ds.model.rows import join
from mslt_ds.model.staged import FrozenPrefix
from mslt_ds.timing import PREFIX, timed


class SuffixInputs(NamedTuple):
    """The arguments of `TrainableSuffix.forward` for one micro-batch, on the device."""

    fields: dict[str, Tensor]
    hidden_states: Tensor | None  # see `FrozenPrefix.forward`; None without a prefix
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


@dataclass(frozen=True)
class _Pass:
    """What the prefix takes at once."""

    step: int
    batch: GlobalBatch
    micro_batches: list[MicroBatch]  # consecutive ones of `batch`


_Wait = Callable[[], list[SuffixInputs]]


class Feed:
    """Runs the prefix of a stage.

    prefix: None where nothing is frozen
    seed: the run's. Dropout is seeded by it, the step and the micro-batch's index, in prefix and
        suffix apart: no order of execution can change a number
    at_once: micro-batches of a step that one pass of the prefix takes, 1 if the prefix has dropout.
        Matrix products of another size may round otherwise; nothing else changes
    ahead: whether the prefix runs one pass ahead. Not on a CPU if the prefix has dropout, because all
        threads draw from one generator
    """

    def __init__(
        self,
        prefix: FrozenPrefix | None,
        device: torch.device,
        seed: int,
        *,
        at_once: int = 1,
        ahead: bool = False,
    ) -> None:
        self._prefix, self._device, self._seed = prefix, device, seed
        self.at_once, self.is_ahead = at_once, ahead and prefix is not None

    def training(self, batches: Iterable[GlobalBatch], first_step: int) -> Generator[Fed]:
        """The micro-batches of `batches`, which are those of the steps from `first_step` on."""
        passes = (
            _Pass(step, batch, batch.micro_batches[begin : begin + self.at_once])
            for step, batch in enumerate(batches, start=first_step)
            for begin in range(0, len(batch.micro_batches), self.at_once)
        )
        for one, wait in self._started(passes):
            first, last = one.batch.micro_batches[0], one.batch.micro_batches[-1]
            for micro_batch, inputs in zip(one.micro_batches, wait(), strict=True):
                yield Fed(
                    one.step,
                    one.batch,
                    inputs,
                    seed_of(self._key(one.step, micro_batch)),
                    begins_step=micro_batch is first,
                    ends_step=micro_batch is last,
                )

    def evaluation(self, batches: Iterable[GlobalBatch]) -> Iterator[SuffixInputs]:
        """The micro-batches of `batches`, the prefix without dropout."""
        for batch in batches:
            for micro_batch in batch.micro_batches:
                with self._prefix.without_dropout() if self._prefix else nullcontext():
                    (inputs,) = self._inputs([micro_batch])
                yield inputs

    def _key(self, step: int, micro_batch: MicroBatch) -> str:
        return f"{self._seed}/{step}/{micro_batch.index}"

    def _started(self, passes: Iterable[_Pass]) -> Iterator[tuple[_Pass, _Wait]]:
        """Each pass, with what waits for it; the next one has begun by then if they run ahead."""
        if not self.is_ahead:
            for one in passes:
                yield one, partial(self._run, one)
            return
        before: tuple[_Pass, _Wait] | None = None
        with _stream(self._device) if self._device.type == "cuda" else _thread() as start:
            for one in passes:
                started = one, start(partial(self._run, one))
                if before is not None:
                    yield before
                before = started
            if before is not None:
                yield before

    def _run(self, one: _Pass) -> list[SuffixInputs]:
        if self._prefix is not None and self._prefix.dropout:
            (micro_batch,) = one.micro_batches
            torch.manual_seed(seed_of(f"{self._key(one.step, micro_batch)}/prefix"))
        return self._inputs(one.micro_batches)

    def _inputs(self, micro_batches: Sequence[MicroBatch]) -> list[SuffixInputs]:
        fields = [to_device(micro_batch, self._device) for micro_batch in micro_batches]
        if self._prefix is None:
            return [SuffixInputs(each, None, None) for each in fields]
        joined, split = join(fields)
        with timed(PREFIX):
            hidden_states = split(self._prefix(joined))
        return [
            SuffixInputs(*pair, self._prefix.decoder_weight)
            for pair in zip(fields, hidden_states, strict=True)
        ]


@contextmanager
def _thread() -> Iterator[Callable[[_Wait], _Wait]]:
    """Starts what it's given on a thread of its own, one after the other."""
    executor = ThreadPoolExecutor(1, "mslt-prefix")
    try:
        yield lambda run: executor.submit(run).result
    finally:
        executor.shutdown(cancel_futures=True)


@contextmanager
def _stream(device: torch.device) -> Iterator[Callable[[_Wait], _Wait]]:
    """Starts what it's given on a stream of its own. The host queues everything in one order, so that
    random numbers are the same."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # for the weights

    def start(run: _Wait) -> _Wait:
        with torch.cuda.stream(stream):
            made = run()
            done = stream.record_event()

        def wait() -> list[SuffixInputs]:
            current = torch.cuda.current_stream(device)
            current.wait_event(done)
            for inputs in made:
                for tensor in (*inputs.fields.values(), inputs.hidden_states):
                    if tensor is not None:
                        tensor.record_stream(current)  # its memory isn't reused before
            return made

        return wait

    yield start


def to_device(micro_batch: MicroBatch, device: torch.device) -> dict[str, Tensor]:
    """The micro-batch's tensors by name; from pinned memory the copy is asynchronous."""
    return {name: value.to(device, non_blocking=True) for name, value in micro_batch.fields.items()}


def seed_of(key: str) -> int:
    """A 64-bit hash of `key`."""
    return int.from_bytes(
        hashlib.blake2b(key.encode(), digest_size=8).digest(), "little", signed=True
    )
