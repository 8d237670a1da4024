"""Sequence lengths over a plan: `plan.long_sequence`, and positions that have to be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mslt_ds.config.sections import LongSequenceConfig, RunConfig
from mslt_ds.model.families import FAMILIES
from mslt_ds.plan.stages import MICRO_BATCH_SIZE_KEY, Draft


def split_long(
    drafts: list[Draft], long: LongSequenceConfig, config: RunConfig, problems: list[str]
) -> list[Draft]:
    """The drafts with the last `share` of all steps at the long length. A stage that this cuts becomes
    two, which share its values."""
    total = sum(draft.steps for draft in drafts)
    remaining = round(total * long.share)
    if not remaining:
        problems.append(
            f"plan.long_sequence.share: {long.share} of {total} steps is less than one step"
        )
    sizes = {
        "micro_batch_size": config.train.micro_batch_size,
        "micro_batch_size_key": MICRO_BATCH_SIZE_KEY,
    }
    for key in ("micro_batch_size", "global_batch_size"):
        if (size := getattr(long, key)) is not None:
            sizes |= {key: size, f"{key}_key": f"plan.long_sequence.{key}"}
    may_be_frozen = _has_trained_positions(config)
    # From the last stage backwards, until the share is used up.
    result: list[Draft] = []
    whole_model_steps = 0
    for number, draft in reversed(list(enumerate(drafts, start=1))):
        steps = min(remaining, draft.steps)
        if steps and not draft.train_embeddings and not may_be_frozen:
            problems.append(
                f"plan.long_sequence.share: {long.share} ({round(total * long.share)} of {total} "
                f"steps) reaches into stage {number}, which keeps the embeddings frozen: positions "
                f"from {config.data.seq_length} on would never train; "
                f"at most {whole_model_steps / total:g} with this plan"
            )
            break
        whole_model_steps += draft.steps
        cut = draft.steps - steps
        if steps:
            result.insert(
                0,
                replace(
                    draft,
                    steps=steps,
                    seq_length=long.seq_length,
                    **sizes,
                    seq_length_key="plan.long_sequence.seq_length",
                    continues=cut > 0,
                ),
            )
        if cut:
            result.insert(0, replace(draft, steps=cut))
        remaining -= steps
    return result


def length_problems(drafts: Sequence[Draft], config: RunConfig) -> list[str]:
    """Problems of lengths for which the model has no positions or whose positions would never train."""
    problems: list[str] = []
    model = config.model
    # Of the lowest id that padding can have: the tokenizer isn't known yet.
    positions = FAMILIES[model.family].longest_sequence(model.max_position_embeddings, 0)
    trained = positions if _has_trained_positions(config) else 0
    for number, draft in enumerate(drafts, start=1):
        key, length = draft.seq_length_key, draft.seq_length
        if draft.train_embeddings:
            trained = max(trained, length)
        if length > positions:
            problems.append(
                f"{key}: {length} is above model.max_position_embeddings "
                f"{model.max_position_embeddings}, which are enough for {positions} tokens"
            )
        elif length > trained:
            problems.append(
                f"{key}: {length}, but stage {number} keeps the embeddings frozen and no stage "
                f"before it trains positions {trained} to {length - 1}"
            )
    return list(dict.fromkeys(problems))


def _has_trained_positions(config: RunConfig) -> bool:
    """Those of a model that exists are taken to be trained; those that are computed need no training."""
    return config.plan.init_from is not None or FAMILIES[config.model.family].position_table is None
