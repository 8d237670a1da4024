import bz2
import gzip
import hashlib
import lzma
from pathlib import Path

import numpy as np
import pytest
import zstandard

from mslt_ds.data.prepare.documents import TextCounts, TextFile
from mslt_ds.data.prepare.files import fingerprint
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


@pytest.mark.parametrize("suffix", PACK)
def test_every_packing_gives_the_same_documents(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"text{suffix}", PACK[suffix](TEXT.encode()))
    TextFile(path).check()
    sha256 = hashlib.sha256()
    counts = TextCounts()
    assert list(TextFile(path).documents(counts, sha256)) == DOCUMENTS
    assert counts == TextCounts(documents=2, paragraphs=3, text_bytes=len(TEXT))
    assert sha256.digest() == hashlib.sha256(TEXT.encode()).digest()


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_files_of_several_frames(tmp_path: Path, suffix: str):
    parts = [PACK[suffix](part.encode()) for part in (TEXT, "\n", TEXT)]
    path = write(tmp_path / f"text{suffix}", b"".join(parts))
    assert list(TextFile(path).documents(TextCounts())) == DOCUMENTS * 2


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_files_that_are_cut_off_or_not_what_they_say(tmp_path: Path, suffix: str):
    noise = np.random.default_rng(0).integers(97, 122, 3_000_000, dtype=np.uint8)
    packed = PACK[suffix](noise.tobytes().replace(b"y", b"\n"))
    path = write(tmp_path / f"cut{suffix}", packed[: len(packed) - 200])
    with pytest.raises(DataError, match=f"cut{suffix}: can't be read .*file is whole"):
        list(TextFile(path).documents(TextCounts()))
    path = write(tmp_path / f"other{suffix}", "this is text as it is, of some length or other")
    with pytest.raises(DataError, match=f"other{suffix}: can't be read .*suffix right"):
        TextFile(path).check()


def test_fingerprints_tell_versions_apart(tmp_path: Path):
    content = bytes(1 << 20)
    path = write(tmp_path / "text.txt", content)
    first = fingerprint(path)
    assert fingerprint(write(tmp_path / "copy.txt", content)) == first
    for changed in (content + b"x", b"x" + content[1:], content[:-1] + b"x"):
        assert fingerprint(write(path, changed)) != first
