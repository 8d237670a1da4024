"""Parts of a model, compiled by torch.compile, or as they are where that fails.

Prefix and suffix are compiled apart. The number of tokens is a variable of what is compiled, so that
micro-batches of other counts don't compile anew. torch keeps what it compiled on disk: a restart, and
a stage that trains as many layers, take it from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from mslt_ds.model.rows import PREDICTION_PLACES, TOKEN_PLACES

BACKEND = "inductor"
logger = logging.getLogger(__name__)


def wanted(setting: str, device: torch.device) -> tuple[bool, str]:
    """Whether parts are to be compiled under `train.compile`, and why."""
    if setting != "auto":
        return setting == "on", f"train.compile is {setting}"
    if device.type == "cuda":
        return True, "on a GPU it saves memory traffic and launches of kernels"
    return False, "on a CPU it takes minutes and makes steps a few percent shorter"


class CompiledPart:
    """A part's function of (inputs, ...), see `TrainableSuffix.forward`.

    name: in messages
    """

    def __init__(self, name: str, run: Callable[..., Any]) -> None:
        self._name, self._run = name, run
        self._compiled: Callable[..., Any] | None = torch.compile(run, backend=BACKEND)

    def __call__(self, inputs: dict[str, Tensor], *states: Tensor | None) -> Any:
        if self._compiled is not None:
            _let_counts_vary(inputs, states)
            try:
                return self._compiled(inputs, *states)
            except TorchDynamoException as error:
                self.give_up(error)
        return self._run(inputs, *states)

    def give_up(self, error: TorchDynamoException) -> None:
        """Run the part as it is from now on, and say why."""
        self._compiled = None
        cause = " ".join(str(error).partition("\n\n")[0].split())  # what follows is advice
        logger.warning("train.compile: the %s runs without: %s", self._name, cause)


def _let_counts_vary(inputs: dict[str, Tensor], states: tuple[Tensor | None, ...]) -> None:
    for name in (TOKEN_PLACES, PREDICTION_PLACES):
        if name in inputs:
            torch._dynamo.maybe_mark_dynamic(inputs[name], 0)
    if TOKEN_PLACES in inputs and states and states[0] is not None:
        torch._dynamo.maybe_mark_dynamic(states[0], 1)
