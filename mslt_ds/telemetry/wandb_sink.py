"""Metrics for Weights & Biases, in files of the run folder unless `telemetry.wandb.mode` is online.

The run's id is kept in the run folder, so a resumed run continues the same run at the service. Curves
use the key `step` as their axis. wandb's own counter can't go back: with it, the steps that a resumed
run repeats would be dropped.
"""

from __future__ import annotations

import importlib.util
import secrets
from pathlib import Path

from mslt_ds.atomic import replace_text
from mslt_ds.config.sections import RunConfig
from mslt_ds.errors import EnvironmentProblem
from mslt_ds.telemetry.metrics import Line, scalars

RUN_ID_FILE = "wandb_run_id"


def check_installed() -> None:
    """EnvironmentProblem if the package is missing. Doesn't import it."""
    if importlib.util.find_spec("wandb") is None:
        raise EnvironmentProblem(
            "telemetry.wandb.enabled: true, but the package wandb isn't installed; "
            "`pip install wandb`, or set telemetry.wandb.enabled=false"
        )


class WandbSink:
    """A new or continued wandb run."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        import wandb
        import wandb.errors

        settings = config.telemetry.wandb
        try:
            self._run = wandb.init(
                project=settings.project,
                name=config.name,
                id=_run_id(run_dir),
                # Offline parts are joined by their id when they are synced. With `resume`, wandb
                # would only warn that it can't look up the run.
                resume="allow" if settings.mode == "online" else None,
                mode=settings.mode,
                dir=run_dir,
                config=config.model_dump(mode="json"),
                # Capturing the terminal would interfere with the progress display.
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            raise EnvironmentProblem(
                f"telemetry.wandb.mode: {settings.mode}: wandb can't start ({error}); log in with "
                "`wandb login`, or set telemetry.wandb.mode=offline and `wandb sync` later"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, line: Line) -> None:
        self._run.log(scalars(line) | {"step": line["step"]})

    def close(self) -> None:
        import wandb

        self._run.finish()
        # `finish` can return before wandb's service process has written the file (0.31, offline);
        # this waits until that process has ended.
        wandb.teardown()


def _run_id(run_dir: Path) -> str:
    """The run's id at the service, created with the run folder."""
    path = run_dir / RUN_ID_FILE
    if not path.exists():
        replace_text(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()
