"""From a recipe to its plan: the stages that each method makes.

`mslt`: Yang et al. 2020, "Progressively Stacking 2.0: A Multi-stage Layerwise Training Method for
BERT Training Speedup", section 3: k stages of N/k new layers each, the layers below frozen, then
a joint stage in which everything trains. `stacking`: Gong et al. 2019, "Efficient Training of
BERT by Progressively Stacking", section 3: depth N/4, N/2, N, everything trains, 50k, 70k and
280k of 400k steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mslt_ds.config.sections import LongSequenceConfig, PlanConfig, RunConfig
from mslt_ds.errors import RecipeError
from mslt_ds.model.families import FAMILIES
from mslt_ds.plan.stages import Plan, Stage

STACKING_SHARES = (0.125, 0.175, 0.7)

# These operators place new layers among or below the old ones' copies: the layers of the
# shallower model don't stay what they were trained to be, so all have to go on training.
WHOLE_MODEL_OPERATORS = ("copy_all", "interpolate")


@dataclass(frozen=True)
class _Draft:
    """A stage before its place in the run is known."""

    depth: int
    trainable_layers: int
    steps: int
    seq_length: int
    micro_batch_size: int
    seq_length_key: str  # the recipe's key that gave the length
    init: str | None = None
    learning_rate_factor: float = 1.0
    warmup_steps: int = 0
    continues: bool = False


def build_plan(config: RunConfig) -> Plan:
    """The plan that a recipe asks for. RecipeError, one line for each problem, if it has none."""
    model = config.model
    if model.num_hidden_layers % model.num_blocks:
        raise RecipeError(
            f"{_block_key(config)}: {model.num_blocks} does not divide "
            f"model.num_hidden_layers {model.num_hidden_layers}; "
            f"choose {_choices(_divisors(model.num_hidden_layers))}"
        )
    problems: list[str] = []
    drafts = _METHODS[config.plan.method](config, problems)
    if not problems and config.plan.long_sequence is not None:
        drafts = _split_long(drafts, config.plan.long_sequence, config, problems)
    if not problems:
        problems += _length_problems(drafts, config)
    if problems:
        raise RecipeError("\n".join(problems))
    return _place(drafts, "pretrained" if config.plan.init_from else "fresh")


def _place(drafts: Sequence[_Draft], first_init: str) -> Plan:
    stages: list[Stage] = []
    steps_at_length: dict[int, int] = {}
    start_step = 0
    for index, draft in enumerate(drafts, start=1):
        stages.append(
            Stage(
                index=index,
                depth=draft.depth,
                trainable_layers=draft.trainable_layers,
                steps=draft.steps,
                start_step=start_step,
                data_start_step=steps_at_length.get(draft.seq_length, 0),
                seq_length=draft.seq_length,
                micro_batch_size=draft.micro_batch_size,
                init=_init(draft, drafts[index - 2]) if index > 1 else first_init,
                learning_rate_factor=draft.learning_rate_factor,
                warmup_steps=draft.warmup_steps,
                continues=draft.continues,
            )
        )
        start_step += draft.steps
        steps_at_length[draft.seq_length] = stages[-1].data_start_step + draft.steps
    return Plan(tuple(stages))


def _init(draft: _Draft, before: _Draft) -> str:
    return "keep" if draft.depth == before.depth else draft.init or "copy_top"


# ---- methods: a recipe in, drafts out, problems appended -----------------------------------


def _draft(config: RunConfig, depth: int, trainable_layers: int, steps: int) -> _Draft:
    default = "copy_all" if config.plan.method == "stacking" else "copy_top"
    return _Draft(
        depth=depth,
        trainable_layers=trainable_layers,
        steps=steps,
        seq_length=config.data.seq_length,
        micro_batch_size=config.train.micro_batch_size,
        seq_length_key="data.seq_length",
        init=config.plan.init or default,
    )


def _block_key(config: RunConfig) -> str:
    """The key that says how many blocks there are to make stages of."""
    return f"model.{FAMILIES[config.model.family].block_key}"


def _more_groups(config: RunConfig, num_stages: int) -> str:
    """The numbers of groups that `num_stages` stages would go with; "" where nothing is shared."""
    key = _block_key(config)
    if key == "model.num_hidden_layers":
        return ""
    groups = [g for g in _divisors(config.model.num_hidden_layers) if g % num_stages == 0]
    return f", or {key} {_choices(groups)}" if groups else ""


def _mslt(config: RunConfig, problems: list[str]) -> list[_Draft]:
    plan, layers = config.plan, config.model.num_hidden_layers
    blocks = config.model.num_blocks
    num_stages = plan.num_stages
    if num_stages is None:
        problems.append(f"plan.num_stages: missing; choose {_choices(_divisors(blocks))}")
    elif blocks % num_stages:
        problems.append(
            f"plan.num_stages: {num_stages} does not divide {_block_key(config)} {blocks}; "
            f"choose {_choices(_divisors(blocks))}{_more_groups(config, num_stages)}"
        )
    if plan.init in WHOLE_MODEL_OPERATORS and num_stages != 1:
        problems.append(
            f"plan.init: {plan.init} needs every layer to train, and plan.method mslt freezes the "
            "lower ones; choose copy_top or random"
        )
    budget = _budget(plan, problems)
    if budget is None or num_stages is None or problems:
        return []
    staged, joint = budget
    if staged < num_stages:
        problems.append(
            f"plan.total_steps: {plan.total_steps} leaves {staged} steps for plan.num_stages "
            f"{num_stages} stages before the joint stage's {joint}; each needs one at least"
        )
        return []
    added = layers // num_stages
    ends = [round(staged * s / num_stages) for s in range(num_stages + 1)]
    drafts = [
        _draft(config, added * s, added, ends[s] - ends[s - 1]) for s in range(1, num_stages + 1)
    ]
    if joint:
        drafts.append(_draft(config, layers, layers, joint))
    return drafts


def _stacking(config: RunConfig, problems: list[str]) -> list[_Draft]:
    """Depths double up to N. `stage_shares` decides their number.

    In a twin (`--set plan.method=stacking` on an mslt recipe), num_stages x steps_per_stage + the
    joint steps are the steps to spend, and nothing more; beside total_steps, where nothing needs
    num_stages to know the steps, it has to be the number of stages.
    """
    plan, layers = config.plan, config.model.num_hidden_layers
    shares = plan.stage_shares or STACKING_SHARES
    if abs(sum(shares) - 1) > 1e-6:
        problems.append(
            f"plan.stage_shares: {list(shares)} sum to {sum(shares):g}; they have to sum to 1"
        )
    if plan.total_steps is not None and plan.num_stages not in (None, len(shares)):
        problems.append(
            f"plan.num_stages: {plan.num_stages}, but plan.method stacking has {len(shares)} "
            f"shares of the steps {list(shares)}; leave it out, or give plan.stage_shares "
            f"with {plan.num_stages} shares"
        )
    unit = 2 ** (len(shares) - 1)
    blocks = config.model.num_blocks
    if blocks % unit:
        problems.append(
            f"{_block_key(config)}: {blocks} is not a multiple of {unit}; plan.method stacking "
            f"with {len(shares)} stages doubles the depth {len(shares) - 1} times"
        )
    budget = _budget(plan, problems)
    if budget is None or problems:
        return []
    total = sum(budget)
    ends = [round(total * sum(shares[:s])) for s in range(len(shares))] + [total]
    depths = [layers // unit * 2**s for s in range(len(shares))]
    drafts = [
        _draft(config, depth, depth, end - start)
        for depth, start, end in zip(depths, ends, ends[1:], strict=False)
    ]
    if any(draft.steps < 1 for draft in drafts):
        problems.append(
            f"plan.stage_shares: {list(shares)} of {total} steps leave a stage without a step"
        )
    return drafts


def _full(config: RunConfig, problems: list[str]) -> list[_Draft]:
    budget = _budget(config.plan, problems)
    layers = config.model.num_hidden_layers
    return [] if budget is None else [_draft(config, layers, layers, sum(budget))]


def _custom(config: RunConfig, problems: list[str]) -> list[_Draft]:
    plan, layers = config.plan, config.model.num_hidden_layers
    if not plan.stages:
        problems.append(
            "plan.stages: missing; plan.method custom needs a list of stages, each "
            "with depth and steps"
        )
        return []
    for key in ("steps_per_stage", "joint_steps", "joint_share"):
        if (value := getattr(plan, key)) is not None:
            problems.append(
                f"plan.{key}: {value}, but plan.method custom reads the steps from "
                "plan.stages; leave it out"
            )
    steps = sum(stage.steps for stage in plan.stages)
    if plan.num_stages not in (None, len(plan.stages)):
        problems.append(
            f"plan.num_stages: {plan.num_stages}, but plan.stages holds "
            f"{len(plan.stages)}; leave it out"
        )
    if plan.total_steps not in (None, steps):
        problems.append(
            f"plan.total_steps: {plan.total_steps}, but the steps of plan.stages sum "
            f"to {steps}; leave it out"
        )
    each = config.model.layers_per_block
    drafts: list[_Draft] = []
    for i, stage in enumerate(plan.stages):
        key = f"plan.stages.{i}"
        before = plan.stages[i - 1].depth if i else None
        trainable = stage.depth if stage.trainable_layers is None else stage.trainable_layers
        grows = before is not None and stage.depth > before
        init = stage.init or plan.init or "copy_top"
        if stage.depth > layers:
            problems.append(f"{key}.depth: {stage.depth} is above model.num_hidden_layers {layers}")
        if trainable > stage.depth:
            problems.append(
                f"{key}.trainable_layers: {trainable} is above the stage's depth {stage.depth}"
            )
        problems += [
            f"{key}.{name}: {value} cuts a group of layers that share their parameters; "
            f"choose a multiple of {each} (model.num_hidden_layers {layers} in "
            f"{_block_key(config)} {config.model.num_blocks})"
            for name, value in (("depth", stage.depth), ("trainable_layers", trainable))
            if value % each
        ]
        if before is not None and stage.depth < before:
            problems.append(
                f"{key}.depth: {stage.depth} is below the {before} of the stage "
                "before; a model only grows"
            )
        if stage.init is not None and not grows:
            problems.append(f"{key}.init: {stage.init}, but no layer is added here; leave it out")
        if grows and init in WHOLE_MODEL_OPERATORS and trainable < stage.depth:
            problems.append(
                f"{key}.init: {init} needs every layer to train, and this stage trains {trainable} "
                f"of {stage.depth}; choose copy_top or random"
            )
        drafts.append(
            replace(
                _draft(config, stage.depth, trainable, stage.steps),
                seq_length=stage.seq_length or config.data.seq_length,
                micro_batch_size=stage.micro_batch_size or config.train.micro_batch_size,
                seq_length_key=f"{key}.seq_length" if stage.seq_length else "data.seq_length",
                init=init,
                learning_rate_factor=stage.learning_rate_factor,
                warmup_steps=stage.warmup_steps,
            )
        )
    if plan.stages[-1].depth < layers:
        problems.append(
            f"plan.stages.{len(drafts) - 1}.depth: {plan.stages[-1].depth}, but the "
            f"last stage has to reach model.num_hidden_layers {layers}"
        )
    return drafts


_METHODS = {"mslt": _mslt, "stacking": _stacking, "full": _full, "custom": _custom}


# ---- steps and sequence lengths ------------------------------------------------------------


def _budget(plan: PlanConfig, problems: list[str]) -> tuple[int, int] | None:
    """(steps before the joint stage, steps of the joint stage), or None with a problem added."""
    before = len(problems)
    if plan.total_steps is None and plan.steps_per_stage is None:
        problems.append(
            "plan.total_steps: missing; give plan.total_steps, or plan.num_stages and "
            "plan.steps_per_stage"
        )
    if plan.total_steps is not None and plan.steps_per_stage is not None:
        problems.append(
            f"plan.total_steps: {plan.total_steps} beside plan.steps_per_stage "
            f"{plan.steps_per_stage}; give one and leave the other out (or null)"
        )
    if plan.joint_steps is not None and plan.joint_share is not None:
        problems.append(
            f"plan.joint_steps: {plan.joint_steps} beside plan.joint_share {plan.joint_share}; "
            "give one and leave the other out (or null)"
        )
    if len(problems) > before:
        return None
    share = plan.joint_share or 0.0
    if plan.total_steps is not None:
        joint = round(plan.total_steps * share) if plan.joint_steps is None else plan.joint_steps
        if joint > plan.total_steps:
            problems.append(
                f"plan.joint_steps: {joint} is above plan.total_steps {plan.total_steps}"
            )
            return None
        return plan.total_steps - joint, joint
    staged = (plan.num_stages or 1) * (plan.steps_per_stage or 0)
    joint = round(staged * share / (1 - share)) if plan.joint_steps is None else plan.joint_steps
    return staged, joint


def _split_long(
    drafts: list[_Draft], long: LongSequenceConfig, config: RunConfig, problems: list[str]
) -> list[_Draft]:
    """The last `share` of all steps at the long length; a stage it cuts becomes two."""
    total = sum(draft.steps for draft in drafts)
    remaining = round(total * long.share)
    if not remaining:
        problems.append(
            f"plan.long_sequence.share: {long.share} of {total} steps is less than one step"
        )
    micro_batch_size = long.micro_batch_size or config.train.micro_batch_size
    # From the last stage backwards, until the share is used up.
    result: list[_Draft] = []
    whole_model_steps = 0
    for number, draft in reversed(list(enumerate(drafts, start=1))):
        steps = min(remaining, draft.steps)
        if steps and draft.trainable_layers < draft.depth and not config.plan.init_from:
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
                    micro_batch_size=micro_batch_size,
                    seq_length_key="plan.long_sequence.seq_length",
                    continues=cut > 0,
                ),
            )
        if cut:
            result.insert(0, replace(draft, steps=cut))
        remaining -= steps
    return result


def _length_problems(drafts: Sequence[_Draft], config: RunConfig) -> list[str]:
    """Lengths that the model has no position for, or whose positions would never train."""
    problems: list[str] = []
    positions = config.model.max_position_embeddings
    # A model that exists has been trained, at whatever lengths: that's not for the plan to say.
    trained = positions if config.plan.init_from else 0
    for number, draft in enumerate(drafts, start=1):
        key, length = draft.seq_length_key, draft.seq_length
        if draft.trainable_layers == draft.depth:
            trained = max(trained, length)
        if length > positions:
            problems.append(f"{key}: {length} is above model.max_position_embeddings {positions}")
        elif length > trained:
            problems.append(
                f"{key}: {length}, but stage {number} keeps the embeddings frozen and no stage "
                f"before it trains positions {trained} to {length - 1}"
            )
    return list(dict.fromkeys(problems))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _choices(values: Sequence[int]) -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
