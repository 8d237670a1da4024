"""The stages that each method makes of a recipe.

`mslt`: Yang et al. 2020, "Progressively Stacking 2.0: A Multi-stage Layerwise Training Method for
BERT Training Speedup", section 3: k stages of N/k new layers each, the layers below frozen, then
a joint stage in which everything trains. `stacking`: Gong et al. 2019, "Efficient Training of
BERT by Progressively Stacking", section 3: depth N/4, N/2, N, everything trains, 50k, 70k and
280k of 400k steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from mslt_ds.config.sections import PlanConfig, RunConfig
from mslt_ds.errors import RecipeError
from mslt_ds.model.families import FAMILIES
from mslt_ds.plan.by_stage import with_values_by_stage
from mslt_ds.plan.lengths import length_problems, split_long
from mslt_ds.plan.stages import GLOBAL_BATCH_SIZE_KEY, MICRO_BATCH_SIZE_KEY, Draft, Plan, Stage

STACKING_SHARES = (0.125, 0.175, 0.7)

# These operators place new layers among or below copies of the old ones, so that the old layers get
# inputs for which they were not trained: every layer has to go on training.
WHOLE_MODEL_OPERATORS = ("copy_all", "interpolate", "copy_middle")


def build_plan(config: RunConfig) -> Plan:
    """The plan of a recipe. RecipeError, with a line for each problem, if it has none."""
    model = config.model
    if model.num_hidden_layers % model.num_blocks:
        raise RecipeError(
            f"{_block_key(config)}: {model.num_blocks} does not divide "
            f"model.num_hidden_layers {model.num_hidden_layers}; "
            f"choose {_choices(_divisors(model.num_hidden_layers))}"
        )
    problems: list[str] = []
    drafts = _METHODS[config.plan.method](config, problems)
    if not problems and config.plan.method != "custom":
        drafts = with_values_by_stage(drafts, config, problems)
    if not problems and config.plan.long_sequence is not None:
        drafts = split_long(drafts, config.plan.long_sequence, config, problems)
    if not problems:
        problems += length_problems(drafts, config)
    if not problems:
        drafts = _with_frozen_parts(drafts, config, problems)
    if problems:
        raise RecipeError("\n".join(problems))
    return _place(drafts, "pretrained" if config.plan.init_from else "fresh")


def _with_frozen_parts(drafts: list[Draft], config: RunConfig, problems: list[str]) -> list[Draft]:
    """The drafts by `plan.freeze_embeddings` and `plan.new_vocabulary`; `plan.freeze` is read by `_mslt` and
    `_custom`."""
    plan = config.plan
    for key in ("freeze_embeddings", "new_vocabulary"):
        if getattr(plan, key) and plan.init_from is None:
            problems.append(
                f"plan.{key}: given without plan.init_from, so the embeddings are fresh and have to train "
                "with all; leave it out"
            )
    if plan.freeze == "top" and plan.method != "custom":
        problems.append(
            f"plan.freeze: top, but plan.method {plan.method} trains the layers on top in every stage; choose "
            "plan.method custom, whose stages say how many of the lower layers train"
        )
    if plan.freeze == "none" and plan.method == "custom":
        problems.append(
            "plan.freeze: none, but plan.method custom reads trainable_layers of each of plan.stages; "
            "leave it out"
        )
    if plan.freeze_embeddings:
        drafts = [replace(draft, train_embeddings=False) for draft in drafts]
    if plan.new_vocabulary is not None and (steps := plan.new_vocabulary.steps):
        first = replace(drafts[0], steps=steps, trainable_layers=0, train_embeddings=True)
        drafts = [first, *drafts]
    return drafts


def _place(drafts: Sequence[Draft], first_init: str) -> Plan:
    stages: list[Stage] = []
    end_instances: dict[int, int] = {}  # seq_length -> instances that the stages so far took
    init = first_init
    for draft in drafts:
        if stages:
            init = "keep" if draft.depth == stages[-1].depth else draft.init
        stage = Stage(
            **vars(replace(draft, init=init)),
            index=len(stages) + 1,
            start_step=stages[-1].end_step if stages else 0,
            first_instance=end_instances.get(draft.seq_length, 0),
        )
        end_instances[draft.seq_length] = stage.end_instance
        stages.append(stage)
    return Plan(tuple(stages))


# ---- methods: each takes a recipe, returns drafts and appends problems ---------------------


def _draft(config: RunConfig, depth: int, trainable_layers: int, steps: int) -> Draft:
    default = "copy_all" if config.plan.method == "stacking" else "copy_top"
    return Draft(
        depth=depth,
        trainable_layers=trainable_layers,
        train_embeddings=trainable_layers == depth,
        steps=steps,
        seq_length=config.data.seq_length,
        micro_batch_size=config.train.micro_batch_size,
        global_batch_size=config.train.global_batch_size,
        masked_lm_prob=config.data.masked_lm_prob,
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


def _mslt(config: RunConfig, problems: list[str]) -> list[Draft]:
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
    freezes = plan.freeze != "none"
    if plan.init in WHOLE_MODEL_OPERATORS and num_stages != 1 and freezes:
        problems.append(
            f"plan.init: {plan.init} needs every layer to train, and plan.method mslt freezes the "
            "lower ones; choose copy_top or random, or plan.freeze none"
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
    shares = plan.stage_shares or [1 / num_stages] * num_stages
    if len(shares) != num_stages:
        problems.append(
            f"plan.stage_shares: {len(shares)} shares for plan.num_stages {num_stages}; give one for "
            "each stage before the joint one"
        )
    added = layers // num_stages
    drafts = [
        _draft(config, added * s, added if freezes else added * s, steps)
        for s, steps in enumerate(_split(staged, shares, problems), start=1)
    ]
    if joint:
        drafts.append(_draft(config, layers, layers, joint))
    return drafts


def _stacking(config: RunConfig, problems: list[str]) -> list[Draft]:
    """Depths double up to N; `stage_shares` has a share of the steps for each.

    In a twin (`--set plan.method=stacking` on an mslt recipe), num_stages x steps_per_stage + the
    joint steps only gives the number of steps. Beside total_steps, where the number of steps needs
    no num_stages, num_stages has to be the number of stages.
    """
    plan, layers = config.plan, config.model.num_hidden_layers
    shares = plan.stage_shares or STACKING_SHARES
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
    depths = [layers // unit * 2**s for s in range(len(shares))]
    return [
        _draft(config, depth, depth, steps)
        for depth, steps in zip(depths, _split(sum(budget), shares, problems), strict=True)
    ]


def _full(config: RunConfig, problems: list[str]) -> list[Draft]:
    budget = _budget(config.plan, problems)
    layers = config.model.num_hidden_layers
    return [] if budget is None else [_draft(config, layers, layers, sum(budget))]


def _custom(config: RunConfig, problems: list[str]) -> list[Draft]:
    plan, layers = config.plan, config.model.num_hidden_layers
    if not plan.stages:
        problems.append(
            "plan.stages: missing; plan.method custom needs a list of stages, each "
            "with depth and steps"
        )
        return []
    for key in ("global_batch_size", "masked_lm_prob"):
        if getattr(plan, key) is not None:
            problems.append(
                f"plan.{key}: given, but plan.method custom reads {key} of each of plan.stages; "
                "leave it out"
            )
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
    drafts: list[Draft] = []
    for i, stage in enumerate(plan.stages):
        key = f"plan.stages.{i}"
        before = plan.stages[i - 1].depth if i else None
        trainable = stage.depth if stage.trainable_layers is None else stage.trainable_layers
        grows = before is not None and stage.depth > before
        init = stage.init or plan.init or "copy_top"
        if stage.depth > layers:
            problems.append(f"{key}.depth: {stage.depth} is above model.num_hidden_layers {layers}")
        if trainable == 0 and not stage.train_embeddings:
            problems.append(
                f"{key}.trainable_layers: 0, so nothing but heads would train; choose 1 or more, or "
                "train_embeddings true"
            )
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
        if grows and plan.freeze == "top" and trainable < stage.depth:
            problems.append(
                f"{key}.trainable_layers: {trainable} of {stage.depth}, so that plan.freeze top would freeze "
                "the layers added here; train all in the stage that adds layers"
            )
        draft = _draft(config, stage.depth, trainable, stage.steps)
        if plan.freeze == "top":
            draft = replace(draft, freeze="top", train_embeddings=trainable > 0)
        if stage.train_embeddings is not None:
            draft = replace(draft, train_embeddings=stage.train_embeddings)
        drafts.append(
            replace(
                draft,
                seq_length=stage.seq_length or config.data.seq_length,
                micro_batch_size=stage.micro_batch_size or config.train.micro_batch_size,
                global_batch_size=stage.global_batch_size or config.train.global_batch_size,
                masked_lm_prob=stage.masked_lm_prob or config.data.masked_lm_prob,
                init=init,
                learning_rate_factor=stage.learning_rate_factor,
                warmup_steps=stage.warmup_steps,
                seq_length_key=f"{key}.seq_length" if stage.seq_length else "data.seq_length",
                global_batch_size_key=f"{key}.global_batch_size"
                if stage.global_batch_size
                else GLOBAL_BATCH_SIZE_KEY,
                micro_batch_size_key=f"{key}.micro_batch_size"
                if stage.micro_batch_size
                else MICRO_BATCH_SIZE_KEY,
            )
        )
    if plan.stages[-1].depth < layers:
        problems.append(
            f"plan.stages.{len(drafts) - 1}.depth: {plan.stages[-1].depth}, but the "
            f"last stage has to reach model.num_hidden_layers {layers}"
        )
    return drafts


_METHODS = {"mslt": _mslt, "stacking": _stacking, "full": _full, "custom": _custom}


# ---- steps ---------------------------------------------------------------------------------


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


def _split(steps: int, shares: Sequence[float], problems: list[str]) -> list[int]:
    """`steps` by stage, with a problem added where the shares don't sum to 1 or one buys no step."""
    if abs(sum(shares) - 1) > 1e-6:
        problems.append(
            f"plan.stage_shares: {list(shares)} sum to {sum(shares):g}; they have to sum to 1"
        )
    ends = [round(steps * sum(shares[:s])) for s in range(len(shares))] + [steps]
    by_stage = [end - start for start, end in itertools.pairwise(ends)]
    if min(by_stage) < 1:
        problems.append(
            f"plan.stage_shares: {list(shares)} of {steps} steps leave a stage without a step"
        )
    return by_stage


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _choices(values: Sequence[int]) -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
