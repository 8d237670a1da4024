"""The run's numbers to Weights & Biases: into files under the run folder unless the recipe says online.

Notable: a run keeps its id in the run folder, so every continuation is the same run to the service.
Curves are drawn over the key `step` and not over wandb's own counter, which never goes back: after
a resume the repeated steps are logged again where the counter would drop them.
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
    """EnvironmentProblem if the package is missing. Imports nothing."""
    if importlib.util.find_spec("wandb") is None:
        raise EnvironmentProblem(
            "telemetry.wandb.enabled: true, but the package wandb isn't installed; "
            "`pip install wandb`, or set telemetry.wandb.enabled=false"
        )


class WandbSink:
    """One wandb run, begun or continued."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        import wandb
        import wandb.errors

        settings = config.telemetry.wandb
        try:
            self._run = wandb.init(
                project=settings.project,
                name=config.name,
                id=_run_id(run_dir),
                # Offline, wandb joins the parts by the id when they're synced; asked to resume, it
                # would only warn that it can't look the run up.
                resume="allow" if settings.mode == "online" else None,
                mode=settings.mode,
                dir=run_dir,
                config=config.model_dump(mode="json"),
                # Its capture of the terminal would fight with the progress display.
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
        # `finish` can return while wandb's service process still has the file's content to write
        # (0.31, offline); this waits until that process has ended.
        wandb.teardown()


def _run_id(run_dir: Path) -> str:
    """The id that this run folder has at the service; made at its first start."""
    path = run_dir / RUN_ID_FILE
    if not path.exists():
        replace_text(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()
