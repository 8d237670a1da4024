"""The token store: a corpus as token numbers with sentence and document boundaries.

A folder of flat files that are memory-mapped, so that opening costs nothing and all processes of
a machine share the pages:

    manifest.json     what is here and what it was made of; written last, so that it's there only
                      if everything else is
    prepare.json      figures of the preparation: times, counts, speed; says nothing about content
    tokens.bin        (num_tokens,) uint16, or uint32 above 65,536 tokens, little-endian
    sentences.bin     (num_sentences + 1,) int64: where each sentence begins in tokens.bin
    documents.bin     (num_documents + 1,) int64: where each document begins in sentences.bin
    groups.bin        (num_documents,) uint64: equal for documents of equal text
    token_counts.bin  (vocab_size,) int64: how often each token occurs
    tokenizer/        a folder that `AutoTokenizer` loads

Notable: the digest is over the content (vocabulary, tokens, boundaries, groups) alone. Everything
that is drawn while training is seeded by it, so the same corpus gives the same instances wherever it
lies and however it was made. A document that a source's weight repeats lies there once for each time,
with masks and cuts of its own; its copies are a group, so that what has to come from another document
doesn't come from a copy.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mslt_ds.errors import DataError

FORMAT = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
TOKENS, SENTENCES = "tokens.bin", "sentences.bin"
DOCUMENTS, GROUPS, TOKEN_COUNTS = "documents.bin", "groups.bin", "token_counts.bin"
ARRAYS = (TOKENS, SENTENCES, DOCUMENTS, GROUPS, TOKEN_COUNTS)
MANIFEST_KEYS = (
    "digest", "vocabulary_digest", "vocab_size", "special_tokens", "num_documents",
    "num_sentences", "num_tokens", "checksums",
)  # fmt: skip


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
    """What instances are made of. Sentence s is tokens[sentences[s]:sentences[s + 1]], document d
    the sentences documents[d] to documents[d + 1]; none is empty. Documents of equal text, and no
    others, have an equal groups[d]; there are at least two groups.

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

    @classmethod
    def open(cls, path: str | Path) -> TokenStore:
        """The store at `path`; DataError where there is none or it's damaged.

        Checks the files' sizes; `verify` reads them too.
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
        """Whether a token number means the same in both stores."""
        return self.manifest["vocabulary_digest"] == other.manifest["vocabulary_digest"]

    @cached_property
    def token_counts(self) -> np.ndarray:
        """How often each token occurs, (vocab_size,) int64."""
        return _map(self.path / TOKEN_COUNTS, np.dtype("<i8"), self.vocab_size)

    def unigram_entropy(self) -> float:
        """Nats per token: the loss of a model that knows how frequent tokens are, and no more."""
        shares = self.token_counts[self.token_counts > 0] / self.num_tokens
        return float(-(shares * np.log(shares)).sum())

    def verify(self) -> None:
        """Read every file; DataError that names the first whose checksum isn't the manifest's."""
        for name, checksum in self.manifest["checksums"].items():
            found = file_digest(self.path / name)
            if found != checksum:
                raise DataError(
                    f"{self.path / name}: damaged, its sha256 is {found[:16]}… and "
                    f"{MANIFEST} says {checksum[:16]}…; prepare the store again"
                )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the store at `path`; DataError where there is none or it can't be read."""
    if not path.exists():
        raise DataError(
            f"{path}: no such token store; make it with `mslt-ds prepare --output {path}`"
        )
    if not path.is_dir():
        raise DataError(f"{path}: a file; expected the folder that `mslt-ds prepare` wrote")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no {MANIFEST} here, so this isn't a token store, or its preparation was "
            "interrupted; run the same `mslt-ds prepare` again"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path / MANIFEST}: can't be read ({error}); prepare the store again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else manifest
        raise DataError(
            f"{path / MANIFEST}: format {found!r}, but this version reads format {FORMAT}; "
            "prepare the store again"
        )
    if missing := [key for key in MANIFEST_KEYS if key not in manifest]:
        raise DataError(
            f"{path / MANIFEST}: damaged, it lacks {', '.join(missing)}; prepare the store again"
        )
    return manifest


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
    # A plain array over the mapping: compiled code knows no subclass.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(length,)))
