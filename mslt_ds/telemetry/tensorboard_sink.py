"""Metrics as TensorBoard event files, in `tensorboard/` of the run folder.

A resumed run writes a new file. Its `purge_step` makes readers drop the values of earlier files from
`resume_step` on, so a curve shows each step once.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.telemetry.metrics import Line, scalars

FOLDER = "tensorboard"


def check_installed() -> None:
    """EnvironmentProblem if the package is missing. Doesn't import it."""
    if importlib.util.find_spec("tensorboard") is None:
        raise EnvironmentProblem(
            "telemetry.tensorboard: true, but the package tensorboard isn't installed; "
            "`pip install tensorboard`, or set telemetry.tensorboard=false"
        )


class TensorboardSink:
    """One event file under the run folder."""

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(run_dir / FOLDER, purge_step=resume_step)

    def write(self, line: Line) -> None:
        for tag, value in scalars(line).items():
            self._writer.add_scalar(tag, value, line["step"], walltime=line["time"])

    def close(self) -> None:
        self._writer.close()
