from mslt_ds.data.prepare.segment import sentences


def test_sentences_and_abbreviations():
    text = "Dr. Smith paid $3.50 to J. R. Jones, e.g. for tea.  He left!  Did she?"
    assert [piece.strip() for piece in sentences(text)] == [
        "Dr. Smith paid $3.50 to J. R. Jones, e.g. for tea.",
        "He left!",
        "Did she?",
    ]


def test_nothing_is_lost_and_nothing_is_blank():
    text = "One.   Two…   “Three?” Four"
    found = sentences(text)
    assert all(piece.strip() for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert sentences(" ") == []
