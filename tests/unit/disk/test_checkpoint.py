"""A checkpoint gives back every bit, is whole or passed over, and refuses another run's recipe."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mslt_ds.disk import checkpoint, manifest
from mslt_ds.disk.checkpoint import CheckpointFolder, TrainingState, check_resumable
from mslt_ds.disk.manifest import DamageError
from mslt_ds.errors import CheckpointError, EnvironmentProblem
from mslt_ds.recipe.loading import parse_recipe

SHAPES = {"a.weight": (4, 3), "b.weight": (3, 4)}
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def shapes_after(step: int) -> checkpoint.Shapes | None:
    """Of a plan of 30,000 steps."""
    return SHAPES if step <= 30_000 else None


def load(path: Path) -> TrainingState:
    return checkpoint.load(path, shapes_after)


def newest(folder: CheckpointFolder) -> str | None:
    state = folder.read_newest(load)
    return state and f"step_{state.step:010}"


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
    loaded = load(path)
    assert (loaded.step, loaded.loss_scale) == (30, saved.loss_scale)
    assert loaded.weights.keys() == saved.weights.keys()
    assert all(torch.equal(loaded.weights[n], t) for n, t in saved.weights.items())
    entry, wanted = loaded.optimizer_state["a.weight"], saved.optimizer_state["a.weight"]
    assert entry["step"] == 7
    assert all(torch.equal(entry[kind], wanted[kind]) for kind in ("exp_avg", "exp_avg_sq"))


def test_latest_counts_steps_and_the_oldest_go(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    assert newest(folder) is None
    for step in (900, 1000, 20000):
        folder.save(state_at(step), {})
    assert newest(folder) == "step_0000020000"
    assert len(list(tmp_path.glob("step_*"))) == 2


def test_a_write_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state_at(1), {})

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_tensors", full)
    with pytest.raises(OSError, match="no space"):
        folder.save(state_at(2), {})
    assert newest(folder) == "step_0000000001"


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


def test_those_of_each_keep_everyth_step_stay(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2, keep_every=20)
    for step in range(10, 80, 10):
        folder.save(state_at(step), {})
    steps = sorted(int(path.name.removeprefix("step_")) for path in tmp_path.iterdir())
    assert steps == [20, 40, 60, 70]


FROZEN = "frozen.safetensors"


def test_what_is_frozen_is_written_once_and_stays_as_long_as_it_is_needed(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    whole = state_at(10)
    frozen = whole.without({"b.weight"})
    paths = []
    for step in (10, 20, 30):
        changed = state_at(step).weights["b.weight"]
        state = replace(whole, step=step, weights=whole.weights | {"b.weight": changed})
        paths.append(folder.save(state, {}, frozen))
        loaded = load(paths[-1])
        assert torch.equal(loaded.weights["a.weight"], whole.weights["a.weight"])
        assert torch.equal(loaded.weights["b.weight"], changed)
        assert loaded.optimizer_state.keys() == {"a.weight"}
        assert torch.equal(
            loaded.optimizer_state["a.weight"]["exp_avg"],
            whole.optimizer_state["a.weight"]["exp_avg"],
        )
    assert not paths[0].exists()
    assert (paths[1] / FROZEN).samefile(paths[2] / FROZEN)
    flip(paths[2] / FROZEN, -5)
    assert folder.read_newest(load) is None  # both have the file
    # Another engine's: nothing says that it is the same.
    other = folder.save(whole, {}, whole.without({"b.weight"}))
    assert (other / FROZEN).stat().st_nlink == 1 and load(other).step == 10


def test_without_hard_links_what_is_frozen_is_written_again(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError("Operation not permitted")

    folder = CheckpointFolder(tmp_path, keep=2)
    monkeypatch.setattr(os, "link", link)
    for step in (10, 20):
        whole = state_at(10)
        frozen = whole.without({"b.weight"})
        assert load(folder.save(replace(whole, step=step), {}, frozen)).step == step


def test_only_the_programs_own_names_are_read_and_removed(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save(state_at(6), {})
    users = ["step_0000000006_keep", "step_best", "step_", "step_0000000009.bak", "notes"]
    for name in users:
        (tmp_path / name).mkdir()
    assert newest(folder) == "step_0000000006"
    for step in (8, 20_000_000_000):  # more digits than the names are padded to
        folder.save(state_at(step), {})
    assert {entry.name for entry in tmp_path.iterdir()} == {*users, "step_20000000000"}


def test_a_checkpoint_that_was_moved_and_linked_takes_its_turn(tmp_path):
    """And its data stays where it was moved; a file isn't taken for a checkpoint."""
    folder, elsewhere = CheckpointFolder(tmp_path / "checkpoints", keep=1), tmp_path / "elsewhere"
    folder.save(state_at(2), {}).rename(elsewhere)
    (folder.path / "step_0000000002").symlink_to(elsewhere)
    (folder.path / "step_0000000001").write_text("")
    assert newest(folder) == "step_0000000002"
    for step in (4, 6):
        folder.save(state_at(step), {})
    assert {one.name for one in folder.path.iterdir()} == {"step_0000000001", "step_0000000006"}
    assert (elsewhere / "state.json").is_file()


def test_all_files_are_as_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        path = CheckpointFolder(tmp_path, keep=1).save(state_at(30), {})
    finally:
        os.umask(before)
    assert {
        file.name: oct(file.stat().st_mode & 0o777) for file in path.iterdir()
    } == dict.fromkeys((STATE, WEIGHTS, OPTIMIZER, manifest.MANIFEST), "0o640")


# ---- damage ----------------------------------------------------------------------------------


def forge(path: Path) -> None:
    """Make the manifest describe the files as they are: what is wrong is what was written."""
    manifest.write(path, (WEIGHTS, OPTIMIZER, STATE))


def change_state(path: Path, **changes: object) -> None:
    state = json.loads((path / STATE).read_text())
    (path / STATE).write_text(json.dumps(state | changes))


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def change_tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]):
    def apply(path: Path) -> None:
        tensors = load_file(path / file)
        change(tensors)
        save_file(tensors, path / file)
        forge(path)

    return apply


def forged_state(**changes: object):
    def apply(path: Path) -> None:
        change_state(path, **changes)
        forge(path)

    return apply


def write_state(text: str):
    def apply(path: Path) -> None:
        (path / STATE).write_text(text)
        forge(path)

    return apply


MOMENT = "exp_avg/a.weight"
DAMAGE = {
    **{f"{file} is cut": (lambda path, f=file: cut(path / f), f"{file}: ")
       for file in (WEIGHTS, OPTIMIZER, STATE, manifest.MANIFEST)},
    **{f"{file} is missing": (lambda path, f=file: (path / f).unlink(), "")
       for file in (WEIGHTS, OPTIMIZER, STATE, manifest.MANIFEST)},
    **{f"{file} is empty": (lambda path, f=file: (path / f).write_bytes(b""), "")
       for file in (WEIGHTS, OPTIMIZER, STATE, manifest.MANIFEST)},
    "weights have a flipped bit": (lambda path: flip(path / WEIGHTS, -5), "sha256"),
    "moments have a flipped bit": (lambda path: flip(path / OPTIMIZER, -5), "sha256"),
    "the state has a flipped bit": (lambda path: flip(path / STATE, 30), "sha256"),
    "a weight is missing": (change_tensors(WEIGHTS, lambda t: t.pop("a.weight")), "a.weight is missing"),
    "a moment is missing": (change_tensors(OPTIMIZER, lambda t: t.pop(MOMENT)), f"{MOMENT} is missing"),
    "a weight too many": (change_tensors(WEIGHTS, lambda t: t.update(c=torch.ones(1))), "has no c"),
    "another shape": (
        change_tensors(WEIGHTS, lambda t: t.update({"a.weight": torch.ones(3, 4)})), "of shape (3, 4)"
    ),
    "another dtype": (
        change_tensors(OPTIMIZER, lambda t: t.update({MOMENT: torch.ones(4, 3).half()})), "float16"
    ),
    "not finite": (
        change_tensors(WEIGHTS, lambda t: t["a.weight"][0].fill_(float("nan"))), "aren't finite"
    ),
    "no safetensors": (
        lambda path: ((path / WEIGHTS).write_bytes(b"x" * 99), forge(path)), ""
    ),
    **{f"state {text[:10]}": (write_state(text), STATE) for text in ("[]", "null", "7", "[" * 100_000, "{}")},
    **{f"step {step!r}": (forged_state(step=step), "step")
       for step in (31, -30, 10**12, 10**30, 30.5, "30", None, True)},
    **{f"{key} {value!r}": (forged_state(**{key: value}), key) for key, value in (
        ("loss_scale", 4), ("loss_scale", {"__class__": 1}), ("loss_scale", {"cur_scale": "big"}),
        ("passed_over", {"x": []}), ("passed_over", {"32": [[1]]}), ("passed_over", [[1, 2]]),
        ("optimizer_steps", {"a.weight": -1}), ("optimizer_steps", []), ("fingerprint", None),
        ("format", "2"), ("format", None),
    )},
    "moments of another parameter": (forged_state(optimizer_steps={"c": 7}), "no parameter c"),
    "no moments": (forged_state(optimizer_steps={}), "has no exp_avg"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_named_moved_aside_and_passed_over(tmp_path, name, caplog):
    damage, reason = DAMAGE[name]
    folder = CheckpointFolder(tmp_path, keep=5)
    good, bad = (folder.save(state_at(step), {}) for step in (20, 30))
    damage(bad)
    loaded = folder.read_newest(load)
    assert loaded is not None and loaded.step == 20
    assert good.exists() and not bad.exists()
    (found,) = folder.damaged
    assert found.path == bad and reason in found.reason
    assert found.moved_to == tmp_path / "damaged" / bad.name and found.moved_to.is_dir()
    assert str(bad) in caplog.text and found.reason in caplog.text


def test_damage_of_the_small_file_is_found_before_anything_is_loaded(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=5)
    folder.save(state_at(20), {})
    cut(folder.save(state_at(30), {}) / STATE)
    assert (
        folder.read_newest(lambda path: check_resumable(path, {}) or path.name) == "step_0000000020"
    )


def test_a_step_after_the_plans_end_is_damage(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=5)
    folder.save(state_at(40_000), {})
    assert folder.read_newest(load) is None
    assert folder.damaged[0].reason == "state.json: the plan ends before step 40000"


def test_the_same_step_damaged_twice_is_kept_twice(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=5)
    for _ in range(3):
        cut(folder.save(state_at(30), {}) / WEIGHTS)
        assert folder.read_newest(load) is None
    names = [entry.name for entry in sorted((tmp_path / "damaged").iterdir())]
    assert names == ["step_0000000030", "step_0000000030.2", "step_0000000030.3"]


def test_a_disk_that_cant_be_reached_is_no_damage(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path, keep=5)
    path = folder.save(state_at(30), {})

    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(checkpoint, "load_file", stale)
    with pytest.raises(EnvironmentProblem, match="Stale file handle.*check the disk"):
        folder.read_newest(load)
    assert path.exists()

    def lost_sector(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "load_file", lost_sector)
    assert folder.read_newest(load) is None
    assert folder.damaged[0].reason == "[Errno 5] Input/output error"


def test_a_checkpoint_of_a_version_without_checksums_is_read_with_a_note(tmp_path, caplog):
    path = CheckpointFolder(tmp_path, keep=5).save(state_at(30), {})
    (path / manifest.MANIFEST).unlink()
    change_state(path, format=1)
    with caplog.at_level(logging.WARNING):
        assert load(path).step == 30
    assert "without checksums" in caplog.text


def test_the_format_of_a_later_version_is_no_damage(tmp_path):
    path = CheckpointFolder(tmp_path, keep=5).save(state_at(30), {})
    forged_state(format=99)(path)
    with pytest.raises(CheckpointError, match="format 99, this version reads 2"):
        load(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    file=st.sampled_from([WEIGHTS, OPTIMIZER, STATE, manifest.MANIFEST]),
    position=st.integers(0, 10**6),
    content=st.binary(min_size=1, max_size=8),
    is_forged=st.booleans(),
)
def test_whatever_the_bytes_say_it_is_damage_or_the_state(
    tmp_path, file, position, content, is_forged
):
    path = CheckpointFolder(tmp_path, keep=1).save(state_at(30), {"key": "value"})
    before = (path / file).read_bytes()
    at = position % len(before)
    after = (before[:at] + content + before[at + len(content) :])[: len(before)]
    (path / file).write_bytes(after)
    if is_forged:
        forge(path)
    try:
        loaded = load(path)
    except (DamageError, CheckpointError):
        return
    if file == manifest.MANIFEST or is_forged or after == before:
        assert loaded.step == 30
    else:
        pytest.fail("a changed byte was not noticed")
