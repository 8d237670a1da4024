"""Where a run stands, on disk: written whole or not at all, read by any number of ranks.

A checkpoint holds full fp32 tensors by Hugging Face name (weights of record, optimizer moments) and
a small JSON, never a rank's shard. It can therefore be resumed at another ZeRO stage or on another
number of ranks, and a stage boundary is no special case. What must not change between a run and its
continuation (model, plan, data, seed, ...) is compared when it is read, key by key.

Everything that is read is checked: sizes and checksums against the manifest, names, shapes and steps
against the model and the plan. A checkpoint that fails a check is damaged. It is named, moved to
`checkpoints/damaged/` and passed over.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mslt_ds.atomic import replace_folder
from mslt_ds.config.sections import RunConfig
from mslt_ds.disk import manifest
from mslt_ds.disk.manifest import DamageError
from mslt_ds.disk.tensors import save_tensors
from mslt_ds.errors import CheckpointError, EnvironmentProblem, first_line
from mslt_ds.state import (
    MOMENTS,
    LossScaleField,
    TrainingState,
    moments,
    optimizer_state,
    step_counts,
)

FORMAT = 2
_FORMAT_WITHOUT_MANIFEST = 1
logger = logging.getLogger(__name__)
Shapes = Mapping[str, tuple[int, ...]]
Result = TypeVar("Result")
_NAME = re.compile(r"step_([0-9]+)")
_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
_FROZEN = "frozen.safetensors"
_DAMAGED = "damaged"

# A file that gives one of these is lost. With any other error the disk is, and may come back.
_LOST = (
    errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN
)  # fmt: skip

# What a resumed run may have otherwise: it changes where and how fast, not what is computed
# (beyond rounding, where ranks or the ZeRO stage differ).
_FREE_KEYS = (
    "name", "output_dir", "checkpoint", "deepspeed", "telemetry", "evaluation",
    "data.path", "data.eval_path", "data.num_workers", "train.device", "optimizer.lamb.backend",
    "train.max_skipped_steps", "train.max_rollbacks", "train.spike_sigmas", "train.spike_window",
    "train.hang_timeout_seconds", "train.compile", "train.prefix_ahead", "train.prefix_graph",
)  # fmt: skip
# Of train, of a stage, of plan.long_sequence. Which units dropout drops depends on it, and rounding.
_FREE_NAME = "micro_batch_size"


def fingerprint(config: RunConfig, data_digest: str) -> dict[str, Any]:
    """Flat key -> value of all that a continuation has to share with its run."""
    kept = _kept(flatten(config.model_dump(mode="json")))
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
    return flatten(sections)


def _kept(flat: dict[str, Any]) -> dict[str, Any]:
    """The keys that a continuation has to share."""
    return {
        key: value
        for key, value in flat.items()
        if not key.startswith(_FREE_KEYS) and not key.endswith(_FREE_NAME)
    }


def flatten(value: dict[str, Any] | list[Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; elements of lists have their index as key."""
    flat: dict[str, Any] = {}
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list):
            flat |= flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


@dataclass(frozen=True)
class Damage:
    """A checkpoint that can't be used, and where it lies now."""

    path: Path
    reason: str
    moved_to: Path


@dataclass(frozen=True)
class _FrozenFile:
    """The newest file of what is frozen."""

    state: weakref.ref[TrainingState]
    path: Path
    entry: manifest.Entry


class CheckpointFolder:
    """`<run folder>/checkpoints/step_<N>/`: the last `keep`, and those of each `keep_every`-th step.

    Entries with any other name, such as a copy `step_<N>_keep`, are left alone.

    damaged: what this process found damaged
    """

    def __init__(self, path: Path, keep: int, keep_every: int | None = None) -> None:
        self.path = path
        self.keep = keep
        self.keep_every = keep_every
        self._frozen: _FrozenFile | None = None
        self.damaged: list[Damage] = []

    def read_newest(self, read: Callable[[Path], Result]) -> Result | None:
        """read(path) of the newest whole checkpoint; None where there is none. For one rank only.

        A checkpoint at which `read` raises DamageError is moved aside, with a warning, and passed over.
        """
        for path in reversed(self._all()):
            try:
                return read(path)
            except DamageError as error:
                self._set_aside(path, str(error))
        return None

    def _set_aside(self, path: Path, reason: str) -> None:
        target, number = self.path / _DAMAGED / path.name, 1
        while target.exists():
            number += 1
            target = target.with_name(f"{path.name}.{number}")
        try:
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        except OSError as error:
            logger.warning("%s: can't be moved to %s (%s)", path, target, error.strerror)
            target = path
        self.damaged.append(Damage(path, reason, target))
        logger.warning(
            "%s: damaged (%s). It lies in %s now; the run goes on from the state before it",
            path, reason, target,
        )  # fmt: skip

    def _all(self) -> list[Path]:
        """The checkpoints by rising step."""
        found = [path for path in self.path.glob("step_*") if _NAME.fullmatch(path.name)]
        return sorted((path for path in found if path.is_dir()), key=_step)

    def save(
        self,
        state: TrainingState,
        fingerprint: dict[str, Any],
        frozen: TrainingState | None = None,
    ) -> Path:
        """Write `state` and remove the oldest that need not be kept. For one rank only.

        frozen: the part of `state` that doesn't change as long as this very object is given. It is
            written once; later checkpoints have a hard link to its file, which stays as long as one of
            them does. The parameters that train, where None.

        OSError where the disk fails. The folder that holds `checkpoints` isn't made: where it is gone, so
        is the disk.
        """
        path = self.path / f"step_{state.step:010d}"
        self.path.mkdir(exist_ok=True)
        description = {
            "format": FORMAT,
            "step": state.step,
            "loss_scale": state.loss_scale,
            "passed_over": {str(n): ranges for n, ranges in state.passed_over.items()},
            "optimizer_steps": step_counts(state.optimizer_state),
            "fingerprint": fingerprint,
        }
        link = None
        with replace_folder(path) as partial:
            known = {}
            if frozen is not None and frozen.weights:
                state = state.without(frozen.weights.keys())
                link = self._write_frozen(frozen, partial)
                known = {_FROZEN: link.entry}
            save_tensors(state.weights, partial / _WEIGHTS)
            save_tensors(moments(state.optimizer_state), partial / _OPTIMIZER)
            (partial / _STATE).write_text(json.dumps(description, indent=1) + "\n")
            manifest.write(partial, (_WEIGHTS, _OPTIMIZER, _STATE), known)
        self._frozen = link and replace(link, path=path / _FROZEN)
        self._remove_old()
        return path

    def _write_frozen(self, frozen: TrainingState, partial: Path) -> _FrozenFile:
        """Link the file of the checkpoint before, or write it."""
        target, before = partial / _FROZEN, self._frozen
        if before is not None and before.state() is frozen:
            try:
                os.link(before.path, target)
                return before
            except OSError:
                pass  # it was moved, or the file system has no hard links
        save_tensors(frozen.tensors(), target)
        return _FrozenFile(weakref.ref(frozen), target, manifest.describe(target))

    def _remove_old(self) -> None:
        for old in self._all()[: -self.keep]:
            if self.keep_every is not None and _step(old) % self.keep_every == 0:
                continue
            # First renamed: what a kill leaves is no half of a checkpoint.
            removed = self.path / ".removed"
            _remove(removed)
            old.rename(removed)
            _remove(removed)


def _remove(path: Path) -> None:
    """Remove a folder, or a user's link to one, but not what it leads to."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


class _Format(BaseModel):
    """What of state.json every version writes."""

    model_config = ConfigDict(strict=True)

    format: int


_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _State(BaseModel):
    """state.json."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    step: _Count
    loss_scale: dict[LossScaleField, int | float]
    passed_over: dict[_Count, tuple[tuple[_Count, _Count], ...]] = {}
    optimizer_steps: dict[str, Annotated[_Count, Field(ge=1)]]
    fingerprint: dict[str, Any]


def check_resumable(path: Path, expected: dict[str, Any]) -> None:
    """CheckpointError unless the checkpoint at `path` is of the run `expected` describes.

    Reads the small JSON only, so that a wrong recipe is refused before anything is loaded.
    DamageError where it is damaged.
    """
    # A key that the version which wrote it didn't have stood for what is now the default: in
    # plan.stages, whose keys _defaults doesn't have, for None.
    written = _kept(flatten(_describe(path).fingerprint))
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


def load(path: Path, shapes_after: Callable[[int], Shapes | None]) -> TrainingState:
    """The state that `CheckpointFolder.save` wrote; tensors on the CPU.

    shapes_after: (step) -> each parameter's name and shape after so many steps; None where the plan
        ends before

    DamageError unless every file holds what was written, and what this run needs.
    """
    description = _describe(path)
    shapes = shapes_after(description.step)
    if shapes is None:
        raise DamageError(f"{_STATE}: the plan ends before step {description.step}")
    counts = description.optimizer_steps
    if unknown := sorted(counts.keys() - shapes.keys()):
        raise DamageError(f"{_STATE}: the model has no parameter {unknown[0]}")
    tensors: dict[str, Tensor] = {}
    for name in (_WEIGHTS, _OPTIMIZER, _FROZEN):
        if name != _FROZEN or name in manifest.names(path):
            tensors |= _read_tensors(path, name)
    _check_tensors(
        tensors,
        {**shapes, **{f"{kind}/{name}": shapes[name] for name in counts for kind in MOMENTS}},
    )
    state = TrainingState(
        description.step,
        {name: tensors[name] for name in shapes},
        optimizer_state(tensors, counts),
        description.loss_scale,
        description.passed_over,
    )
    if not state.is_finite():
        raise DamageError("it holds numbers that aren't finite")
    if not manifest.exists(path):
        logger.warning(
            "%s: an earlier version wrote it, without checksums; its names, shapes and numbers are "
            "in order, but a flipped bit would not be noticed",
            path,
        )
    return state


def _read_tensors(path: Path, file: str) -> dict[str, Tensor]:
    try:
        manifest.verify(path, [file])
        return load_file(path / file)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _check_tensors(tensors: Mapping[str, Tensor], shapes: Shapes) -> None:
    """DamageError unless `tensors` are fp32 and have exactly `shapes`."""
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise DamageError(f"{missing[0]} is missing")
    if unknown := sorted(tensors.keys() - shapes.keys()):
        raise DamageError(f"the model has no {unknown[0]}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != torch.float32:
            raise DamageError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, and the model's is "
                f"torch.float32 of shape {shapes[name]}"
            )


def _describe(path: Path) -> _State:
    """state.json. DamageError; CheckpointError for the format of another version."""
    try:
        manifest.verify(path, [_STATE])
        text = (path / _STATE).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    version = manifest.parse(text, _Format, _STATE).format
    if version not in (_FORMAT_WITHOUT_MANIFEST, FORMAT):
        raise CheckpointError(
            f"{path}: format {version!r}, this version reads {FORMAT}; "
            "go on with the version that wrote it, or choose another name or output_dir"
        )
    if version == FORMAT and not manifest.exists(path):
        raise DamageError(f"{manifest.MANIFEST} is missing")
    description = manifest.parse(text, _State, _STATE)
    if description.step != _step(path):
        raise DamageError(f"{_STATE} says step {description.step}")
    return description


def _unreadable(path: Path, error: OSError | SafetensorError) -> Exception:
    """What to raise for it: damage, or a disk that can't be reached and may come back."""
    if isinstance(error, OSError) and error.errno not in _LOST:
        return EnvironmentProblem(
            f"{path}: can't be read ({error.strerror or error}); check the disk and start the same "
            "command again"
        )
    return DamageError(first_line(error))


def _step(path: Path) -> int:
    """The step that the name of a checkpoint's folder says."""
    return int(path.name.removeprefix("step_"))
