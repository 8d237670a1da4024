"""The folder of a run: its recipe and plan, models at stage boundaries, checkpoints, the final model.

    <output_dir>/<name>/
        run.lock                     who runs it now (lock.py)
        recipe.yaml, plan.json       the recipe with all defaults, the plan with its costs
        metrics.jsonl, starts.jsonl, warnings.jsonl  see telemetry/
        checkpoints/step_<N>/        see checkpoint.py
        stages/<k>/{start,end}/      the whole model at a stage boundary, in Hugging Face's format
        before_decay/                the model where the last `decay_steps` of schedule wsd begin
        model/                       the final model
        stacks/rank_<n>.txt          of threads, where a step took very long (distributed/watchdog.py)

Rank 0 writes; elsewhere nothing is handed over to the writer.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from mslt_ds.atomic import replace_text
from mslt_ds.config.sections import RunConfig
from mslt_ds.disk.checkpoint import CheckpointFolder, check_resumable
from mslt_ds.disk.lock import RunLock
from mslt_ds.disk.model_folder import save_weights
from mslt_ds.disk.writer import Job, Writer
from mslt_ds.errors import EnvironmentProblem
from mslt_ds.plan.stages import Stage
from mslt_ds.state import TrainingState, Weights

BEFORE_DECAY = "before_decay"
_FOLDERS = re.compile(
    rf"checkpoints|stages|stages/[0-9]+|stages/[0-9]+/(start|end)|{BEFORE_DECAY}|model"
)
_WAIT_SECONDS, _CLOSE_SECONDS = 5.0, 60.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """Writes what belongs to one run, checkpoints and models on a thread (`writer.py`).

    hf_config: (depth) -> the Hugging Face configuration of the model with `depth` layers
    fingerprint: what a resumed run has to share (`disk.checkpoint.fingerprint`)
    """

    path: Path
    is_writer: bool
    checkpoints: CheckpointFolder
    fingerprint: dict[str, Any]
    hf_config: Callable[[int], PretrainedConfig]
    tokenizer_dir: Path
    writer: Writer
    lock: RunLock | None = None

    def describe(self, config: RunConfig, plan: dict[str, Any]) -> None:
        """Make the folder, with the resolved recipe and the described plan.

        EnvironmentProblem if that fails, or a file is where the run will write a folder.
        """
        for place in (found for depth in ("*", "*/*", "*/*/*") for found in self.path.glob(depth)):
            if _FOLDERS.fullmatch(str(place.relative_to(self.path))) and not place.is_dir():
                raise EnvironmentProblem(
                    f"{place}: a file, where the run writes a folder; move it away, or choose another "
                    "output_dir or name"
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            replace_text(self.path / "recipe.yaml", config.to_yaml())
            replace_text(self.path / "plan.json", json.dumps(plan, indent=1) + "\n")
        except OSError as error:
            raise EnvironmentProblem(
                f"output_dir: {self.path} can't be written ({error.strerror or error}); free space, or "
                "choose another output_dir"
            ) from error

    def check_resumable(self, checkpoint: Path) -> bool:
        """True; CheckpointError unless it is this run's, DamageError where it is damaged."""
        check_resumable(checkpoint, self.fingerprint)
        return True

    def has_ended(self, stage: Stage) -> bool:
        """Whether the stage's last model is here or handed over, which is before the checkpoint at its end."""
        path = self.path / f"stages/{stage.index}/end"
        return path.exists() or self.writer.has(str(path))

    def is_ready(self, *, must: bool = False) -> bool:
        """Whether a checkpoint is to be written now: if the one before is still being written, only where it
        `must`.

        RunIsAliveError where another start has taken the run over. EnvironmentProblem where nothing
        could be written for too long.
        """
        if self.lock is not None:
            self.lock.check()
        self.writer.check()
        if must or not self.writer.is_busy:
            return True
        logger.warning(
            "%s: the last checkpoint is still being written, so this one is left out; is the disk slow?",
            self.path,
        )
        return False

    def save_checkpoint(self, state: TrainingState, frozen: TrainingState) -> None:
        """Hand a checkpoint over to the writer. `frozen`: see `CheckpointFolder.save`."""
        if self.is_writer:
            save = partial(self.checkpoints.save, state, self.fingerprint, frozen)
            self.writer.write(Job(f"the checkpoint of step {state.step}", save, is_checkpoint=True))

    def save_model(
        self, name: str, depth: int, weights: Weights, then: Callable[[], object]
    ) -> None:
        """Hand the whole model of `depth` layers over to the writer, as the folder `name` under the run's.

        then: called when it is there
        """

        def save() -> None:
            make_folders(self.path, Path(name).parent)
            save_weights(self.path / name, weights, self.hf_config(depth), self.tokenizer_dir)
            then()

        if self.is_writer:
            self.writer.write(Job(f"{self.path / name}", save))

    def ask_for_room(self, name: str) -> None:
        """Hand over a job that is done once the folder takes another file of the size of `name`."""

        def ask() -> None:
            probe, file = self.path / ".room", self.path / name
            size = file.stat().st_size if file.exists() else 1
            try:
                probe.write_bytes(bytes(size))
            finally:
                probe.unlink(missing_ok=True)

        if self.is_writer:
            self.writer.write(Job(str(self.path), ask))

    def wait(self, *, tries_again: bool = False) -> bool:
        """Wait for the writer, for a few seconds at most. Whether it is done (`Writer.wait`)."""
        return self.writer.wait(_WAIT_SECONDS, tries_again=tries_again)

    def close(self) -> None:
        """Wait for what is being written, also where the run ends by an error; not for ever."""
        with suppress(EnvironmentProblem):
            self.writer.wait(_CLOSE_SECONDS)

    def check_written(self, step: int) -> None:
        """EnvironmentProblem where the run stops and the state after `step` steps isn't written."""
        if (problem := self.writer.unwritten) is not None:
            raise EnvironmentProblem(
                f"told to stop, but the state after {step} steps isn't saved ({problem}); check the disk. "
                "The same command goes on from the checkpoint before"
            )


def make_folders(root: Path, below: Path) -> None:
    """Make the folder `below` under `root`, which has to be there: where it is gone, so is the disk."""
    for folder in reversed((below, *below.parents)):
        if folder != Path("."):
            (root / folder).mkdir(exist_ok=True)
