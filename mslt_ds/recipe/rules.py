"""What a recipe's sections demand of each other, of the ranks, the device and the disk.

Rules return their problems as lines, `key: value found; what is allowed`, so that a user sees all of
them at once. Rules for a single key are types in config/sections.py, rules for the stages are in
plan/methods.py, and rules for the DeepSpeed JSON in deepspeed_json.py.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

from mslt_ds.config.sections import ModelConfig, RunConfig, Section
from mslt_ds.data.store import MANIFEST
from mslt_ds.errors import RecipeError
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.growth import sources
from mslt_ds.model.objective import OBJECTIVES
from mslt_ds.plan.stages import Plan, Stage, held_out
from mslt_ds.recipe import deepspeed_json


def recipe_problems(config: RunConfig) -> list[str]:
    """Problems that can be found without a plan."""
    model, plan, data, train = config.model, config.plan, config.data, config.train
    problems: list[str] = []
    if model.hidden_size % model.num_attention_heads:
        problems.append(
            f"model.hidden_size: {model.hidden_size} is not a multiple of "
            f"model.num_attention_heads {model.num_attention_heads}"
        )
    problems += _family_problems(config)
    if plan.stages is not None and plan.method != "custom":
        problems.append(
            f"plan.stages: given, but plan.method {plan.method} makes its own stages; "
            "leave it out or choose plan.method custom"
        )
    if plan.stage_shares is not None and plan.method == "custom":
        problems.append(
            "plan.stage_shares: given, but plan.method custom reads the steps from plan.stages; "
            "leave it out"
        )
    long = plan.long_sequence
    if long is not None and long.seq_length <= data.seq_length:
        problems.append(
            f"plan.long_sequence.seq_length: {long.seq_length}; it has to be above "
            f"data.seq_length {data.seq_length}"
        )
    given = data.max_predictions_per_seq
    if given is not None and given > data.seq_length:
        problems.append(
            f"data.max_predictions_per_seq: {given} is above data.seq_length {data.seq_length}"
        )
    problems += [
        f"{place}.{key}: {value}, but data.input_format {data.input_format} doesn't read it; leave it out"
        for place, section in _masking_sections(config)
        for key, field in type(section).model_fields.items()
        if key in data.objective.unread and (value := getattr(section, key)) != field.default
    ]
    if train.prefix_graph == "on" and train.frozen_dropout == "on":
        problems.append(
            "train.prefix_graph: on, but train.frozen_dropout on draws new numbers in each pass; "
            "leave one of them out"
        )
    if train.device == "cpu":
        problems += device_problems(config, "cpu")
    schedule = config.schedule
    if schedule.power != 1.0 and schedule.name != "polynomial":
        problems.append(
            f"schedule.power: {schedule.power}, but only schedule.name polynomial "
            f"reads it, not {schedule.name}"
        )
    if schedule.end_factor != 0.0 and schedule.name == "constant":
        problems.append(
            f"schedule.end_factor: {schedule.end_factor}, but schedule.name constant "
            "never decays; leave it out"
        )
    if (schedule.decay_steps is not None) != (schedule.name == "wsd"):
        problems.append(
            "schedule.decay_steps: missing; schedule.name wsd needs the steps of its final decay"
            if schedule.name == "wsd"
            else f"schedule.decay_steps: {schedule.decay_steps}, but only schedule.name wsd reads "
            f"it, not {schedule.name}"
        )
    keep_every, every_steps = config.checkpoint.keep_every, config.checkpoint.every_steps
    if keep_every is not None and keep_every % every_steps:
        problems.append(
            f"checkpoint.keep_every: {keep_every} is not a multiple of checkpoint.every_steps {every_steps}"
        )
    lamb = config.optimizer.lamb
    if config.optimizer.name != "lamb" and lamb != type(lamb)():
        problems.append(
            f"optimizer.lamb: given, but optimizer.name is {config.optimizer.name}; leave it out"
        )
    if not lamb.min_trust_ratio <= lamb.max_trust_ratio:
        problems.append(
            f"optimizer.lamb.min_trust_ratio: {lamb.min_trust_ratio} is above "
            f"optimizer.lamb.max_trust_ratio {lamb.max_trust_ratio}"
        )
    if lamb.max_grad_norm != 1.0 and lamb.gradient_normalization != "clip":
        problems.append(
            f"optimizer.lamb.max_grad_norm: {lamb.max_grad_norm}, but only "
            f"gradient_normalization clip reads it, not {lamb.gradient_normalization}"
        )
    return problems


def _masking_sections(config: RunConfig) -> list[tuple[str, Section]]:
    """The sections with keys that an objective may not read, by their place in a recipe."""
    stages = enumerate(config.plan.stages or ())
    own = [(f"plan.stages.{i}", stage) for i, stage in stages]
    return [("data", config.data), ("plan", config.plan), *own]


def _family_problems(config: RunConfig) -> list[str]:
    """Keys that the model's family doesn't read, and an input format that it has no head for."""
    model, family = config.model, FAMILIES[config.model.family]
    problems: list[str] = []
    for key, field in type(model).model_fields.items():
        value, readers = getattr(model, key), _readers(key)
        if value != field.default and family.name not in readers:
            problems.append(
                f"model.{key}: {value}, but only model.family {' or '.join(readers)} reads it, not "
                f"{family.name}; leave it out"
            )
    if config.data.objective.heads not in family.architectures:
        formats = [name for name, o in OBJECTIVES.items() if o.heads in family.architectures]
        problems.append(
            f"data.input_format: {config.data.input_format}, but model.family {family.name} has no "
            f"head for it; choose {' or '.join(formats)}"
        )
    return problems


def _readers(key: str) -> list[str]:
    """The families that read a key of the `model` section."""
    own = [name for name, family in FAMILIES.items() if key in family.defaults]
    is_common = ModelConfig.model_fields[key].default is not None or not own
    return [n for n, f in FAMILIES.items() if key not in f.unread] if is_common else own


def growth_problem(model: ModelConfig, depth_from: int, depth_to: int, operator: str) -> str | None:
    """Why `operator` can't grow the model from one depth to the other, such as a copy where a layer of
    another kind belongs; None where it can."""
    each = model.layers_per_block
    kinds = FAMILIES[model.family].kinds(model, depth_to // each)
    try:
        sources(depth_from // each, depth_to // each, operator, kinds=kinds)
    except ValueError as error:
        return str(error)
    return None


def _growth_problems(config: RunConfig, plan: Plan) -> list[str]:
    key = "plan.stages" if config.plan.method == "custom" else "plan.init"
    return [
        f"{key}: stage {stage.index}: {problem}"
        for before, stage in pairwise(plan.stages)
        if stage.init != "keep"
        and (problem := growth_problem(config.model, before.depth, stage.depth, stage.init))
    ]


def plan_problems(config: RunConfig, plan: Plan) -> list[str]:
    """Problems of the schedule and the batches with the stages."""
    return [
        *_schedule_problems(config, plan),
        *_growth_problems(config, plan),
        *_prefix_problems(config, plan),
        *_batch_problems(config, plan, world_size=1),
    ]


def plan_warnings(config: RunConfig, plan: Plan) -> list[str]:
    """What a plan may do and may harm."""
    frozen = [
        str(stage.index) for stage in plan.stages if stage.trained.start and stage.trainable_layers
    ]
    if config.plan.init_from is None or plan.stages[0].depth < plan.stages[-1].depth or not frozen:
        return []
    return [
        f"plan.init_from: a model of all {plan.stages[0].depth} layers, whose lower layers are frozen in "
        f"stage {', '.join(frozen)}: recent work finds that this can undo what continued pretraining "
        "gains (docs/continue.md names it, and its limits); plan.method full trains everything"
    ]


def _schedule_problems(config: RunConfig, plan: Plan) -> list[str]:
    schedule = config.schedule
    needed = schedule.warmup_steps + (schedule.decay_steps or 0)
    keys = f"schedule.warmup_steps: {schedule.warmup_steps}"
    if schedule.decay_steps is not None:
        keys += f" and schedule.decay_steps {schedule.decay_steps}"
    # The first stage of each learning-rate segment: with custom plans, each of plan.stages.
    firsts = [stage for stage in plan.stages if not stage.continues]
    steps = {stage.index: _segment_steps(plan, stage) for stage in firsts}
    shortest = min(firsts, key=lambda stage: steps[stage.index]).index
    problems: list[str] = []
    if not schedule.restart and needed > plan.total_steps:
        problems.append(f"{keys}: longer than the training's {plan.total_steps} steps")
    if schedule.restart and needed > steps[shortest]:
        problems.append(
            f"{keys}: longer than the {steps[shortest]} steps of stage {shortest}; "
            "schedule.restart true goes through them in every stage"
        )
    problems += [
        f"plan.stages.{i}.warmup_steps: {stage.warmup_steps} is longer than the stage's "
        f"{steps[stage.index]} steps"
        for i, stage in enumerate(firsts)
        if stage.warmup_steps > steps[stage.index]
    ]
    return problems


def _segment_steps(plan: Plan, stage: Stage) -> int:
    start, end = plan.segment_at(stage.start_step)
    return end - start


def _prefix_problems(config: RunConfig, plan: Plan) -> list[str]:
    """Sizes of a pass of the frozen layers that aren't whole micro-batches."""
    size = config.train.prefix_micro_batch_size
    problems: dict[tuple[str, int], str] = {}
    for stage in plan.stages:
        if size in (None, "auto", stage.micro_batch_size) or stage.train_embeddings:
            continue
        key, micro = stage.micro_batch_size_key, stage.micro_batch_size
        if size % micro:
            problems[key, micro] = (
                f"train.prefix_micro_batch_size: {size} is not a multiple of {key} {micro}"
            )
        elif config.train.frozen_dropout == "on":
            problems[key, micro] = (
                f"train.prefix_micro_batch_size: {size}, but train.frozen_dropout on draws for each "
                f"micro-batch of {micro} instances; leave it out"
            )
    return list(problems.values())


def _batch_problems(config: RunConfig, plan: Plan, world_size: int) -> list[str]:
    """Global batches, of training and of held-out evaluation, that the ranks can't share evenly."""
    stages = list(plan.stages)
    if config.data.eval_path is not None:
        stages += [held_out(config, stage) for stage in plan.stages]
    problems: dict[tuple[str, int, str], str] = {}
    for stage in stages:
        cause = stage.global_batch_size_key, stage.global_batch_size, stage.micro_batch_size_key
        try:
            stage.gradient_accumulation_steps(world_size)
        except RecipeError as error:
            problems.setdefault(cause, str(error))
    return list(problems.values())


def world_problems(
    config: RunConfig, plan: Plan, deepspeed: dict[str, Any], world_size: int
) -> list[str]:
    """Problems that a number of ranks brings."""
    return _batch_problems(config, plan, world_size) or deepspeed_json.world_problems(
        config, plan, deepspeed, world_size
    )


def device_problems(config: RunConfig, device_type: str) -> list[str]:
    """Settings that a kind of device doesn't support."""
    if device_type != "cpu":
        return []
    train = config.train
    problems = [
        f"train.{key}: fp16 is not supported on a CPU; choose bf16 or fp32"
        for key in ("precision", "prefix_precision")
        if getattr(train, key) == "fp16"
    ]
    if train.prefix_graph == "on":
        problems.append("train.prefix_graph: on, but a CPU has no CUDA graphs; leave it out")
    if train.prefix_ahead == "on" and train.frozen_dropout == "on":
        problems.append(
            "train.prefix_ahead: on, but on a CPU all threads draw from one generator, and "
            "train.frozen_dropout on draws in the frozen layers; choose auto or off"
        )
    return problems


def file_problems(config: RunConfig) -> list[str]:
    """Token stores that don't exist. Their contents are checked where they are opened."""
    problems: list[str] = []
    for key, value in (("path", config.data.path), ("eval_path", config.data.eval_path)):
        if value is None:
            continue
        if not Path(value).is_dir():
            problems.append(
                f"data.{key}: {value}: no such folder; make a token store with "
                "mslt-ds prepare --output"
            )
        elif not (Path(value) / MANIFEST).is_file():
            problems.append(
                f"data.{key}: {value}: not a token store ({MANIFEST} is "
                "missing); make one with mslt-ds prepare --output"
            )
    return problems
