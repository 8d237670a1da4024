"""Numbers that aren't finite, planted in chosen batches of the runs of this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch

from mslt_ds.data.loader import GlobalBatch
from mslt_ds.engine import StageEngine
from mslt_ds.feed import Fed, Feed, SuffixInputs


def plant(kind_of: Callable[[int], str]) -> None:
    """Make this rank's loss or gradient infinite or NaN.

    kind_of: (first instance of a batch) -> "none", "loss" or "gradient"; called as the batch begins
    """
    feed, accumulate = Feed.training, StageEngine.accumulate
    kind = "none"

    def watched(self: Feed, batches: Iterable[GlobalBatch], first_step: int) -> Iterator[Fed]:
        nonlocal kind
        for fed in feed(self, batches, first_step):
            kind = kind_of(fed.batch.instances[0])
            yield fed

    def spoiled(self: StageEngine, inputs: SuffixInputs, denominators: tuple) -> torch.Tensor:
        if kind == "none":
            return accumulate(self, inputs, denominators)
        if kind == "loss":
            return accumulate(self, inputs, tuple(0 * number for number in denominators))
        parameter = next(self.model.suffix.parameters())
        handle = parameter.register_hook(lambda gradient: gradient * math.inf)
        try:
            return accumulate(self, inputs, denominators)
        finally:
            handle.remove()

    Feed.training = watched  # pyright: ignore[reportAttributeAccessIssue]
    StageEngine.accumulate = spoiled
