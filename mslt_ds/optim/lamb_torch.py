"""LAMB's two passes in torch's multi-tensor operations: any device, any floating type.

It needs no compiler. It moves three times the memory of the compiled backends and holds a buffer as
large as the group during a step.
"""

# torch's multi-tensor operations have an underscore, but no other name.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import torch
from torch import Tensor

from mslt_ds.optim.pieces import Coefficients, GroupTensors, Pieces, squared_norms


class TorchBackend:
    """`moments`, then `apply`, for one group at a time."""

    def __init__(self) -> None:
        self._updates: list[Tensor] = []

    def moments(self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients) -> Tensor:
        """Advance the moments; float64 (num_parameters, 2): squared norms of weight and update."""
        c = coefficients
        device = c.first.device
        squares = torch.zeros(pieces.num_parameters, 2, dtype=torch.float64, device=device)
        if not len(pieces.numel):
            return squares
        weights = pieces.views(tensors.weights)
        gradients = pieces.views(tensors.gradients)
        exp_avgs = pieces.views(tensors.exp_avgs)
        exp_avg_sqs = pieces.views(tensors.exp_avg_sqs)
        if c.gradient_scale is not None:
            gradients = torch._foreach_mul(gradients, c.gradient_scale.to(weights[0].dtype))
        if c.gradient_decay:
            gradients = torch._foreach_add(gradients, weights, alpha=c.gradient_decay)
        torch._foreach_lerp_(exp_avgs, gradients, 1.0 - c.beta1)
        torch._foreach_mul_(exp_avg_sqs, c.beta2)
        torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, 1.0 - c.beta2)

        parameter = torch.from_numpy(pieces.parameter).to(device)
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_mul_(denominators, list(c.second[parameter].unbind()))
        torch._foreach_add_(denominators, c.eps)
        updates = torch._foreach_mul(exp_avgs, list(c.first[parameter].unbind()))
        torch._foreach_div_(updates, denominators)
        if c.update_decay:
            torch._foreach_add_(updates, weights, alpha=c.update_decay)
        self._updates = list(updates)
        both = torch.stack([squared_norms(weights), squared_norms(self._updates)], dim=1)
        return squares.index_copy_(0, parameter, both.to(device))

    def apply(
        self, pieces: Pieces, tensors: GroupTensors, coefficients: Coefficients, rates: Tensor
    ) -> None:
        """weight -= rate * update; rates: fp32 (num_parameters,), learning rate x trust ratio."""
        if not len(pieces.numel):
            return
        updates, self._updates = self._updates, []
        parameter = torch.from_numpy(pieces.parameter).to(rates.device)
        torch._foreach_mul_(updates, list(rates[parameter].unbind()))
        torch._foreach_sub_(pieces.views(tensors.weights), updates)
