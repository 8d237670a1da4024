"""Which words the demo asks its model for."""

from __future__ import annotations

from demo import fill_mask
from tests.unit.evaluation.conftest import save_model


def test_a_word_is_asked_for_once_and_only_where_its_neighbours_tell_it(monkeypatch):
    monkeypatch.setattr(fill_mask, "COMMON", 0)
    told = "the long name of a {} variable is here always"
    alone = "one needs a {} sometimes to understand it all"
    lines = [told.format("local"), told.format("local") + " too", alone.format("dictionary")]
    asked = list(fill_mask.questions("\n".join(lines), {"local", "dictionary"}, 3))
    assert asked == [(told, "local")]
    assert not list(fill_mask.questions("\n".join(lines), {"dictionary"}, 3))


def test_nothing_but_questions_and_answers_is_printed(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(fill_mask, "COMMON", 0)
    text = tmp_path / "text.txt"
    text.write_text("the film is good , and the actor is bad .\n" * 2)
    model = save_model(tmp_path / "model")
    capfd.readouterr()  # what saving prints
    fill_mask.main(["--model", str(model), "--text", str(text)])
    printed, errors = capfd.readouterr()
    assert "____" in printed and len(printed.splitlines()) % 2 == 0
    assert errors == "", "no progress bar of the model's weights"
