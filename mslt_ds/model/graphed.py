"""The frozen layers as CUDA graphs: the launches of a pass recorded once, and replayed as one.

A graph is of fixed shapes and addresses. So there is one for each set of shapes that a pass comes in, of which padded
counts of tokens leave few (`train.unpadded_sizes`); inputs are copied to where it reads them, and its output
from where it leaves it. All share one pool of memory, because only one of them runs at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mslt_ds.model.rows import PREFIX_FIELDS

_WARM_UPS = 2  # kernels are chosen, and compiled code is made, before the launches are recorded
logger = logging.getLogger(__name__)

Run = Callable[[dict[str, Tensor]], Tensor]
"""See `FrozenPrefix.forward`."""


@dataclass(frozen=True)
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    output: Tensor


class GraphedPart:
    """The function `run`, which draws no random numbers and doesn't wait for the device."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._recorded: dict[tuple, _Recorded] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._fails = False

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        if self._fails:
            return self._run(inputs)
        inputs = {name: inputs[name] for name in PREFIX_FIELDS if name in inputs}
        shapes = tuple((name, tensor.shape) for name, tensor in inputs.items())
        if shapes not in self._recorded:
            try:
                self._recorded[shapes] = self._record(inputs)
            except RuntimeError as error:
                self._fails = True
                cause = str(error).partition("\n")[0]
                logger.warning("train.prefix_graph: the frozen layers run without: %s", cause)
                return self._run(inputs)
        recorded = self._recorded[shapes]
        for name, tensor in inputs.items():
            recorded.inputs[name].copy_(tensor)
        recorded.graph.replay()
        return recorded.output.clone()  # the next replay writes to the same place

    def _record(self, inputs: dict[str, Tensor]) -> _Recorded:
        own = {name: tensor.clone() for name, tensor in inputs.items()}
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._run(own)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as that of the loader, may use the device in the meantime.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = self._run(own)
        return _Recorded(graph, own, output)
