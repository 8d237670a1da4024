"""Corpora for the tests: of numbers, and of the standard library's docstrings."""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from mslt_ds.data.prepare.command import prepare
from mslt_ds.data.store import Corpus, SpecialTokens, TokenStore

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, mask=4)
VOCAB_SIZE = 1200


def make_corpus(
    documents: list[list[list[int]]],
    vocab_size: int = 100,
    digest: str = "test",
    groups: list[int] | None = None,
) -> Corpus:
    """A corpus from documents of sentences of token numbers; by default each is its own group."""
    sentences = [sentence for document in documents for sentence in document]
    return Corpus(
        np.array([token for sentence in sentences for token in sentence], "<u2"),
        np.cumsum([0, *map(len, sentences)], dtype=np.int64),
        np.cumsum([0, *map(len, documents)], dtype=np.int64),
        np.array(range(len(documents)) if groups is None else groups, np.uint64),
        digest,
        vocab_size,
        SPECIAL,
    )


def docstring_documents(most_modules: int) -> list[list[str]]:
    """Paragraphs of docstrings, a document for each of the standard library's larger modules."""
    documents = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:most_modules]:
        paragraphs = []
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = inspect.cleandoc(ast.get_docstring(node) or "")
                paragraphs += [re.sub(r"\s+", " ", part) for part in text.split("\n\n")]
        paragraphs = [part.strip() for part in paragraphs if len(part) > 40]
        if len(paragraphs) > 3:
            documents.append(paragraphs)
    return documents


def as_text(documents: list[list[str]]) -> str:
    return "\n\n".join("\n".join(document) for document in documents) + "\n"


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English text, over 100 documents."""
    path = tmp_path_factory.mktemp("text") / "docstrings.txt"
    path.write_text(as_text(docstring_documents(1000)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def store_path(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the text. Not to be written to."""
    path = tmp_path_factory.mktemp("stores") / "docstrings"
    prepare([text_file], path, vocab_size=VOCAB_SIZE, workers=1)
    return path


@pytest.fixture(scope="session")
def store(store_path: Path) -> TokenStore:
    return TokenStore.open(store_path)


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
