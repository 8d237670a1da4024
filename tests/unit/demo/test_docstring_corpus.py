"""The demo's corpus: prose in, code and markup out, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo import docstring_corpus as corpus

NUMPYDOC = """Reduce a tensor along one axis.

The result has one dimension less than the input, see :func:`torch.sum` and ``axis``.
A second line of the *same* paragraph.

Parameters
----------
axis : int, optional
    The axis along which the sum is taken.

Examples
--------
This sentence stands among examples and goes.

>>> reduce(x)
The output of a doctest looks like prose.

Notes
-----
Pairwise summation keeps the rounding error small, see [1]_ or the
`manual <https://example.org>`_ for more.

====== ======
Table  cells are no prose at all.
====== ======
"""

GOOGLE = """Loads a model from a folder.

Args:
    path (str): The folder that holds the weights
        of the model.
    strict: Whether a missing weight is an error.

Example:
    This indented sentence belongs to the example.

.. note::
    The file is mapped into memory, not read.

.. code-block:: python

    This is a line of some code.

Use it like this::

    This is another line of code.

- The first item is a full sentence.
- The second one is a sentence too.

```
Fenced lines are not prose either.
```
"""


def prose(docstring: str) -> list[str]:
    return [s for paragraph in corpus.paragraphs(docstring) for s in corpus.sentences(paragraph)]


def test_numpydoc_prose_without_names_examples_and_tables() -> None:
    assert prose(NUMPYDOC) == [
        "Reduce a tensor along one axis.",
        "The result has one dimension less than the input, see sum and axis.",
        "A second line of the same paragraph.",
        "The axis along which the sum is taken.",
        "Pairwise summation keeps the rounding error small, see or the manual for more.",
    ]


def test_google_style_descriptions_without_code() -> None:
    assert prose(GOOGLE) == [
        "Loads a model from a folder.",
        "The folder that holds the weights of the model.",
        "Whether a missing weight is an error.",
        "The file is mapped into memory, not read.",
        "The first item is a full sentence.",
        "The second one is a sentence too.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Too short a line.",
        "no capital letter begins this sentence.",
        "This sentence has no end mark",
        "This one holds x = y + 2 as code.",
        "The get_a_b and set_a_b and del_a_b methods of FooBar.",
    ],
)
def test_what_is_not_prose_is_dropped(text: str) -> None:
    assert list(corpus.sentences(text)) == []


def test_docstrings_in_reading_order_and_nothing_imported() -> None:
    source = '''"""Module."""
raise SystemExit("imported")
class A:
    """Class."""
    def f(self):
        """Method."""
        if self:
            async def g():
                """Inner."""
def h():
    """Function."""
'''
    assert corpus.docstrings(source) == ["Module.", "Class.", "Method.", "Inner.", "Function."]
    assert corpus.docstrings("def broken(:") == []


def write_module(root: Path, name: str, subject: str) -> None:
    lines = [
        f"The {subject} has a sentence about {word}."
        for word in ["ink", "tea", "oil", "sun", "sea"]
    ]
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = "This sentence is the same in every module."
    path.write_text('"""' + "\n\n".join([shared, *lines]) + '\n"""\n', encoding="utf-8")


def test_corpus_is_split_by_document_without_repeats_and_deterministic(tmp_path: Path) -> None:
    root = tmp_path / "root"
    subjects = ["cat", "dog", "cow", "hen", "ant", "bee"]
    for number, subject in enumerate(subjects):
        write_module(root, f"package/m{number}.py", subject)
    write_module(root, "package/tests/test_m.py", "test")
    files = corpus.source_files([root])
    assert [path.name for path in files] == [f"m{number}.py" for number in range(6)]

    outputs = []
    for name in ("a", "b"):
        counts = corpus.write_corpus(
            files, tmp_path / name, max_words=10_000, hold_out_every=3, processes=2
        )
        assert [documents for documents, _ in counts.values()] == [4, 2]
        outputs.append([(tmp_path / name / f).read_bytes() for f in ("train.txt", "heldout.txt")])
    assert outputs[0] == outputs[1]

    train, heldout = (text.decode() for text in outputs[0])
    assert [block.split()[1] for block in heldout.split("\n\n")] == ["cow", "bee"]
    assert (train + heldout).count("This sentence is the same") == 1
    assert len(train.split("\n\n")) == 4


def test_corpus_stops_at_the_cap(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number in range(6):
        write_module(root, f"m{number}.py", f"subject{chr(97 + number)}")
    counts = corpus.write_corpus(
        corpus.source_files([root]), tmp_path, max_words=60, hold_out_every=2, processes=1
    )
    assert sum(documents for documents, _ in counts.values()) == 2
