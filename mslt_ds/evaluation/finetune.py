"""The training loop of fine-tuning, and prediction.

Source: Devlin et al. 2019, appendix A.3: AdamW with weight decay 0.01 (none for biases and LayerNorm),
linear warm-up and decay, and the model's own dropout. On a CPU, the same seed and the same number of
threads give bit-identical results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from mslt_ds.errors import DivergenceError
from mslt_ds.evaluation.recipe import FineTuning

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
"""Maps a model and a batch on its device to the mean loss of the batch, a scalar."""

_READ_EVERY_STEPS = 20


@dataclass(frozen=True)
class Settings:
    """What a single run takes from the recipe and its cell."""

    learning_rate: float
    seed: int
    total_steps: int
    warmup_share: float
    weight_decay: float
    gradient_clipping: float
    precision: str

    @classmethod
    def of(cls, recipe: FineTuning, learning_rate: float, seed: int, total_steps: int) -> Settings:
        return cls(
            learning_rate, seed, total_steps, recipe.warmup_share, recipe.weight_decay,
            recipe.gradient_clipping, recipe.precision,
        )  # fmt: skip


def fine_tune(
    model: nn.Module,
    batches: Iterator[Batch],
    loss_of: Loss,
    settings: Settings,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train `model` in place on all `batches`. Returns the mean loss of the last steps.

    on_step: called every 20 steps with the number of finished steps and their mean loss

    DivergenceError if the loss becomes infinite or NaN.
    """
    device = next(model.parameters()).device
    torch.manual_seed(settings.seed)
    model.train()
    optimizer = make_optimizer(model, settings)
    schedule = get_linear_schedule_with_warmup(
        optimizer, math.ceil(settings.warmup_share * settings.total_steps), settings.total_steps
    )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    recent: list[Tensor] = []
    mean = math.nan
    for step, batch in enumerate(batches, start=1):
        with autocast(device, settings.precision):
            loss = loss_of(model, to_device(batch, device))
        loss.backward()
        if settings.gradient_clipping:
            nn.utils.clip_grad_norm_(parameters, settings.gradient_clipping, foreach=True)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.detach())
        if step % _READ_EVERY_STEPS == 0 or step == settings.total_steps:
            # The only synchronization with the device.
            mean = torch.stack(recent).mean().item()
            recent.clear()
            if not math.isfinite(mean):
                raise DivergenceError(
                    f"loss {mean} after {step} steps at learning rate {settings.learning_rate}; "
                    "take it out of learning_rates"
                )
            on_step(step, mean)
    return mean


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW with weight decay for matrices and embeddings only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, eps=1e-6, fused=True)


def predict(
    model: nn.Module,
    batches: Sequence[Sequence[int]],
    make_batch: Callable[[Sequence[int]], Batch],
    outputs_of: Callable[[nn.Module, Batch], Tensor],
    precision: str,
) -> Tensor:
    """The model's outputs for all rows, in the order of the rows, in fp32 on the CPU.

    batches: the rows of each batch
    outputs_of: maps the model and a batch to (rows, ...), with the same shape for all batches
        except for the number of rows
    """
    device = next(model.parameters()).device
    model.eval()
    parts = []
    with torch.inference_mode(), autocast(device, precision):
        for rows in batches:
            batch = make_batch(rows)
            batch.pop("labels", None)
            parts.append(outputs_of(model, to_device(batch, device)).float().cpu())
    order = torch.tensor([row for rows in batches for row in rows])
    outputs = torch.cat(parts)
    return torch.empty_like(outputs).index_copy_(0, order, outputs)


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Autocast to bf16 if `precision` asks for it; weights stay in fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch, copied to `device`."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
