import bz2
import gzip
import hashlib
import lzma
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mslt_ds.data import corpus
from mslt_ds.data.corpus import TextCounts, check_inputs, count_characters, read_documents
from mslt_ds.errors import DataError

TEXT = "First. More.\nSecond paragraph.\n\nOther document.\n"
DOCUMENTS = [["First. More.", "Second paragraph."], ["Other document."]]
PACK = {
    ".txt": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path: Path) -> tuple[list[list[str]], TextCounts]:
    counts = TextCounts()
    return list(read_documents(path, counts)), counts


@pytest.mark.parametrize("suffix", PACK)
def test_every_packing_gives_the_same_documents(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"text{suffix}", PACK[suffix](TEXT.encode()))
    check_inputs([path])
    sha256 = hashlib.sha256()
    counts = TextCounts()
    assert list(read_documents(path, counts, sha256)) == DOCUMENTS
    assert counts == TextCounts(documents=2, paragraphs=3, text_bytes=len(TEXT))
    assert sha256.digest() == hashlib.sha256(TEXT.encode()).digest()


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_files_of_several_frames(tmp_path: Path, suffix: str):
    parts = [PACK[suffix](part.encode()) for part in (TEXT, "\n", TEXT)]
    assert read(write(tmp_path / f"text{suffix}", b"".join(parts)))[0] == DOCUMENTS * 2


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_files_that_are_cut_off_or_not_what_they_say(tmp_path: Path, suffix: str):
    noise = np.random.default_rng(0).integers(97, 122, 3_000_000, dtype=np.uint8)
    packed = PACK[suffix](noise.tobytes().replace(b"y", b"\n"))
    path = write(tmp_path / f"cut{suffix}", packed[: len(packed) - 200])
    with pytest.raises(DataError, match=f"cut{suffix}: can't be read .*file is whole"):
        read(path)
    path = write(tmp_path / f"other{suffix}", "this is text as it is, of some length or other")
    with pytest.raises(DataError, match=f"other{suffix}: can't be read .*suffix right"):
        check_inputs([path])


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
    check_inputs([path])
    ((*_,), counts) = read(path)
    assert counts.invalid_utf8_paragraphs == 1 and counts.paragraphs == 500


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_another_encoding_is_refused_before_work_and_while_reading(tmp_path: Path, encoding: str):
    text = "Schöne Wörter für den Ärger mit der Größe, über alles geküßt.\n\n" * 50
    path = write(tmp_path / "text.txt", text.encode(encoding))
    with pytest.raises(DataError, match="text.txt: not UTF-8 text.*iconv"):
        check_inputs([path])
    late = write(tmp_path / "late.txt", ("good\n" * 300_000).encode() + path.read_bytes() * 100)
    check_inputs([late])
    with pytest.raises(DataError, match="late.txt: not UTF-8 text"):
        read(late)


def test_a_character_cut_by_the_look_ahead_is_no_error(tmp_path: Path):
    line = "ä" * (1 << 20)
    check_inputs([write(tmp_path / "text.txt", f"good\n{line}x\n")])


def test_inputs_that_cant_be_read(tmp_path: Path):
    with pytest.raises(DataError, match="--input: no file given"):
        check_inputs([])
    with pytest.raises(DataError, match="nothing.txt: no such file"):
        check_inputs([tmp_path / "nothing.txt"])
    with pytest.raises(DataError, match="not a file; name the files of a folder"):
        check_inputs([tmp_path])
    with pytest.raises(DataError, match="suffix '.docx' is not known.*.txt, .gz"):
        check_inputs([write(tmp_path / "text.docx", "x")])


def test_a_document_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "LONGEST_DOCUMENT", 1 << 20)
    path = write(tmp_path / "lines.txt", "a line\n" * 200_000)
    with pytest.raises(DataError, match="reaches line 149797 is longer than 1 MB"):
        read(path)
    path = write(tmp_path / "line.txt", "x" * 2_000_000)
    with pytest.raises(DataError, match="reaches line 1 is longer"):
        read(path)
    assert len(read(write(tmp_path / "fine.txt", "a line\n\n" * 200_000))[0]) == 200_000


def test_characters_are_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "_CHARACTERS_PER_COUNT", 4)
    counts = count_characters(iter([["ab", "a😀"], ["aé"]]))
    assert {chr(i): int(counts[i]) for i in np.flatnonzero(counts)} == {
        "a": 3, "b": 1, "é": 1, "😀": 1,
    }  # fmt: skip


def test_fingerprints_tell_versions_apart(tmp_path: Path):
    content = bytes(1 << 20)
    path = write(tmp_path / "text.txt", content)
    first = corpus.fingerprint(path)
    assert corpus.fingerprint(write(tmp_path / "copy.txt", content)) == first
    for changed in (content + b"x", b"x" + content[1:], content[:-1] + b"x"):
        assert corpus.fingerprint(write(path, changed)) != first
