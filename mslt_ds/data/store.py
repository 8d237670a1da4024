"""The token store: a corpus as token ids with sentence and document boundaries.

A store is a folder of flat files. They are memory-mapped, so opening is cheap and all processes of a
machine share the pages:

    manifest.json     the content and its sources; written last, so that it exists only if everything
                      else does
    prepare.json      figures of the preparation (times, counts, speed), which training doesn't read
    tokens.bin        (num_tokens,) uint16, or uint32 above 65,536 tokens, little-endian
    sentences.bin     (num_sentences + 1,) int64: where each sentence begins in tokens.bin
    documents.bin     (num_documents + 1,) int64: where each document begins in sentences.bin
    groups.bin        (num_documents,) uint64: equal for documents of equal text
    token_counts.bin  (vocab_size,) int64: how often each token occurs
    tokenizer/        a folder that `AutoTokenizer` loads

The digest covers the content alone: vocabulary, tokens, boundaries, groups. It seeds everything that
training draws, so the same corpus gives the same instances wherever it lies and however it was made.

A document that a weight repeats is stored once for each repetition, and each copy gets masks and cuts
of its own. The copies form a group, so that a sentence that has to come from another document doesn't
come from a copy.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mslt_ds.errors import DataError
from mslt_ds.json_object import read_object

FORMAT = 2
_MOST = 1 << 48  # tokens; the index of an epoch has room for as many sentences
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
TOKENS, SENTENCES = "tokens.bin", "sentences.bin"
DOCUMENTS, GROUPS, TOKEN_COUNTS = "documents.bin", "groups.bin", "token_counts.bin"
ARRAYS = (TOKENS, SENTENCES, DOCUMENTS, GROUPS, TOKEN_COUNTS)
MANIFEST_KEYS = (
    "digest", "vocabulary_digest", "vocab_size", "special_tokens", "num_documents",
    "num_sentences", "num_tokens", "checksums",
)  # fmt: skip


_VERIFIED_AT_ONCE = 1 << 28  # bytes
_OFFSETS_AT_ONCE = 1 << 20


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(vocabulary_digest: str, checksums: dict[str, str]) -> str:
    """The digest of a store's content, in hexadecimal digits."""
    content = (TOKENS, SENTENCES, DOCUMENTS, GROUPS)
    parts = [vocabulary_digest] + [checksums[name] for name in content]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that instances are framed and masked with."""

    pad: int
    cls: int
    sep: int
    mask: int


@dataclass(frozen=True)
class Corpus:
    """The arrays that instances are built from.

    Sentence s is tokens[sentences[s]:sentences[s + 1]], document d consists of the sentences
    documents[d] to documents[d + 1] (excluded), and none is empty. groups[d] is equal for documents
    of equal text only; there are at least two groups.

    tokens: (num_tokens,) uint16 or uint32; sentences: (num_sentences + 1,) int64;
    documents: (num_documents + 1,) int64; groups: (num_documents,) uint64
    """

    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    groups: np.ndarray
    digest: str
    vocab_size: int
    special: SpecialTokens


@dataclass(frozen=True)
class TokenStore:
    """A prepared corpus, memory-mapped."""

    path: Path
    manifest: dict[str, Any]
    corpus: Corpus
    _damage: list[DataError] = field(default_factory=list, compare=False)

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """The store at `path`; DataError if there is none or it is damaged.

        This checks the sizes of the files and all offsets; `verify` checks all of their content.
        """
        path = Path(path)
        manifest = read_manifest(path)
        dtypes = {
            TOKENS: (token_dtype(manifest["vocab_size"]), manifest["num_tokens"]),
            SENTENCES: (np.dtype("<i8"), manifest["num_sentences"] + 1),
            DOCUMENTS: (np.dtype("<i8"), manifest["num_documents"] + 1),
            GROUPS: (np.dtype("<u8"), manifest["num_documents"]),
        }
        tokens, sentences, documents, groups = (
            _map(path / name, dtype, length) for name, (dtype, length) in dtypes.items()
        )
        # Compiled code follows these without looking.
        _check_offsets(path / DOCUMENTS, documents, manifest["num_sentences"])
        _check_offsets(path / SENTENCES, sentences, manifest["num_tokens"])
        corpus = Corpus(
            tokens, sentences, documents, groups,
            manifest["digest"], manifest["vocab_size"], SpecialTokens(**manifest["special_tokens"]),
        )  # fmt: skip
        return cls(path, manifest, corpus)

    @property
    def digest(self) -> str:
        return self.manifest["digest"]

    @property
    def vocab_size(self) -> int:
        return self.manifest["vocab_size"]

    @property
    def tokenizer_dir(self) -> Path:
        return self.path / TOKENIZER

    @property
    def num_documents(self) -> int:
        return self.manifest["num_documents"]

    @property
    def num_sentences(self) -> int:
        return self.manifest["num_sentences"]

    @property
    def num_tokens(self) -> int:
        return self.manifest["num_tokens"]

    def same_vocabulary(self, other: TokenStore) -> bool:
        """Whether both stores have the same tokens with the same ids."""
        return self.manifest["vocabulary_digest"] == other.manifest["vocabulary_digest"]

    @cached_property
    def token_counts(self) -> np.ndarray:
        """How often each token occurs, (vocab_size,) int64."""
        return _map(self.path / TOKEN_COUNTS, np.dtype("<i8"), self.vocab_size)

    def unigram_entropy(self) -> float:
        """The entropy of the token frequencies in nats per token: the loss of a unigram model."""
        shares = self.token_counts[self.token_counts > 0] / self.num_tokens
        return float(-(shares * np.log(shares)).sum())

    def verify_at_start(self) -> None:
        """`verify`, in the background where the store is large: then `check` raises what it finds."""
        if self.corpus.tokens.nbytes + self.corpus.sentences.nbytes <= _VERIFIED_AT_ONCE:
            self.verify()
        else:
            threading.Thread(target=self._verify, name="mslt-verify", daemon=True).start()

    def _verify(self) -> None:
        try:
            self.verify()
        except DataError as error:
            self._damage.append(error)

    def check(self) -> None:
        """DataError if the verification has found damage so far."""
        if self._damage:
            raise self._damage[0]

    def verify(self, names: Collection[str] = ARRAYS) -> None:
        """Read the files; DataError names the first one whose checksum differs from the manifest."""
        for name in names:
            checksum = self.manifest["checksums"][name]
            try:
                found = file_digest(self.path / name)
            except OSError as error:
                raise DataError(
                    f"{self.path / name}: can't be read ({error.strerror or error}); check the disk, or "
                    "prepare the store again"
                ) from error
            if found != checksum:
                raise DataError(
                    f"{self.path / name}: damaged, its sha256 is {found[:16]}… and "
                    f"{MANIFEST} says {checksum[:16]}…; prepare the store again"
                )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the store at `path`; DataError if it is missing or can't be read."""
    if not path.exists():
        raise DataError(
            f"{path}: no such token store; make it with `mslt-ds prepare --output {path}`"
        )
    if not path.is_dir():
        raise DataError(f"{path}: a file; expected the folder that `mslt-ds prepare` wrote")
    try:
        manifest = read_object(path / MANIFEST)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no {MANIFEST} here, so this isn't a token store, or its preparation was "
            "interrupted; run the same `mslt-ds prepare` again"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path / MANIFEST}: can't be read ({error}); prepare the store again"
        ) from error
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path / MANIFEST}: format {manifest.get('format')!r}, but this version reads format {FORMAT}; "
            "prepare the store again"
        )
    if missing := [key for key in MANIFEST_KEYS if key not in manifest]:
        raise DataError(
            f"{path / MANIFEST}: damaged, it lacks {', '.join(missing)}; prepare the store again"
        )
    if wrong := list(_wrong_values(manifest)):
        raise DataError(
            f"{path / MANIFEST}: damaged, {wrong[0]} isn't what `mslt-ds prepare` writes; prepare the "
            "store again"
        )
    return manifest


def _wrong_values(manifest: dict[str, Any]) -> Iterator[str]:
    """The keys whose values can't be right. Paths are made of the checksums' names, memory is mapped by the
    numbers."""

    def is_count(value: object, low: int, high: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value < high

    for key in ("vocab_size", "num_documents", "num_sentences", "num_tokens"):
        if not is_count(manifest[key], 1, _MOST):
            yield key
            return
    for key in ("digest", "vocabulary_digest"):
        if not isinstance(manifest[key], str):
            yield key
    special, checksums = manifest["special_tokens"], manifest["checksums"]
    if not (
        isinstance(special, dict)
        and special.keys() == {field.name for field in fields(SpecialTokens)}
        and all(is_count(number, 0, manifest["vocab_size"]) for number in special.values())
    ):
        yield "special_tokens"
    if not (
        isinstance(checksums, dict)
        and checksums.keys() == set(ARRAYS)
        and all(isinstance(checksum, str) for checksum in checksums.values())
    ):
        yield "checksums"
    sources = manifest.get("sources", [])
    if not (
        isinstance(sources, list)
        and all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in sources)
    ):
        yield "sources"


def _check_offsets(path: Path, offsets: np.ndarray, end: int) -> None:
    """DataError unless `offsets` rise from 0 to `end`."""
    rises = offsets[0] == 0 and offsets[-1] == end
    for first in range(0, len(offsets) - 1, _OFFSETS_AT_ONCE):
        part = offsets[first : first + _OFFSETS_AT_ONCE + 1]
        rises = rises and bool((part[1:] > part[:-1]).all())
    if not rises:
        raise DataError(
            f"{path}: damaged, its offsets don't rise from 0 to {end}; prepare the store again"
        )


def _map(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    expected = length * dtype.itemsize
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path}: missing; prepare the store again") from None
    if found != expected:
        raise DataError(
            f"{path}: damaged, {found} bytes instead of {expected}; prepare the store again"
        )
    # Compiled code takes plain arrays only, no subclass such as np.memmap.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(length,)))
