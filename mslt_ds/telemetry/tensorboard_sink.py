"""Metrics as TensorBoard event files, in `tensorboard/` of the run folder.

A resumed run writes a new file. Its `purge_step` makes readers drop the values of earlier files from
`resume_step` on, so a curve shows each step once.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mslt_ds.errors import EnvironmentProblem
from mslt_ds.telemetry.metrics import Line, scalars

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


def check_installed() -> None:
    """EnvironmentProblem if the package is missing. Doesn't import it."""
    if importlib.util.find_spec("tensorboard") is None:
        raise EnvironmentProblem(
            "telemetry.tensorboard: true, but the package tensorboard isn't installed; "
            "`pip install tensorboard`, or set telemetry.tensorboard=false"
        )


class TensorboardSink:
    """One event file under the run folder.

    Where the disk fails, `write` raises OSError, and later lines go into a new file once it works again.
    """

    def __init__(self, run_dir: Path, resume_step: int) -> None:
        self._run_dir = run_dir
        self._writer: SummaryWriter | None = self._open(resume_step)

    def write(self, line: Line) -> None:
        try:
            writer = self._writer or self._open(line["step"])
            self._writer = writer
            for tag, value in scalars(line).items():
                writer.add_scalar(tag, value, line["step"], walltime=line["time"])
        except OSError:
            self._writer = None
            raise

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, purge_step: int) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        # Not made with all folders above it: where the run's folder is gone, so is the disk.
        (self._run_dir / FOLDER).mkdir(exist_ok=True)
        return SummaryWriter(self._run_dir / FOLDER, purge_step=purge_step)
