"""Bytes of the tensors on each GPU: weights, gradients, optimizer, activations.

Weights, gradients, masters and moments are as ZeRO partitions them (Rajbhandari et al. 2020, section 3). The trained
layers keep their activations for the backward pass of a micro-batch (Korthikanti et al. 2022, section
4.1, with attention that keeps no scores); the frozen ones keep nothing beyond the layer that runs. What a
driver, a communication library or an allocator takes beside them isn't counted.
"""

from __future__ import annotations

from mslt_ds.config.sections import RunConfig
from mslt_ds.plan import cost
from mslt_ds.plan.stages import Stage

_ZERO_BYTES = {
    # (fp32, ZeRO stage): bytes of a trained parameter on each rank, and shared among the ranks
    (False, 0): (16, 0), (False, 1): (4, 12), (False, 2): (2, 14),
    (True, 0): (16, 0), (True, 1): (8, 12), (True, 2): (4, 16),
}  # fmt: skip


def number_bytes(precision: str) -> int:
    """Bytes of one number."""
    return 4 if precision == "fp32" else 2


def bytes_per_gpu(
    config: RunConfig, stage: Stage, vocab_size: int, *, gpus: int, zero_stage: int
) -> int:
    """Bytes of all the stage's tensors on each GPU."""
    small = number_bytes(config.train.precision)
    frozen = number_bytes(config.train.frozen_precision)
    total = cost.total_parameters(config, stage, vocab_size)
    trained = cost.trainable_parameters(config, stage, vocab_size)
    whole, shared = _ZERO_BYTES[small == 4, zero_stage]
    predictions = config.max_predictions(stage.seq_length, stage.masked_lm_prob)
    positions = config.data.objective.num_logits(stage.seq_length, predictions)
    # Logits, their fp32 copy for the loss, and the gradients of both.
    each = 2 * small + (0 if small == 4 else 8)
    logits = stage.micro_batch_size * positions * vocab_size * each
    below = micro_batches_at_once(config, stage, gpus) * _frozen_activations(config, stage)
    activations = _trained_activations(config, stage) + logits + below
    return round((total - trained) * frozen + trained * (whole + shared / gpus) + activations)


def micro_batches_at_once(config: RunConfig, stage: Stage, world_size: int) -> int:
    """How many of a rank's micro-batches of a step one pass of the frozen prefix takes
    (`train.prefix_micro_batch_size`).

    `auto` is the largest part of the step, in equal passes, whose activations in the prefix take no more
    memory than those that the trained layers keep of one micro-batch.
    """
    wanted, micro = config.train.prefix_micro_batch_size, stage.micro_batch_size
    frozen = _frozen_activations(config, stage)
    if wanted is None or not frozen:
        return 1
    accumulated = stage.gradient_accumulation_steps(world_size)
    if wanted != "auto":
        return min(wanted // micro, accumulated)
    if config.train.frozen_dropout == "on":
        return 1  # it draws for each micro-batch
    fit = max(1, _trained_activations(config, stage) // frozen)
    return max(n for n in range(1, min(fit, accumulated) + 1) if accumulated % n == 0)


def _trained_activations(config: RunConfig, stage: Stage) -> int:
    """Bytes that the layers which the gradient passes keep of a micro-batch."""
    model = config.model
    below_cut = 0 if stage.train_embeddings else stage.trained.start
    masks = 2 * model.hidden_size if model.hidden_dropout_prob else 0
    numbers = 8 * model.hidden_size + 2 * model.intermediate_size
    each = (
        stage.micro_batch_size
        * stage.seq_length
        * (number_bytes(config.train.precision) * numbers + masks)
    )
    return (stage.depth - below_cut) * each


def _frozen_activations(config: RunConfig, stage: Stage) -> int:
    """Bytes that the frozen prefix holds at a time of a micro-batch; 0 without layers in it."""
    if stage.train_embeddings or not stage.trained.start:
        return 0
    model = config.model
    numbers = 4 * model.hidden_size + 2 * model.intermediate_size
    each = number_bytes(config.train.frozen_precision) * numbers
    return stage.micro_batch_size * stage.seq_length * each
