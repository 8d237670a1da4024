"""A boundary, a kill, another number of ranks: none of them changes what is computed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from mslt_ds.distributed.signals import EXIT_CODE_STOPPED
from tests.distributed.conftest import REPOSITORY, Launch, Launched, free_port
from tests.distributed.recipes import (
    LAYERS,
    SCRIPTS,
    merged,
    metrics_of,
    recipe,
    weights_at,
    write_recipes,
    zero_config,
)

TRAIN = REPOSITORY / "mslt_ds/train.py"


def assert_same_bits(left: Path, right: Path, folder: str = "model") -> None:
    one, other = weights_at(left, folder), weights_at(right, folder)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def curve(run_dir: Path) -> list[tuple]:
    keys = ("step", "loss", "mlm_loss", "nsp_loss", "learning_rate", "grad_norm")
    return [tuple(line[key] for key in keys) for line in metrics_of(run_dir)]


def test_full_cut_into_stages_is_full_bit_for_bit(launch, store, tmp_path):
    stage = {"depth": LAYERS, "trainable_layers": LAYERS}
    cut = [stage | {"steps": 5}, stage | {"steps": 3}, stage | {"steps": 6}]
    recipes = []
    for optimizer, zero in (("adamw", 0), ("lamb", 0), ("lamb", 1), ("adamw", 2), ("lamb", 2)):
        changes = {"deepspeed": zero_config(tmp_path, zero), "optimizer": {"name": optimizer}}
        whole = {"method": "full", "num_stages": 2, "steps_per_stage": 7, "joint_steps": 0}
        pieces = {"method": "custom", "num_stages": None, "steps_per_stage": None,
                  "joint_steps": None, "stages": cut}  # fmt: skip
        name = f"{optimizer}-{zero}"
        recipes += [
            recipe(store, tmp_path, f"{name}-full", plan=whole, **changes),
            recipe(store, tmp_path, f"{name}-cut", plan=pieces, **changes),
        ]
    launch(SCRIPTS / "run_recipes.py", 2, write_recipes(tmp_path / "recipes.json", recipes))
    for case in {r["name"].rsplit("-", 1)[0] for r in recipes}:
        full, pieces = tmp_path / f"{case}-full", tmp_path / f"{case}-cut"
        assert curve(full) == curve(pieces), case
        assert_same_bits(full, pieces)


BY_STAGE = {
    "plan": {"global_batch_size": [12, 18, 24], "masked_lm_prob": {"first": 0.3, "last": 0.15}}
}


def test_any_number_of_ranks_computes_the_same(launch, store, tmp_path):
    for ranks in (1, 2, 4):
        recipes = [recipe(store, tmp_path, f"ranks-{ranks}")]
        if ranks < 4:
            recipes.append(recipe(store, tmp_path, f"by-stage-{ranks}", **BY_STAGE))
        launch(
            SCRIPTS / "run_recipes.py",
            ranks,
            write_recipes(tmp_path / "recipes.json", recipes),
            launcher="torchrun" if ranks == 2 else "environment",
        )
    for kind, others in (("ranks", (2, 4)), ("by-stage", (2,))):
        reference = weights_at(tmp_path / f"{kind}-1", "model")
        expected = [line["loss"] for line in metrics_of(tmp_path / f"{kind}-1")]
        for ranks in others:
            for name, tensor in weights_at(tmp_path / f"{kind}-{ranks}", "model").items():
                torch.testing.assert_close(tensor, reference[name], rtol=0, atol=5e-5)
            losses = [line["loss"] for line in metrics_of(tmp_path / f"{kind}-{ranks}")]
            assert losses == pytest.approx(expected, abs=2e-5)


def test_values_by_stage_train_like_the_recipes_own_and_are_evaluated_at_the_recipes(
    launch, store, tmp_path
):
    """All stages at 24 and 0.3, by the plan's keys or by those of the sections train and data."""
    evaluated = {"path": str(store), "eval_path": str(store)}
    by_stage = {"global_batch_size": [24] * 3, "masked_lm_prob": {"first": 0.3, "last": 0.3}}
    changes = [
        {"data": evaluated, "plan": by_stage},
        {"data": evaluated | {"masked_lm_prob": 0.3}, "train": {"global_batch_size": 24}},
    ]
    names = ("by-stage", "by-section")
    recipes = [
        recipe(store, tmp_path, name, evaluation={"instances": 24}, **change)
        for name, change in zip(names, changes, strict=True)
    ]
    launch(SCRIPTS / "run_recipes.py", 2, write_recipes(tmp_path / "recipes.json", recipes))
    one, other = (tmp_path / name for name in names)
    assert curve(one) == curve(other)
    assert_same_bits(one, other)
    losses = [
        [json.loads(line)["eval_mlm_loss"] for line in text.splitlines() if "eval_mlm_loss" in line]
        for text in ((folder / "metrics.jsonl").read_text() for folder in (one, other))
    ]
    assert len(losses[0]) == 3
    assert all(mine != its for mine, its in zip(*losses, strict=True))  # at 0.15, at 0.3


def reached(run_dir: Path, step: int) -> bool:
    """Whether metrics.jsonl holds a line of `step` or a later one."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return any(int(number) >= step for number in re.findall(r'"step": ?(\d+)', text))


def train(
    launch: Launch, content: dict, *, kill_at: int | None = None, check: bool = True
) -> Launched:
    """The main job on two ranks; kill_at: all are killed once this step is done."""
    run_dir = Path(content["output_dir"]) / content["name"]
    path = run_dir.with_suffix(".yaml")
    path.write_text(json.dumps(content))  # JSON is YAML
    until = None if kill_at is None else lambda: reached(run_dir, kill_at)
    ended = launch(
        TRAIN, 2, "--config", str(path), until=until, check=check and kill_at is None
    )  # fmt: skip
    if kill_at is not None:
        assert ended.returncode == -signal.SIGKILL, ended.output[-4000:]
    return ended


class Command:
    """`deepspeed mslt_ds/train.py --config ...` on two processes, as a user types it."""

    def __init__(self, folder: Path, config: dict) -> None:
        path = folder / f"{config['name']}.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        self.log = folder / f"{config['name']}.log"
        self.run_dir = Path(config["output_dir"]) / config["name"]
        self.command = [
            str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2",
            "--master_port", str(free_port()),
            str(TRAIN), "--config", str(path),
        ]  # fmt: skip

    def start(self) -> subprocess.Popen:
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as sink:
            return subprocess.Popen(
                self.command, stdout=sink, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True, cwd=self.log.parent,
            )  # fmt: skip

    def start_until(self, step: int) -> subprocess.Popen:
        """Start, and return once `step` is reached."""
        process = self.start()
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and process.poll() is None:
            if reached(self.run_dir, step):
                return process
            time.sleep(0.01)
        kill(process)
        pytest.fail(f"never came to step {step}:\n{self.log.read_text()[-4000:]}")


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_in_any_stage_and_repeated_ends_in_the_same_bits(launch, store, tmp_path):
    changes = {
        "checkpoint": {"every_steps": 3},
        "deepspeed": zero_config(tmp_path, 1),
        "optimizer": {"name": "lamb"},
        "data": {"eval_path": str(store)},
        "evaluation": {"instances": 24},
        "plan": {"steps_per_stage": 8, "joint_steps": 8},
        "schedule": {"name": "wsd", "decay_steps": 13},  # from step 11 on, inside of a stage
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(launch, recipe(store, tmp_path, "whole", **changes))
    for step in (7, 12, None):  # at a boundary, and inside a stage of frozen layers
        train(launch, recipe(store, tmp_path, "killed", **changes), kill_at=step)
    assert curve(whole) == curve(killed)
    for folder in (
        "stages/1/end",
        "stages/2/start",
        "before_decay",
        "stages/2/end",
        "stages/3/start",
        "model",
    ):
        assert_same_bits(whole, killed, folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_with_values_by_stage_it_ends_in_the_same_bits(launch, store, tmp_path):
    changes = merged(
        BY_STAGE,
        {
            "checkpoint": {"every_steps": 2},
            "deepspeed": zero_config(tmp_path, 1),
            "data": {"eval_path": str(store)},
            "evaluation": {"instances": 24},
        },
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(launch, recipe(store, tmp_path, "whole", **changes))
    for step in (7, None):  # inside the second stage
        train(launch, recipe(store, tmp_path, "killed", **changes), kill_at=step)
    assert curve(whole) == curve(killed)
    for folder in ("stages/2/end", "model"):
        assert_same_bits(whole, killed, folder)
    other = merged(changes, {"plan": {"global_batch_size": [12, 18, 12]}})
    refused = train(launch, recipe(store, tmp_path, "killed", **other), check=False)
    assert refused.returncode == 2
    assert "plan.global_batch_size.2: 12 now, 24 in the checkpoint" in refused.output


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("told", ["rank 1 by SIGUSR1", "the launcher by SIGTERM"])
def test_told_to_stop_it_writes_a_checkpoint_and_says_so_by_its_exit_code(store, tmp_path, told):
    changes = {"plan": {"steps_per_stage": 4000, "joint_steps": 4}}
    run = Command(tmp_path, recipe(store, tmp_path, "told", **changes))
    process = run.start_until(10)
    family = psutil.Process(process.pid).children(recursive=True)
    ranks = [rank for rank in family if "--local_rank=1" in rank.cmdline()]
    try:
        if told == "rank 1 by SIGUSR1":  # the other learns of it
            ranks[-1].send_signal(signal.SIGUSR1)
            assert process.wait(timeout=240) == EXIT_CODE_STOPPED, run.log.read_text()[-4000:]
        else:  # which ends at once, and leaves its ranks behind
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=240) == -signal.SIGTERM
            # What is left of an orphan, where nobody waits for it, is a zombie.
            deadline = time.monotonic() + 60
            while any(is_alive(process) for process in family) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not any(is_alive(process) for process in family), run.log.read_text()[-4000:]
    finally:
        kill(process)
    log = run.log.read_text()
    assert "Traceback" not in log and "run stopped after" in log
    steps_done = int(next((run.run_dir / "checkpoints").glob("step_*")).name.removeprefix("step_"))
    assert 10 <= steps_done < 8004
    assert metrics_of(run.run_dir)[-1]["step"] == steps_done - 1
