"""A reader finds the old content or the new, whatever interrupts the writer."""

from __future__ import annotations

import pytest

from mslt_ds import atomic
from mslt_ds.atomic import replace_folder, replace_text


class Killed(BaseException):
    """Stands for a signal: no `except Exception` sees it."""


def fill(path, content: str) -> None:
    with replace_folder(path) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text(content)


def test_folder_takes_its_name_when_complete_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "new" / "model"
    with pytest.raises(FileNotFoundError):
        fill(path, "first")  # the disk is gone
    path.parent.mkdir()
    for content in ("first", "second"):
        fill(path, content)
        assert (path / "sub" / "file").read_text() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["model"]


def test_interrupted_folder_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    fill(path, "first")
    with pytest.raises(Killed), replace_folder(path) as partial:
        (partial / "file").write_text("half")
        assert (path / "sub" / "file").read_text() == "first"
        raise Killed
    assert (path / "sub" / "file").read_text() == "first"


def test_leftovers_of_a_kill_are_not_mixed_in(tmp_path):
    path = tmp_path / "model"
    for leftover in (".model.partial", ".model.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "stale").write_text("x")
    fill(path, "first")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert not (path / "stale").exists()


def test_everything_is_on_disk_before_the_name_is_given(tmp_path, monkeypatch):
    path = tmp_path / "model"
    flushed: list[tuple[str, bool]] = []
    monkeypatch.setattr(atomic, "flush_to_disk", lambda p: flushed.append((p.name, path.exists())))
    fill(path, "first")
    assert flushed == [
        ("sub", False),
        ("file", False),
        (".model.partial", False),
        (tmp_path.name, True),
    ]


def test_text_stays_old_if_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    replace_text(path, "old")

    def fail(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(atomic, "flush_to_disk", fail)
    with pytest.raises(OSError):
        replace_text(path, "new")
    assert path.read_text() == "old"
