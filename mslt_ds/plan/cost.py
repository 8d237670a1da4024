"""What a plan costs: parameters, gradient elements handed to the reduction, tokens, operations.

This is exact arithmetic on the recipe, with the counts of the model's family; no model is built. The
run's own plan.json and `mslt-ds plan` both come from here, and a test compares them with the real
modules. A tied tensor counts once, as an embedding.
"""

from __future__ import annotations

from typing import Any

from mslt_ds.config.sections import RunConfig
from mslt_ds.model.families import FAMILIES
from mslt_ds.plan.flops import instance_flops
from mslt_ds.plan.schedule import learning_rate
from mslt_ds.plan.stages import Plan, Stage

ASSUMED_VOCAB_SIZE = 30_522  # BERT's; for a plan made before there is a tokenizer


def total_parameters(config: RunConfig, stage: Stage, vocab_size: int) -> int:
    """Elements of the whole model at the stage's depth."""
    embeddings = FAMILIES[config.model.family].embedding_parameters(config.model, vocab_size)
    return embeddings + _layers_and_heads(config, range(stage.depth), vocab_size)


def trainable_parameters(config: RunConfig, stage: Stage, vocab_size: int) -> int:
    """Elements of the stage's trainable suffix."""
    trained = _layers_and_heads(config, stage.trained, vocab_size)
    if not stage.train_embeddings:
        return trained
    return trained + FAMILIES[config.model.family].embedding_parameters(config.model, vocab_size)


def _layers_and_heads(config: RunConfig, layers: range, vocab_size: int) -> int:
    """Elements of these layers and of the heads."""
    family, model = FAMILIES[config.model.family], config.model
    each = model.layers_per_block
    blocks = range(layers.start // each, layers.stop // each)
    heads = family.head_parameters(model, vocab_size, config.data.objective.heads)
    return sum(family.block_parameters(model, block) for block in blocks) + heads


def elements_reduced_per_step(
    config: RunConfig, stage: Stage, vocab_size: int, world_size: int, zero_stage: int
) -> int:
    """Gradient elements that each rank hands to the reduction in one step.

    ZeRO 0 and 1 reduce the accumulated gradient once. ZeRO 2 keeps only a rank's own part of it and
    reduces at every micro-step.
    """
    reductions = stage.gradient_accumulation_steps(world_size) if zero_stage == 2 else 1
    return trainable_parameters(config, stage, vocab_size) * reductions


def describe_plan(
    config: RunConfig, plan: Plan, *, vocab_size: int, world_size: int, zero_stage: int
) -> dict[str, Any]:
    """The plan with its costs, as in plan.json and `mslt-ds plan --json`."""
    stages = [
        describe_stage(config, plan, stage, vocab_size, world_size, zero_stage)
        for stage in plan.stages
    ]
    return {
        "name": config.name,
        "method": config.plan.method,
        "total_steps": plan.total_steps,
        "total_tokens": sum(stage["tokens"] for stage in stages),
        "vocab_size": vocab_size,
        "world_size": world_size,
        "zero_stage": zero_stage,
        "stages": stages,
    }


def describe_stage(
    config: RunConfig,
    plan: Plan,
    stage: Stage,
    vocab_size: int,
    world_size: int,
    zero_stage: int,
) -> dict[str, Any]:
    """One stage's entry: parameters and gradients in elements, lengths in tokens, floating-point
    operations of all ranks, as if there were no padding."""
    trainable = trainable_parameters(config, stage, vocab_size)
    total = total_parameters(config, stage, vocab_size)
    return {
        "stage": stage.index,
        "depth": stage.depth,
        "trainable_layers": stage.trainable_layers,
        "frozen_layers": stage.frozen_layers,
        "freeze": stage.freeze,
        "train_embeddings": stage.train_embeddings,
        "init": stage.init,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "trainable_share": trainable / total,
        "elements_reduced_per_step": elements_reduced_per_step(
            config, stage, vocab_size, world_size, zero_stage
        ),
        "steps": stage.steps,
        "start_step": stage.start_step,
        "end_step": stage.end_step,
        "seq_length": stage.seq_length,
        "global_batch_size": stage.global_batch_size,
        "micro_batch_size": stage.micro_batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation_steps(world_size),
        "first_instance": stage.first_instance,
        "masked_lm_prob": stage.masked_lm_prob,
        "tokens": stage.steps * stage.tokens_per_step,
        "flops_per_step": instance_flops(config, stage, vocab_size).total * stage.global_batch_size,
        "learning_rate_from": learning_rate(config, plan, stage.start_step),
        "learning_rate_to": learning_rate(config, plan, stage.end_step - 1),
        "learning_rate_factor": stage.learning_rate_factor,
        "warmup_steps": stage.warmup_steps,
    }
