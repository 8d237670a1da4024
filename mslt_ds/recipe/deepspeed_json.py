"""The DeepSpeed JSON beside the recipe: what it may say, and what the recipe decides.

Each setting has one owner. Batch sizes, precision, clipping, optimizer and learning rate belong to
the recipe; in the JSON they are "auto", left out, or equal. ZeRO's buckets, loss-scale windows and
DeepSpeed's own reports belong to the JSON. Anything else is refused, because DeepSpeed ignores a key
that it doesn't know, and a key that it knows may change what a step computes. This module doesn't
import DeepSpeed.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import RecipeError
from mslt_ds.plan.stages import Plan

_AUTO = "auto"
# Keys whose presence would change who decides, or where parameters and their state are kept.
_REFUSED = {
    "optimizer": "the recipe's section optimizer decides",
    "scheduler": "the recipe's section schedule decides",
    "amp": "train.precision decides",
    "zero_optimization.offload_optimizer": "weights and moments are read from the device at each "
    "stage boundary, and the optimizer isn't one that offloads",
    "zero_optimization.offload_param": "only ZeRO stage 3 has it",
    "zero_force_ds_cpu_optimizer": "the recipe's optimizer is used on every device",
}
# The kinds of values that the JSON may hold; `_CHECKED` ones are compared with the recipe.
_SWITCH = "true or false"
_COUNT, _SIZE = "a whole number below 2^63", "a whole number above 0 and below 2^63"
_POWER, _LIST, _CHECKED = "a whole number up to 126", "a list", ""
_ALLOWED = {
    "train_batch_size": _CHECKED,
    "train_micro_batch_size_per_gpu": _CHECKED,
    "gradient_accumulation_steps": _CHECKED,
    "gradient_clipping": _CHECKED,
    "steps_per_print": _CHECKED,  # overwritten: progress is this package's own
    "zero_allow_untested_optimizer": _SWITCH,
    "zero_force_ds_cpu_optimizer": _CHECKED,
    "fp16.enabled": _CHECKED,
    "fp16.loss_scale": _COUNT,
    "fp16.initial_scale_power": _POWER,
    "fp16.loss_scale_window": _SIZE,
    "fp16.hysteresis": _SIZE,
    "fp16.consecutive_hysteresis": _SWITCH,
    "fp16.min_loss_scale": _COUNT,
    "bf16.enabled": _CHECKED,
    "zero_optimization.stage": _CHECKED,
    "zero_optimization.contiguous_gradients": _SWITCH,
    "zero_optimization.overlap_comm": _SWITCH,
    "zero_optimization.reduce_scatter": _SWITCH,
    "zero_optimization.reduce_bucket_size": _SIZE,
    "zero_optimization.allgather_partitions": _SWITCH,
    "zero_optimization.allgather_bucket_size": _SIZE,
    "zero_optimization.round_robin_gradients": _SWITCH,
    # Reports of DeepSpeed's own. Most of them wait for the GPU in every step.
    "wall_clock_breakdown": _SWITCH,
    "memory_breakdown": _SWITCH,
    "dump_state": _SWITCH,
    "comms_logger.enabled": _SWITCH,
    "comms_logger.verbose": _SWITCH,
    "comms_logger.debug": _SWITCH,
    "comms_logger.prof_all": _SWITCH,
    "comms_logger.prof_ops": _LIST,
    "flops_profiler.enabled": _SWITCH,
    "flops_profiler.detailed": _SWITCH,
    "flops_profiler.recompute_fwd_factor": _COUNT,
    "flops_profiler.profile_step": _COUNT,
    "flops_profiler.top_modules": _SIZE,
}
_SECTIONS = ("zero_optimization", "fp16", "bf16", "comms_logger", "flops_profiler")
_KEY = "deepspeed.config"


def read(path: str | None) -> dict[str, Any]:
    """The JSON object at `path`; empty for None: ZeRO stage 0 and DeepSpeed's defaults."""
    if path is None:
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
        settings = json.loads(text, object_pairs_hook=_unique)
    except RecipeError as error:
        raise RecipeError(f"{_KEY}: {path}: {error}") from None
    except FileNotFoundError:
        raise RecipeError(f"{_KEY}: {path}: no such file") from None
    except OSError as error:
        raise RecipeError(f"{_KEY}: {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{_KEY}: {path}: not valid JSON: {error}") from None
    if not isinstance(settings, dict):
        raise RecipeError(f"{_KEY}: {path}: holds {type(settings).__name__}, not a JSON object")
    return settings


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. json.loads would keep the last of two equal keys silently."""
    counts = Counter(key for key, _ in pairs)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise RecipeError(f"{', '.join(twice)}: given twice in the same object; keep one")
    return dict(pairs)


def zero_stage(settings: dict[str, Any]) -> int:
    """ZeRO stage of a DeepSpeed JSON; 0 where it doesn't say."""
    return _get(settings, "zero_optimization.stage", 0)


def stage_config(
    settings: dict[str, Any],
    *,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    precision: str,
    gradient_clipping: float,
) -> dict[str, Any]:
    """`settings` with the recipe's own, for `deepspeed.initialize`."""
    config = copy.deepcopy(settings)
    # DeepSpeed derives it from the two below.
    config.pop("train_batch_size", None)
    config |= {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        # DeepSpeed clips at 1.0 where the key is absent; 0.0 turns clipping off.
        "gradient_clipping": gradient_clipping,
        # Progress is this package's own; DeepSpeed's timer would synchronise the GPU every step.
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},
        # Lamb and torch's AdamW are "untested" in DeepSpeed's list; tests/distributed tests them.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    for name in ("fp16", "bf16"):
        config[name] = config.get(name, {}) | {"enabled": precision == name}
    return config


def problems(config: RunConfig, plan: Plan, settings: dict[str, Any]) -> list[str]:
    """Settings that contradict the recipe or that this trainer doesn't support."""
    path = config.deepspeed.config
    lines: list[str] = []
    stage = zero_stage(settings)
    if stage not in (0, 1, 2) or isinstance(stage, bool):
        why = (
            "which partitions the parameters; stages freeze and grow whole ones"
            if stage == 3
            else "which DeepSpeed doesn't have"
        )
        lines.append(
            f"{_KEY}: {path}: zero_optimization.stage {_json(stage)}, {why}; choose 0, 1 or 2"
        )
    for key in _SECTIONS:
        if not isinstance(settings.get(key, {}), dict):
            lines.append(f"{_KEY}: {path}: {key} {_json(settings[key])}; it has to be an object")
    for key, value in _flat(settings):
        if key in _REFUSED:
            unused = {"device": "none"} if "offload" in key else None
            if value not in (None, False, {}, unused):
                lines.append(f"{_KEY}: {path}: {key}: {_REFUSED[key]}; leave it out")
        elif key not in _ALLOWED:
            near = difflib.get_close_matches(key, _ALLOWED, n=1)
            meant = f"; did you mean {near[0]}?" if near else "; leave it out"
            lines.append(f"{_KEY}: {path}: {key}: not a setting that this trainer passes on{meant}")
        elif not _fits(value, _ALLOWED[key]):
            lines.append(f"{_KEY}: {path}: {key} {_json(value)}; it has to be {_ALLOWED[key]}")
    for key, made in _decided(config, plan):
        lines += _contradiction(config, settings, key, made)
    return lines


def world_problems(
    config: RunConfig, plan: Plan, settings: dict[str, Any], world_size: int
) -> list[str]:
    """A JSON's gradient accumulation that `world_size` ranks contradict."""
    made = [
        (
            f"{stage.global_batch_size_key} {stage.global_batch_size} on {world_size} ranks",
            stage.gradient_accumulation_steps(world_size),
        )
        for stage in plan.stages
    ]
    return _contradiction(config, settings, "gradient_accumulation_steps", made)


def _decided(config: RunConfig, plan: Plan) -> list[tuple[str, list[tuple[str, Any]]]]:
    """(key in the JSON, for each stage the recipe's key and the value that it makes)"""
    train, stages = config.train, plan.stages
    return [
        ("train_batch_size", [(s.global_batch_size_key, s.global_batch_size) for s in stages]),
        (
            "train_micro_batch_size_per_gpu",
            [(s.micro_batch_size_key, s.micro_batch_size) for s in stages],
        ),
        ("gradient_clipping", [("train.gradient_clipping", train.gradient_clipping)]),
        ("fp16.enabled", [("train.precision", train.precision == "fp16")]),
        ("bf16.enabled", [("train.precision", train.precision == "bf16")]),
    ]


def _contradiction(
    config: RunConfig, settings: dict[str, Any], key: str, made: list[tuple[str, Any]]
) -> list[str]:
    """A line if the JSON's `key` isn't what the recipe makes it.

    made: for each stage, or once for all of them, what decides and the value that it makes
    """
    found = _get(settings, key, _AUTO)
    wrong = [(number, *pair) for number, pair in enumerate(made, start=1) if pair[1] != found]
    if found == _AUTO or not wrong:
        return []
    number, decider, value = wrong[0]
    values = sorted({value for _, value in made})
    if len(values) == 1:
        why = f"{decider} makes it {_json(value)}"
    else:
        every = ", ".join(map(_json, values))
        why = f"the plan makes it {every} (stage {number}: {decider} makes it {_json(value)})"
    path = config.deepspeed.config
    return [f'{_KEY}: {path}: {key} {_json(found)}, but {why}; write "auto"']


def _flat(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted key; sections are opened, other objects are values."""
    for key, value in settings.items():
        if key in _SECTIONS and isinstance(value, dict):
            yield from ((f"{key}.{inner}", found) for inner, found in value.items())
        elif key not in _SECTIONS:
            yield (key if "." not in key else f'"{key}"'), value  # which isn't a key of a section


def _fits(value: Any, kind: str) -> bool:
    if kind == _SWITCH:
        return isinstance(value, bool)
    if kind in (_COUNT, _SIZE, _POWER):
        # DeepSpeed reads 5e8 as a number of elements too. torch takes no more than 64 bits.
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and (1 if kind == _SIZE else 0) <= value < (127 if kind == _POWER else 2**63)
            and value % 1 == 0
        )
    return kind == _CHECKED or isinstance(value, list)


def _get(settings: Any, key: str, default: Any) -> Any:
    for part in key.split("."):
        if not isinstance(settings, dict) or part not in settings:
            return default
        settings = settings[part]
    return settings


def _json(value: Any) -> str:
    return json.dumps(value)
