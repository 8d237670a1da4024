"""A checkpoint gives back every bit, is whole or absent, and refuses another run's recipe."""

from __future__ import annotations

import json
import os

import pytest
import torch

from mslt_ds.disk import checkpoint
from mslt_ds.disk.checkpoint import CheckpointFolder, TrainingState, check_resumable
from mslt_ds.errors import CheckpointError
from mslt_ds.recipe.loading import parse_recipe


def state_at(step: int) -> TrainingState:
    generator = torch.Generator().manual_seed(step)

    def tensor() -> torch.Tensor:
        return torch.randn(4, 3, generator=generator)

    return TrainingState(
        step=step,
        weights={"a.weight": tensor(), "b.weight": tensor().T},
        optimizer_state={"a.weight": {"exp_avg": tensor(), "exp_avg_sq": tensor(), "step": 7}},
        loss_scale={"cur_scale": 4096.0, "cur_iter": 12},
    )


def recipe(**changes) -> dict:
    return {
        "name": "x",
        "model": {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4},
        "plan": {"method": "mslt", "num_stages": 2, "steps_per_stage": 10, "joint_steps": 5},
        "data": {"path": "somewhere"},
        "train": {"global_batch_size": 8, "micro_batch_size": 4},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    } | changes


def test_every_bit_comes_back(tmp_path):
    saved = state_at(30)
    path = CheckpointFolder(tmp_path, keep=2).save(saved, {})
    loaded = checkpoint.load(path)
    assert (loaded.step, loaded.loss_scale) == (30, saved.loss_scale)
    assert loaded.weights.keys() == saved.weights.keys()
    assert all(torch.equal(loaded.weights[n], t) for n, t in saved.weights.items())
    entry, wanted = loaded.optimizer_state["a.weight"], saved.optimizer_state["a.weight"]
    assert entry["step"] == 7
    assert all(torch.equal(entry[kind], wanted[kind]) for kind in ("exp_avg", "exp_avg_sq"))


def test_latest_counts_steps_and_the_oldest_go(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    assert folder.latest() is None
    for step in (900, 1000, 20000):
        folder.save(state_at(step), {})
    latest = folder.latest()
    assert latest is not None and checkpoint.load(latest).step == 20000
    assert len(list(tmp_path.glob("step_*"))) == 2


def test_a_write_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state_at(1), {})

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        folder.save(state_at(2), {})
    latest = folder.latest()
    assert latest is not None and checkpoint.load(latest).step == 1


def test_what_decides_the_numbers_is_compared_and_named(tmp_path):
    config = parse_recipe(recipe()).config
    path = CheckpointFolder(tmp_path, keep=1).save(
        state_at(1), checkpoint.fingerprint(config, "digest")
    )
    moved = parse_recipe(
        recipe(name="y", output_dir="elsewhere", checkpoint={"every_steps": 3})
        | {"data": {"path": "copied", "num_workers": 4}}
    ).config
    check_resumable(path, checkpoint.fingerprint(moved, "digest"))
    other = parse_recipe(recipe(optimizer={"name": "adamw", "learning_rate": 2e-3})).config
    with pytest.raises(CheckpointError) as caught:
        check_resumable(path, checkpoint.fingerprint(other, "other digest"))
    message = str(caught.value)
    assert "optimizer.learning_rate: 0.002 now, 0.001 in the checkpoint" in message
    assert "data.path" in message
    assert message.count("in the checkpoint") == 2


def test_a_key_that_a_checkpoint_lacks_had_the_value_that_is_now_the_default(tmp_path):
    config = parse_recipe(recipe()).config
    written = checkpoint.fingerprint(config, "digest")
    assert written.pop("data.masking") == "token"
    path = CheckpointFolder(tmp_path, keep=1).save(state_at(1), written)
    check_resumable(path, checkpoint.fingerprint(config, "digest"))
    other = parse_recipe(recipe(data={"path": "store", "masking": "span"})).config
    with pytest.raises(
        CheckpointError, match=r"data\.masking: 'span' now, 'token' in the checkpoint"
    ):
        check_resumable(path, checkpoint.fingerprint(other, "digest"))


def test_values_by_stage_are_compared_one_by_one(tmp_path):
    def digest(**plan):
        return checkpoint.fingerprint(
            parse_recipe(recipe(plan=recipe()["plan"] | plan)).config, "digest"
        )

    written = digest(global_batch_size=[8, 8, 16], masked_lm_prob={"first": 0.3, "last": 0.15})
    path = CheckpointFolder(tmp_path, keep=1).save(state_at(1), written)
    check_resumable(path, written)
    with pytest.raises(CheckpointError) as caught:
        check_resumable(path, digest(global_batch_size=[8, 12, 16]))
    message = str(caught.value)
    assert "plan.global_batch_size.1: 12 now, 8 in the checkpoint" in message
    assert "plan.masked_lm_prob.first: None now, 0.3 in the checkpoint" in message
    assert message.count("in the checkpoint") == 3


def test_a_custom_plan_of_a_version_without_values_by_stage_goes_on(tmp_path):
    stages = [{"depth": 4, "steps": 10, "init": None}]
    plan = {"method": "custom", "stages": stages}
    now = checkpoint.fingerprint(parse_recipe(recipe(plan=plan)).config, "digest")
    older = {key: value for key, value in now.items() if not key.startswith("plan.stages.0.")}
    older["plan.stages"] = [
        {
            key.removeprefix("plan.stages.0."): value
            for key, value in now.items()
            if key.startswith("plan.stages.0.")
            and not key.endswith(("global_batch_size", "masked_lm_prob"))
        }
    ]
    path = CheckpointFolder(tmp_path, keep=1).save(state_at(1), older)
    check_resumable(path, now)
    stages[0]["global_batch_size"] = 16
    other = checkpoint.fingerprint(parse_recipe(recipe(plan=plan)).config, "digest")
    with pytest.raises(
        CheckpointError, match=r"plan\.stages\.0\.global_batch_size: 16 now, None in"
    ):
        check_resumable(path, other)


def test_the_folder_that_a_run_began_with_may_move_but_not_come_and_go(tmp_path):
    def with_folder(folder):
        content = recipe()
        return parse_recipe(content | {"plan": content["plan"] | {"init_from": folder}}).config

    path = CheckpointFolder(tmp_path, keep=1).save(
        state_at(1), checkpoint.fingerprint(with_folder("runs/a/model"), "digest")
    )
    check_resumable(path, checkpoint.fingerprint(with_folder("/disk/runs/a/model"), "digest"))
    with pytest.raises(CheckpointError, match=r"plan\.init_from: None now, 'a folder' in"):
        check_resumable(path, checkpoint.fingerprint(parse_recipe(recipe()).config, "digest"))


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_damage_is_named(tmp_path, file):
    path = CheckpointFolder(tmp_path, keep=1).save(state_at(1), {})
    content = (path / file).read_bytes()
    (path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_only_the_programs_own_names_are_read_and_removed(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state_at(6), {})
    users = ["step_0000000006_keep", "step_best", "step_", "step_0000000009.bak", "notes"]
    for name in users:
        (tmp_path / name).mkdir()
    latest = folder.latest()
    assert latest is not None and latest.name == "step_0000000006"
    for step in (8, 20_000_000_000):  # more digits than the names are padded to
        folder.save(state_at(step), {})
    assert {entry.name for entry in tmp_path.iterdir()} == {*users, "step_20000000000"}


@pytest.mark.parametrize("step", [31, -30, 10**12, 30.5, "30", None])
def test_a_step_that_is_not_the_folders_is_damage(tmp_path, step):
    path = CheckpointFolder(tmp_path, keep=1).save(state_at(30), {})
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(state | {"step": step}))
    for read in (checkpoint.load, lambda path: check_resumable(path, {})):
        with pytest.raises(CheckpointError, match=f"damaged .*says step {step!r}"):
            read(path)


@pytest.mark.parametrize("text", ["[]", "null", "7", "[" * 100_000])
def test_a_state_that_is_no_object_is_damage(tmp_path, text):
    path = CheckpointFolder(tmp_path, keep=1).save(state_at(30), {})
    (path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


def test_all_files_are_as_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        path = CheckpointFolder(tmp_path, keep=1).save(state_at(30), {})
    finally:
        os.umask(before)
    assert {
        file.name: oct(file.stat().st_mode & 0o777) for file in path.iterdir()
    } == dict.fromkeys(("state.json", "weights.safetensors", "optimizer.safetensors"), "0o640")
