"""Where a run stands, on disk: written whole or not at all, read by any number of ranks.

A checkpoint holds full fp32 tensors by Hugging Face name (weights of record, optimizer moments) and
a small JSON, never a rank's shard. It can therefore be resumed at another ZeRO stage or on another
number of ranks, and a stage boundary is no special case. What must not change between a run and its
continuation (model, plan, data, seed, ...) is compared when it is read, key by key.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mslt_ds.atomic import replace_folder
from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import CheckpointError
from mslt_ds.state import TrainingState, moments, optimizer_state, step_counts

FORMAT = 1
_NAME = re.compile(r"step_([0-9]+)")
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"

# What a resumed run may have otherwise: it changes where and how fast, not what is computed
# (beyond rounding, where ranks or the ZeRO stage differ).
_FREE_KEYS = (
    "name", "output_dir", "checkpoint", "deepspeed", "telemetry", "evaluation",
    "data.path", "data.eval_path", "data.num_workers", "train.device", "optimizer.lamb.backend",
    "train.max_skipped_steps", "train.max_rollbacks", "train.spike_sigmas", "train.spike_window",
)  # fmt: skip


def fingerprint(config: RunConfig, data_digest: str) -> dict[str, Any]:
    """Flat key -> value of all that a continuation has to share with its run."""
    flat = _flatten(config.model_dump(mode="json"))
    kept = {key: value for key, value in flat.items() if not key.startswith(_FREE_KEYS)}
    # The folder isn't read again and may have moved.
    given = {"plan.init_from": None if config.plan.init_from is None else "a folder"}
    return kept | given | {"token store digest (data.path)": data_digest}


def _defaults() -> dict[str, Any]:
    """Flat key -> default of the keys that have one."""
    sections = {
        name: field.annotation.model_construct().model_dump(mode="json")
        for name, field in RunConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    return _flatten(sections)


def _flatten(value: dict[str, Any] | list[Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; elements of lists have their index as key."""
    flat: dict[str, Any] = {}
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list):
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


class CheckpointFolder:
    """`<run folder>/checkpoints/step_<N>/`, the last `keep` of them.

    Entries with any other name, such as a copy `step_<N>_keep`, are left alone.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self.keep = keep

    def latest(self) -> Path | None:
        """The checkpoint with the most steps, or None."""
        found = self._all()
        return found[-1] if found else None

    def _all(self) -> list[Path]:
        """The checkpoints by rising step."""
        found = [path for path in self.path.glob("step_*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=_step)

    def save(self, state: TrainingState, fingerprint: dict[str, Any]) -> Path:
        """Write `state` and remove the oldest beyond `keep`. For one rank only."""
        path = self.path / f"step_{state.step:010d}"
        self.path.mkdir(parents=True, exist_ok=True)
        description = {
            "format": FORMAT,
            "step": state.step,
            "loss_scale": state.loss_scale,
            "passed_over": {str(n): ranges for n, ranges in state.passed_over.items()},
            "optimizer_steps": step_counts(state.optimizer_state),
            "fingerprint": fingerprint,
        }
        with replace_folder(path) as partial:
            save_file(_contiguous(state.weights), partial / _WEIGHTS)
            save_file(_contiguous(moments(state.optimizer_state)), partial / _OPTIMIZER)
            (partial / _STATE).write_text(json.dumps(description, indent=1) + "\n")
            # safetensors makes its files readable by the owner alone; a run folder is often shared.
            for name in (_WEIGHTS, _OPTIMIZER):
                shutil.copymode(partial / _STATE, partial / name)
        for old in self._all()[: -self.keep]:
            shutil.rmtree(old)
        return path


def check_resumable(path: Path, expected: dict[str, Any]) -> None:
    """CheckpointError unless the checkpoint at `path` is of the run `expected` describes.

    Reads the small JSON only, so that a wrong recipe is refused before anything is loaded.
    """
    # A key that the version which wrote it didn't have stood for what is now the default: in
    # plan.stages, whose keys _defaults doesn't have, for None.
    written = _flatten(_describe(path)["fingerprint"])
    found = {key: value for key, value in _defaults().items() if key in expected} | written
    lines = [
        f"{key}: {expected.get(key)!r} now, {found.get(key)!r} in the checkpoint"
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    ]
    if lines:
        raise CheckpointError(
            f"{path} was written by another recipe:\n  " + "\n  ".join(lines) + "\n"
            "set these back to go on with that run, or choose another name or output_dir"
        )


def load(path: Path) -> TrainingState:
    """The state that `CheckpointFolder.save` wrote; tensors on the CPU."""
    description = _describe(path)
    try:
        weights, tensors = load_file(path / _WEIGHTS), load_file(path / _OPTIMIZER)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None
    return TrainingState(
        step=description["step"],
        weights=weights,
        optimizer_state=optimizer_state(tensors, description["optimizer_steps"]),
        loss_scale=description["loss_scale"],
        passed_over={
            int(seq_length): tuple((first, end) for first, end in ranges)
            for seq_length, ranges in description.get("passed_over", {}).items()
        },
    )


def _describe(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / _STATE).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(description, dict):
        raise _damaged(path, f"{_STATE} holds no JSON object")
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {description.get('format')!r}, this version reads {FORMAT}; "
            "go on with the version that wrote it, or choose another name or output_dir"
        )
    if description.get("step") != _step(path):
        raise _damaged(path, f"{_STATE} says step {description.get('step')!r}")
    return description


def _step(path: Path) -> int:
    """The step that the name of a checkpoint's folder says."""
    return int(path.name.removeprefix("step_"))


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _damaged(path: Path, why: Exception | str) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged ({why}); remove this folder to go on from the checkpoint before"
    )
