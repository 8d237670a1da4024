"""Which words the demo asks its model for."""

from __future__ import annotations

from demo import fill_mask


def test_a_word_is_asked_for_once_and_only_where_its_neighbours_tell_it(monkeypatch):
    monkeypatch.setattr(fill_mask, "COMMON", 0)
    told = "the long name of a {} variable is here always"
    alone = "one needs a {} sometimes to understand it all"
    lines = [told.format("local"), told.format("local") + " too", alone.format("dictionary")]
    asked = list(fill_mask.questions("\n".join(lines), {"local", "dictionary"}, 3))
    assert asked == [(told, "local")]
    assert not list(fill_mask.questions("\n".join(lines), {"dictionary"}, 3))
