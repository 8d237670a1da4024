"""Counts the elements that DeepSpeed passes to its collectives.

The counts show that frozen layers cost no communication, as the method claims. All collectives of
DeepSpeed go through one backend object, whose methods are wrapped once per process. Scalars (gradient
norms, overflow flags) are reduced outside the backward pass, so everything that is reduced inside it
is gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mslt_ds.timing import REDUCTION, timed

# For each method of the backend, the position of the argument with this rank's contribution.
_REDUCTIONS = {"all_reduce": 0, "reduce": 0, "reduce_scatter": 1, "reduce_scatter_tensor": 1}
_GATHERS = {"all_gather": 1, "all_gather_into_tensor": 0, "all_gather_coalesced": 0}


@dataclass
class Traffic:
    """Elements since the last `take`, on this rank."""

    gradients_reduced: int = 0
    parameters_gathered: int = 0

    def take(self) -> Traffic:
        """The counts so far, which are reset to 0."""
        taken = Traffic(self.gradients_reduced, self.parameters_gathered)
        self.gradients_reduced = self.parameters_gathered = 0
        return taken


class TrafficMeter:
    """Wraps DeepSpeed's communication backend, for the life of the process."""

    def __init__(self) -> None:
        from deepspeed.comm import comm

        self.traffic = Traffic()
        self._in_backward = False
        self._backend = comm.cdb
        for name, position in _REDUCTIONS.items():
            self._wrap(name, position, self._reduced)
        for name, position in _GATHERS.items():
            self._wrap(name, position, self._gathered)

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Count the reductions in the block as reductions of gradients."""
        self._in_backward = True
        try:
            yield
        finally:
            self._in_backward = False

    def _wrap(self, name: str, position: int, count: Callable[[int], None]) -> None:
        method = getattr(type(self._backend), name, None)
        if method is None:
            return

        def counted(*args: Any, **kwargs: Any) -> Any:
            operands = [*args, *kwargs.values()]
            count(_elements(operands[position]))
            with timed(REDUCTION) if self._in_backward else nullcontext():
                return method(self._backend, *args, **kwargs)

        setattr(self._backend, name, counted)

    def _reduced(self, elements: int) -> None:
        if self._in_backward:
            self.traffic.gradients_reduced += elements

    def _gathered(self, elements: int) -> None:
        self.traffic.parameters_gathered += elements


def _elements(operand: Tensor | list[Tensor]) -> int:
    if isinstance(operand, Tensor):
        return operand.numel()
    return sum(tensor.numel() for tensor in operand)
