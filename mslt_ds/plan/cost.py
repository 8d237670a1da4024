"""What a plan costs: parameters, gradient elements handed to the reduction, tokens.

The numbers are exact and computed from the recipe, without building a model; a test compares them
with the real modules. A run's plan.json and `mslt-ds plan` both come from here. A tied tensor counts
once, as an embedding.
"""

from __future__ import annotations

from typing import Any

from mslt_ds.config.sections import ModelConfig, RunConfig
from mslt_ds.plan.schedule import learning_rate
from mslt_ds.plan.stages import Plan, Stage

ASSUMED_VOCAB_SIZE = 30_522  # BERT's; for a plan made before there is a tokenizer


def block_parameters(model: ModelConfig) -> int:
    """Elements of one transformer layer or, in ALBERT, of a group of layers that share them."""
    hidden, intermediate = model.hidden_size, model.intermediate_size
    attention = 4 * _dense(hidden, hidden) + _layer_norm(hidden)
    feed_forward = _dense(hidden, intermediate) + _dense(intermediate, hidden) + _layer_norm(hidden)
    return attention + feed_forward


def embedding_parameters(model: ModelConfig, vocab_size: int) -> int:
    """Elements of the word, position and segment embeddings and of ALBERT's mapping from their size
    to the hidden size. The MLM decoder is tied to the word embeddings."""
    rows = vocab_size + model.max_position_embeddings + model.type_vocab_size
    size = model.embedding_size or model.hidden_size
    mapping = 0 if model.embedding_size is None else _dense(size, model.hidden_size)
    return rows * size + _layer_norm(size) + mapping


def head_parameters(config: RunConfig, vocab_size: int) -> int:
    """Elements of the heads, which train in every stage: the MLM transform and the decoder bias, and,
    where instances are sentence pairs, the pooler and the pair's head."""
    hidden = config.model.hidden_size
    size = config.model.embedding_size or hidden
    masked_lm = _dense(hidden, size) + _layer_norm(size) + vocab_size
    if config.data.sentence_objective is None:
        return masked_lm
    return masked_lm + _dense(hidden, hidden) + _dense(hidden, 2)


def total_parameters(config: RunConfig, stage: Stage, vocab_size: int) -> int:
    """Elements of the whole model at the stage's depth."""
    return (
        embedding_parameters(config.model, vocab_size)
        + stage.depth // config.model.layers_per_block * block_parameters(config.model)
        + head_parameters(config, vocab_size)
    )


def trainable_parameters(config: RunConfig, stage: Stage, vocab_size: int) -> int:
    """Elements of the stage's trainable suffix."""
    embeddings = embedding_parameters(config.model, vocab_size) if stage.train_embeddings else 0
    blocks = stage.trainable_layers // config.model.layers_per_block
    layers = blocks * block_parameters(config.model)
    return embeddings + layers + head_parameters(config, vocab_size)


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
    """One stage's entry: parameters and gradients in elements, lengths in tokens."""
    trainable = trainable_parameters(config, stage, vocab_size)
    total = total_parameters(config, stage, vocab_size)
    return {
        "stage": stage.index,
        "depth": stage.depth,
        "trainable_layers": stage.trainable_layers,
        "frozen_layers": stage.frozen_layers,
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
        "tokens": stage.steps * stage.global_batch_size * stage.seq_length,
        "learning_rate_from": learning_rate(config, plan, stage.start_step),
        "learning_rate_to": learning_rate(config, plan, stage.end_step - 1),
        "learning_rate_factor": stage.learning_rate_factor,
        "warmup_steps": stage.warmup_steps,
    }


def _dense(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _layer_norm(size: int) -> int:
    return 2 * size
