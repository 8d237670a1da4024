import pytest

from mslt_ds.data.prepare.segment import check_language, sentences
from mslt_ds.errors import DataError


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


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("zh", ["\u4ed6\u6765\u4e86\u3002", "\u4f60\u597d\u5417\uff1f", "\u6211\u5f88\u597d\uff01"]),
        ("ja", ["\u4eca\u65e5\u306f\u96e8\u3002", "\u660e\u65e5\u306f\uff1f"]),
        ("ar", ["\u0647\u0644 \u0623\u0646\u062a \u0628\u062e\u064a\u0631\u061f ", "\u0646\u0639\u0645."]),
        ("he", ["\u05e9\u05dc\u05d5\u05dd \u05dc\u05db\u05dd. ", "\u05de\u05d4?"]),
        ("hi", ["\u092f\u0939 \u090f\u0915 \u0939\u0948\u0964 ", "\u0926\u0942\u0938\u0930\u093e\u0964"]),
        ("th", ["\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49 ", "\u0e2d\u0e32\u0e01\u0e32\u0e28 ABC \u0e14\u0e35"]),
    ],
)  # fmt: skip
def test_sentences_of_other_scripts(language: str, expected: list[str]):
    assert sentences("".join(expected), language) == [one.strip() for one in expected]


def test_a_language_is_a_code():
    for good in ("en", "gsw", "zh-hant", "pt-br"):
        check_language(good)
    for bad in ("", "English", "../x", "e"):
        with pytest.raises(DataError, match="--language: .*expected a code of two or three"):
            check_language(bad)
