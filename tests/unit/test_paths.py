"""Paths on command lines: `~` is expanded, impossible ones are refused in one line."""

from __future__ import annotations

import pytest

from mslt_ds.cli import main


def test_a_home_folder_is_expanded(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["inspect", "~/store"]) == 2
    assert main(["plan", "--config=~/recipe.yaml"]) == 2
    assert main(["prepare", "--input", "~/none.txt", "--output=~/store"]) == 2
    said = capsys.readouterr().err
    for name in ("store", "recipe.yaml", "none.txt"):
        assert f"{tmp_path}/{name}" in said


@pytest.mark.parametrize("path", ["~no-such-user/x", "n" * 260, "n/" * 2100, "a\0b"])
@pytest.mark.parametrize(
    "command",
    [
        ["inspect"],
        ["status"],
        ["push", "--repo", "owner/name"],
        ["plan", "--config"],
        ["prepare", "--output", "x", "--input"],
        ["prepare", "--output"],
        ["doctor", "--path"],
        ["evaluate", "glue", "--output", "x", "--model", "x", "--data"],
        ["evaluate", "squad", "--version", "2.0", "--train"],
    ],
)
def test_a_path_that_no_file_can_have_is_named(command, path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, path])
    assert ended.value.code == 2
    assert "Traceback" not in (said := capsys.readouterr().err)
    assert any(
        words in said for words in ("no such user", "a name of 260 bytes", "a path of 42", "NUL")
    )
