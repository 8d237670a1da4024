"""The share of a run's time that its loop waits for checkpoints.

    python -m benchmarks.checkpoint_wait --set data.path=STORE [--config RECIPE] [--set key=value ...]
        [--every N] [--checkpoints N]

Trains the first stage of a recipe in one process, with a checkpoint every N steps, and adds up what metrics.jsonl
tells: how long the loop waited for checkpoints, and how long steps took in which one was being written. Writes a
dated JSON to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import record
from mslt_ds.cli import main as mslt_ds
from mslt_ds.telemetry.metrics import read_lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_wait")
    parser.add_argument("--config", default="configs/bert_base_mslt.yaml", metavar="RECIPE")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--every", type=int, default=50, help="steps from checkpoint to checkpoint")
    parser.add_argument("--checkpoints", type=int, default=3)
    options = parser.parse_args(arguments)
    # The recipes train in fp16, which needs a GPU.
    defaults = [] if torch.cuda.is_available() else ["train.precision=fp32"]
    steps = options.every * (options.checkpoints + 1)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "name=run", f"output_dir={folder}", "plan.joint_steps=0", "plan.num_stages=1",
            f"plan.steps_per_stage={steps}", f"checkpoint.every_steps={options.every}",
            "telemetry.log_every_steps=1", "schedule.warmup_steps=0", "data.eval_path=null", *defaults, *options.overrides,
        ]  # fmt: skip
        given = [word for override in overrides for word in ("--set", override)]
        if code := mslt_ds(["train", "--config", options.config, *given]):
            return code
        lines = [
            line
            for line in read_lines(Path(folder) / "run" / "metrics.jsonl")
            if "event" not in line
        ]
    waited = [line["checkpoint_seconds"] for line in lines if line["checkpoint_seconds"]]
    seconds = lines[-1]["time"] - lines[0]["time"]
    after = {n for n in range(steps) if n % options.every < 3 and n >= options.every}
    step_seconds = [
        statistics.median(
            line["step_seconds"] for line in lines[1:] if (line["step"] in after) is busy
        )
        for busy in (False, True)
    ]
    share = sum(waited) / seconds
    print(
        f"waited {sum(waited):.2f} s for {len(waited)} checkpoints: {share:.2%} of {seconds:.0f} s"
    )
    print(
        f"a step {step_seconds[0]:.3f} s, one of the 3 after a checkpoint {step_seconds[1]:.3f} s"
    )
    figures = {
        "recipe": options.config, "every_steps": options.every, "waited_seconds": waited,
        "seconds": seconds, "share_waited": share, "step_seconds": step_seconds[0],
        "step_seconds_after_a_checkpoint": step_seconds[1],
    }  # fmt: skip
    record.write(
        "checkpoint_wait", ["benchmarks.checkpoint_wait", *(arguments or sys.argv[1:])], figures
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
