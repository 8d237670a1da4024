"""Makes a corpus of English prose from the docstrings of the Python installation.

Parses the source of the standard library and of the installed packages with `ast` (nothing is
imported), extracts the prose of module, class and function docstrings, and writes it in the format
that `mslt-ds prepare` reads: one paragraph on each line, a blank line between documents, one document
for each module. Code, doctests, tables, names and markup are dropped. A sentence is kept once, so no
held-out sentence occurs in the training text. The same packages give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import multiprocessing
import re
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

SKIPPED_FOLDERS = {"__pycache__", "site-packages", "test", "tests", "testing"}
# Sections under these headings hold code, names or citations.
SKIPPED_SECTIONS = {
    "bibliography", "copyright", "example", "examples", "methods", "references", "see also",
    "shape", "shapes", "usage",
}  # fmt: skip
# reStructuredText directives with prose inside; the content of all others is dropped.
PROSE_DIRECTIVES = {
    "admonition", "attention", "caution", "danger", "deprecated", "hint", "important", "note",
    "seealso", "tip", "versionadded", "versionchanged", "warning",
}  # fmt: skip
MAX_FILE_BYTES = 1_000_000
MIN_SENTENCES_PER_DOCUMENT = 5
MIN_WORDS_PER_SENTENCE, MAX_WORDS_PER_SENTENCE = 5, 80
MIN_SHARE_OF_PLAIN_WORDS = 0.8

_UNDERLINE = re.compile(r"^([=\-~^\"'`#*+.:_])\1{2,}$")
_TABLE = re.compile(r"^[+|]|^(=+|-+)(\s+(=+|-+))+$|\s\|\s")
_SECTION = re.compile(r"^#*\s*([A-Za-z ]+?)\s*:{0,2}$")
_DIRECTIVE = re.compile(r"^\.\.\s+([\w-]+)::(.*)$")
# ":param x: text", "x (int, optional): text", "- **x** (`int`) -- text": the text is prose.
_FIELD = re.compile(r"^(?:[:@]\w[^:`]*:(?!`)|\*{0,2}\w+(?: ?\([^)]*\))?(?::| --))\s")
_NUMPYDOC_NAME = re.compile(r"^[*\w, ]+ : \S")
_BULLET = re.compile(r"^([-*+•]|\(?[0-9a-zA-Z]{1,2}[.)])\s+")
_INLINE = (
    (re.compile(r":[\w:+.-]+:`([^`<]+?)\s*<[^`>]*>`"), r"\1"),  # :ref:`text <target>`
    (re.compile(r":[\w:+.-]+:`[~!]?(?:[\w.]+\.)?([^`]+)`"), r"\1"),  # :class:`~a.b.Name`
    (re.compile(r"`([^`<]+?)\s*<[^`>]+>`__?"), r"\1"),  # `text <address>`_
    (re.compile(r"\[`?~?(?:\w+\.)*([^\]`]+)`?\]\([^)]*\)"), r"\1"),  # [text](address)
    (re.compile(r"\[`~?(?:\w+\.)*([^\]`]+)`\]"), r"\1"),  # [`Name`]
    (re.compile(r"``?([^`]+)``?_{0,2}"), r"\1"),
    (re.compile(r"\[[0-9#][^\]]*\]_?"), ""),  # citations
    (re.compile(r"\*\*([^*\s][^*]*)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)\*([^*\s][^*]*)\*(?!\w)"), r"\1"),
    (re.compile(r"<?\b(?:https?|ftp)://\S+"), ""),
    (re.compile(r"\\ "), ""),
)
_SENTENCE_END = re.compile(r"(?<=[a-z0-9)\"'][.!?])\s+(?=[\"'(]?[A-Z])")
_PLAIN_WORD = re.compile(r"^[\"'(]*[A-Za-z]?[a-z]*(?:['’-][A-Za-z][a-z]*)*[\"')]*[,.;:!?]*[\"')]*$")
_CODE = re.compile(r"[=<>{}\\|@$^~]|::|__|->|\$|\(\)\s*\(|[\[\]]")


def source_files(roots: Iterable[Path], folders: Iterable[str] = ("",)) -> list[Path]:
    """Python files below `roots`, without tests, sorted by their paths inside the root.

    folders: of each root, that are read
    """
    files: dict[str, Path] = {}
    for root, folder in itertools.product(roots, folders):
        for path in (root / folder).rglob("*.py"):
            relative = path.relative_to(root)
            if not SKIPPED_FOLDERS.intersection(relative.parts[:-1]):
                files.setdefault(relative.as_posix(), path)
    return [files[name] for name in sorted(files)]


def docstrings(source: str) -> list[str]:
    """All docstrings of a module in reading order, indentation cleaned; [] if it doesn't parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's source
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                found.append(inspect.cleandoc(text))
        # Docstrings occur in blocks of statements only: expressions, most of a tree, are skipped.
        for field in ("handlers", "orelse", "body"):
            block = getattr(node, field, None)
            if isinstance(block, list):  # the body of a lambda is an expression
                pending.extend(reversed(block))
    return found


def paragraphs(docstring: str) -> Iterator[str]:
    """The paragraphs of one docstring, markup and code removed, one line each."""
    lines = docstring.expandtabs().splitlines()
    kept: list[str] = []  # the lines of the current paragraph
    margin = 0  # its indentation
    hanging = False  # it began with a bullet or a name: deeper lines continue it
    code_below: int | None = None  # lines indented deeper than this are code
    skip_section = skip_block = in_fence = False
    for line, following in itertools.pairwise([*lines, ""]):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if text.startswith(("```", "~~~")):
            in_fence = not in_fence
            text = ""
        elif in_fence:
            continue
        if text and code_below is not None:
            if indent > code_below:
                continue
            code_below = None
        section = _SECTION.match(text)
        is_heading = bool(_UNDERLINE.match(following.strip())) or text.startswith("#")
        directive = _DIRECTIVE.match(text)
        if section and section[1].lower() in SKIPPED_SECTIONS:
            skip_section, text = is_heading, ""
            code_below = None if is_heading else indent
        elif is_heading:
            skip_section, text = False, ""
        elif directive:
            prose = directive[1] in PROSE_DIRECTIVES
            text = directive[2].strip() if prose else ""
            code_below = None if prose else indent
        elif text.startswith((">>>", "..", "In [")) or _TABLE.search(text):
            skip_block = True  # a doctest with its output, a comment or a target, a table
        elif _UNDERLINE.match(text) or _NUMPYDOC_NAME.match(text):
            text = ""

        starts_item = bool(_BULLET.match(text) or _FIELD.match(text))
        if not text or starts_item or (indent != margin and not (hanging and indent > margin)):
            if kept:
                yield _plain(kept)
            kept, margin, hanging = [], indent, starts_item
        if not line.strip():
            skip_block = False
        if text and not skip_section and not skip_block:
            kept.append(text)
            if text.endswith("::"):
                code_below = indent
    if kept:
        yield _plain(kept)


def _plain(lines: list[str]) -> str:
    text = _FIELD.sub("", _BULLET.sub("", " ".join(lines))).lstrip("-– ")
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def sentences(paragraph: str) -> Iterator[str]:
    """The sentences of a paragraph that read as English prose."""
    for sentence in _SENTENCE_END.split(paragraph):
        words = sentence.split()
        if not MIN_WORDS_PER_SENTENCE <= len(words) <= MAX_WORDS_PER_SENTENCE:
            continue
        if not sentence.lstrip("\"'(")[:1].isupper() or sentence[-1] not in ".!?":
            continue
        if _CODE.search(sentence) or not sentence.isprintable():
            continue
        plain = sum(1 for word in words if _PLAIN_WORD.match(word))
        if plain >= MIN_SHARE_OF_PLAIN_WORDS * len(words):
            yield sentence


def module_prose(path: Path) -> list[list[str]]:
    """The paragraphs of one module, each a list of sentences."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return []
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    if '"""' not in source and "'''" not in source:
        return []
    found = (
        list(sentences(paragraph)) for text in docstrings(source) for paragraph in paragraphs(text)
    )
    return [paragraph for paragraph in found if paragraph]


def documents(files: list[Path], processes: int) -> Iterator[list[list[str]]]:
    """Documents in the order of `files`; each sentence occurs once in all of them."""
    seen: set[str] = set()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for module in pool.imap(module_prose, files, chunksize=64):
            document = []
            for paragraph in module:
                new = [sentence for sentence in paragraph if sentence.lower() not in seen]
                seen.update(sentence.lower() for sentence in new)
                if new:
                    document.append(new)
            if sum(map(len, document)) >= MIN_SENTENCES_PER_DOCUMENT:
                yield document


def write_corpus(
    files: list[Path], output: Path, *, max_words: int, hold_out_every: int, processes: int
) -> dict[str, tuple[int, int]]:
    """Write `train.txt` and `heldout.txt`; returns {file name: (documents, words)}."""
    output.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[str]] = {"train.txt": [], "heldout.txt": []}
    counts: dict[str, tuple[int, int]] = dict.fromkeys(texts, (0, 0))
    for number, document in enumerate(documents(files, processes), start=1):
        name = "heldout.txt" if number % hold_out_every == 0 else "train.txt"
        lines = [" ".join(paragraph) for paragraph in document]
        texts[name].append("\n".join(lines) + "\n")
        num_documents, num_words = counts[name]
        counts[name] = (num_documents + 1, num_words + sum(len(line.split()) for line in lines))
        if sum(words for _, words in counts.values()) >= max_words:
            break
    for name, parts in texts.items():
        temporary = output / f"{name}.tmp"
        temporary.write_text("\n".join(parts), encoding="utf-8")
        temporary.replace(output / name)
    return counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Collect the prose of installed docstrings.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the two text files")
    parser.add_argument(
        "--max-words", type=int, default=3_000_000, help="stop after this many words"
    )
    parser.add_argument(
        "--hold-out-every", type=int, default=20, help="hold out one document in this many"
    )
    parser.add_argument(
        "--packages", nargs="+", metavar="NAME",
        help="read these installed packages alone, for a corpus that other packages don't change",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)

    started = time.perf_counter()
    paths = sysconfig.get_paths()
    installed = dict.fromkeys(Path(paths[key]) for key in ("purelib", "platlib"))
    if options.packages:
        files = source_files(installed, options.packages)
    else:
        files = source_files({Path(paths["stdlib"]): None} | installed)
    counts = write_corpus(
        files,
        options.output,
        max_words=options.max_words,
        hold_out_every=options.hold_out_every,
        processes=options.processes,
    )
    for name, (num_documents, num_words) in counts.items():
        print(f"{options.output / name}: {num_documents:,} documents, {num_words:,} words")
    print(f"collected in {time.perf_counter() - started:.0f} s")
    if not all(num_documents for num_documents, _ in counts.values()):
        print("the installed packages hold too little prose for a corpus", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
