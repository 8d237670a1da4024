"""The folder of a run: its recipe and plan, models at stage boundaries, checkpoints, the final model.

    <output_dir>/<name>/
        run.lock                     who runs it now (lock.py)
        recipe.yaml, plan.json       the recipe with all defaults, the plan with its costs
        metrics.jsonl, starts.jsonl  see telemetry/
        checkpoints/step_<N>/        the newest `checkpoint.keep`
        stages/<k>/{start,end}/      the whole model at a stage boundary, in Hugging Face's format
        model/                       the final model
        stacks/rank_<n>.txt          of threads, where a step took very long (distributed/watchdog.py)

Rank 0 writes; on the other ranks every method does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from mslt_ds.atomic import replace_text
from mslt_ds.config.sections import RunConfig
from mslt_ds.disk.checkpoint import CheckpointFolder, check_resumable
from mslt_ds.disk.lock import RunLock
from mslt_ds.disk.model_folder import save_weights
from mslt_ds.plan.stages import Stage
from mslt_ds.state import TrainingState, Weights


@dataclass(frozen=True)
class RunFolder:
    """Writes what belongs to one run.

    hf_config: (depth) -> the Hugging Face configuration of the model with `depth` layers
    fingerprint: what a resumed run has to share (`disk.checkpoint.fingerprint`)
    """

    path: Path
    is_writer: bool
    checkpoints: CheckpointFolder
    fingerprint: dict[str, Any]
    hf_config: Callable[[int], PretrainedConfig]
    tokenizer_dir: Path
    lock: RunLock | None = None

    def describe(self, config: RunConfig, plan: dict[str, Any]) -> None:
        """Write the resolved recipe and the described plan."""
        if self.is_writer:
            self.path.mkdir(parents=True, exist_ok=True)
            replace_text(self.path / "recipe.yaml", config.to_yaml())
            replace_text(self.path / "plan.json", json.dumps(plan, indent=1) + "\n")

    def check_resumable(self, checkpoint: Path) -> bool:
        """True; CheckpointError unless it is this run's, DamageError where it is damaged."""
        check_resumable(checkpoint, self.fingerprint)
        return True

    def has_ended(self, stage: Stage) -> bool:
        """Whether the stage's last model is here, which is written before the checkpoint at its end."""
        return (self.path / f"stages/{stage.index}/end").exists()

    def save_checkpoint(self, state: TrainingState) -> None:
        """RunIsAliveError where another start has taken the run over."""
        if self.is_writer:
            if self.lock is not None:
                self.lock.check()
            self.checkpoints.save(state, self.fingerprint)

    def save_model(self, name: str, depth: int, weights: Weights) -> None:
        """Write the whole model of `depth` layers as the folder `name` under the run's."""
        if self.is_writer:
            save_weights(self.path / name, weights, self.hf_config(depth), self.tokenizer_dir)
