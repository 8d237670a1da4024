import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mslt_ds.data.prepare import documents
from mslt_ds.data.prepare.documents import (
    TextCounts,
    TextFile,
    count_characters,
    documents_of_texts,
)
from mslt_ds.data.prepare.json_rows import JsonFile
from mslt_ds.errors import DataError


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> tuple[list[Any], TextCounts]:
    counts = TextCounts()
    return list(TextFile(path).documents(counts)), counts


@pytest.mark.parametrize(
    ("text", "documents"),
    [
        ("", []),
        ("\n\n \n\t\n", []),
        ("\n\none\n\n\n\ntwo\n \nthree", [["one"], ["two"], ["three"]]),
        ("one\r\ntwo\r\n\r\nthree\r\n", [["one", "two"], ["three"]]),
        ("\ufeffone\n", [["one"]]),
        ("  one \t\n", [["one"]]),
        ("a\u2028b\x0bc\x85d\n", [["a\u2028b\x0bc\x85d"]]),  # only \n ends a line
    ],
)
def test_lines(tmp_path: Path, text: str, documents: list[list[str]]):
    assert read(write(tmp_path / "text.txt", text))[0] == documents


paragraphs = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1).filter(
    lambda text: text == text.strip() and not text.startswith("\ufeff")
)


@given(st.lists(st.lists(paragraphs, min_size=1), max_size=5))
def test_what_is_written_is_read(tmp_path_factory, documents):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    text = "\n\n".join("\n".join(document) for document in documents)
    found, counts = read(write(path, text))
    assert found == documents
    assert counts.documents == len(documents)
    assert counts.paragraphs == sum(map(len, documents))
    assert counts.text_bytes == len(text.encode())


def test_single_damaged_paragraphs_are_counted(tmp_path: Path):
    lines = [b"good line"] * 500
    lines[250] = b"d\xe9j\xe0 vu"
    path = write(tmp_path / "text.txt", b"\n".join(lines))
    TextFile(path).check()
    ((*_,), counts) = read(path)
    assert counts.invalid_utf8_paragraphs == 1 and counts.paragraphs == 500


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_refused_before_work_and_while_reading(tmp_path: Path, encoding: str):
    text = "Schöne Wörter für den Ärger mit der Größe, über alles geküßt.\n\n" * 50
    path = write(tmp_path / "text.txt", text.encode(encoding))
    with pytest.raises(DataError, match="text.txt: not UTF-8 text.*iconv"):
        TextFile(path).check()
    late = write(tmp_path / "late.txt", ("good\n" * 300_000).encode() + path.read_bytes() * 100)
    TextFile(late).check()
    with pytest.raises(DataError, match="late.txt: not UTF-8 text"):
        read(late)


def test_a_few_nul_characters_are_no_other_encoding(tmp_path: Path):
    path = write(tmp_path / "text.txt", "Docu\0ment.\n\n" * 20)
    TextFile(path).check()
    found, counts = read(path)
    assert found == [["Docu\0ment."]] * 20 and counts.invalid_utf8_paragraphs == 0
    rows = write(tmp_path / "rows.jsonl", '{"text": "a"}\n{"text": "b"}\0\n')
    with pytest.raises(DataError, match="line 2 isn't JSON"):
        JsonFile(rows).check()


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-16"])
def test_nul_in_every_character_is_another_encoding(tmp_path: Path, encoding: str):
    path = write(tmp_path / "text.txt", "Plain text.\n\n".encode(encoding) * 50)
    with pytest.raises(DataError, match="not UTF-8 text, .* bytes are NUL, as in UTF-16.*iconv -f"):
        TextFile(path).check()


def test_a_character_cut_by_the_look_ahead_is_no_error(tmp_path: Path):
    line = "ä" * (1 << 20)
    TextFile(write(tmp_path / "text.txt", f"good\n{line}x\n")).check()


def test_json_lines_that_are_named_as_text_are_refused(tmp_path: Path):
    """As wikiextractor leaves them."""
    path = write(tmp_path / "wiki_00.gz", gzip.compress(b'{"id": "12", "text": "Text."}\n' * 9))
    with pytest.raises(DataError, match="wiki_00.gz: JSON lines.*rename it to wiki_00.jsonl.gz"):
        TextFile(path).check()


def test_a_document_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "LONGEST_DOCUMENT", 1 << 20)
    path = write(tmp_path / "lines.txt", "a line\n" * 200_000)
    with pytest.raises(DataError, match="reaches line 149797 is longer than 1 MB"):
        read(path)
    path = write(tmp_path / "line.txt", "x" * 2_000_000)
    with pytest.raises(DataError, match="reaches line 1 is longer"):
        read(path)
    assert len(read(write(tmp_path / "fine.txt", "a line\n\n" * 200_000))[0]) == 200_000


def test_characters_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "_CHARACTERS_PER_COUNT", 4)
    counts = count_characters(iter([["ab", "a😀"], ["aé"]]))
    assert {chr(i): int(counts[i]) for i in np.flatnonzero(counts)} == {
        "a": 3, "b": 1, "é": 1, "😀": 1,
    }  # fmt: skip


# ---- texts that are whole documents ---------------------------------------------------------------


def documents_of(*texts: bytes | None) -> tuple[list[Any], TextCounts]:
    counts = TextCounts()
    return list(documents_of_texts("rows", texts, counts, hashlib.sha256())), counts


def test_lines_of_a_text_are_paragraphs_and_blank_ones_part_no_documents():
    found, counts = documents_of(b"One.\nTwo.\n\n\r\n Three. \n", b"Other.")
    assert found == [["One.", "Two.", "Three."], ["Other."]]
    assert (counts.documents, counts.paragraphs, counts.text_bytes) == (2, 4, 28)


def test_texts_without_text_are_counted():
    found, counts = documents_of(None, b"", b" \n\t\n", b"One.")
    assert found == [["One."]]
    assert counts.documents == 1 and counts.empty_documents == 3


def test_damage_in_texts_is_counted_and_another_encoding_refused():
    assert documents_of(*[b"good"] * 200, b"d\xe9j\xe0")[1].invalid_utf8_paragraphs == 1
    assert documents_of(*[b"good"] * 200, b"d\xe9j\xe0")[0][-1] == ["d\ufffdj\ufffd"]
    with pytest.raises(DataError, match="--input: rows: not UTF-8 text, 20 of 60 lines"):
        documents_of(*[b"good\ngood\nd\xe9j\xe0"] * 20)


def test_a_text_that_is_too_long_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "LONGEST_DOCUMENT", 1 << 20)
    with pytest.raises(DataError, match="--input: rows: document 2 is longer than 1 MB; split it"):
        documents_of(b"fine", b"x" * 1_100_000)


def test_the_digest_of_texts_sees_their_borders():
    def digest(*texts: bytes) -> str:
        sha256 = hashlib.sha256()
        list(documents_of_texts("rows", texts, TextCounts(), sha256))
        return sha256.hexdigest()

    assert digest(b"a", b"b") == digest(b"a", b"b")
    assert len({digest(b"ab"), digest(b"a", b"b"), digest(b"a\nb"), digest(b"b", b"a")}) == 4
