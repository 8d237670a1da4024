"""A Wikipedia dump (pages-articles, XML) as documents: the running text of its articles.

Pages are streamed by the standard library's XML parser, wikitext is parsed by mwparserfromhell. As
the original BERT did (Devlin et al. 2019, section 3.1: "we extract only the text passages and ignore
lists, tables, and headers"), lists, tables and headings are left out, and with them references,
templates, files, formulas and categories. Templates aren't expanded, so a number that
`{{convert}}` would show is lost; brackets that are left empty are taken away.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mslt_ds.data.prepare.documents import FileOfTexts, TextCounts
from mslt_ds.data.prepare.files import open_input, unpacked
from mslt_ds.errors import DataError, EnvironmentProblem

# enwiki-20261101-pages-articles.xml.bz2, or a piece of it: …-articles1.xml-p1p41242.bz2
_DUMP = re.compile(r"\.xml(-p\d+p\d+[\w-]*)?$")
_LIST_ITEMS = {"li", "dd", "dt"}
_LEFT_OUT = {
    "categorytree", "ce", "chem", "gallery", "graph", "hiero", "imagemap", "inputbox", "mapframe",
    "maplink", "math", "noinclude", "pre", "ref", "references", "score", "source",
    "syntaxhighlight", "table", "templatedata", "templatestyles", "timeline",
}  # fmt: skip
_LINKS_LEFT_OUT = re.compile(
    r"\s*:?(file|image|media|category|[a-z]{2,3}(-[a-z]+)*|simple)\s*:", re.IGNORECASE
)
_SWITCH = re.compile(r"__[A-Z]+__")
_EMPTY_BRACKETS = re.compile(r"\s*[(\[][\s,;:–-]*[)\]]")
_BEFORE_PUNCTUATION = re.compile(r"[ \xa0]+([,.;:])")
_AFTER_BRACKET = re.compile(r"\([\s,;:]+")


@dataclass(frozen=True)
class WikipediaDump(FileOfTexts):
    """Each article is a document; redirects and pages outside the articles' namespace are skipped."""

    def check(self) -> None:
        _parser(self.path)
        if not any(True for _ in self._pages()):
            raise DataError(
                f"--input: {self.path}: no page in it; a MediaWiki export is expected, such as "
                "pages-articles.xml.bz2"
            )

    def texts(self, counts: TextCounts) -> Iterator[bytes | None]:
        parse = _parser(self.path)
        for wikitext in self._pages():
            if wikitext is None:
                counts.skipped_pages += 1
            else:
                yield plain_text(parse(wikitext)).encode("utf-8", "surrogatepass")

    def _pages(self) -> Iterator[str | None]:
        """The wikitext of each article, None for another page."""
        with open_input(self.path) as file:
            try:
                events = ElementTree.iterparse(file, ("start", "end"))
                _, root = next(events)
                for event, element in events:
                    if event == "end" and element.tag.rpartition("}")[2] == "page":
                        yield _article(element)
                        root.clear()  # or the whole dump would gather in memory
            except (ElementTree.ParseError, StopIteration) as error:
                raise DataError(
                    f"--input: {self.path}: no whole MediaWiki export ({error}); load it again"
                ) from error


def is_dump(path: Path) -> bool:
    return _DUMP.search(unpacked(path).name) is not None


def plain_text(wikicode: Any) -> str:
    """The running text of parsed wikitext, a paragraph a line."""
    text = _SWITCH.sub("", _text_of(wikicode))
    text = _EMPTY_BRACKETS.sub("", text)
    text = _AFTER_BRACKET.sub("(", text)
    return _BEFORE_PUNCTUATION.sub(r"\1", text)


def _article(page: ElementTree.Element) -> str | None:
    """The wikitext of a page, None unless it's an article."""
    is_article = page.findtext("{*}ns", "0") == "0" and page.find("{*}redirect") is None
    model = page.findtext("{*}revision/{*}model", "wikitext")
    if not is_article or model != "wikitext":
        return None
    return page.findtext("{*}revision/{*}text") or ""


def _text_of(wikicode: Any) -> str:
    parts: list[str] = []
    in_list_item = False
    for node in wikicode.nodes:
        kind = type(node).__name__
        if kind == "Text":
            text = node.value
            if in_list_item:
                _, newline, text = text.partition("\n")
                in_list_item = not newline
                parts.append(newline)
            parts.append(text)
        elif kind == "Heading":
            parts.append("\n")
        elif in_list_item:
            continue
        elif kind == "Tag":
            tag = str(node.tag).strip().lower()
            if tag in _LIST_ITEMS:
                in_list_item = bool(node.wiki_markup)  # of HTML's, the contents are the item
            elif tag == "br":
                parts.append(" ")
            elif tag not in _LEFT_OUT and node.contents is not None:
                parts.append(_text_of(node.contents))
        elif kind == "Wikilink":
            if not _LINKS_LEFT_OUT.match(str(node.title)):
                parts.append(_text_of(node.title if node.text is None else node.text))
        elif kind == "ExternalLink":
            if node.title is not None:
                parts.append(_text_of(node.title))
        elif kind == "HTMLEntity":
            parts.append(node.normalize())
    return "".join(parts)


def _parser(place: object) -> Any:
    try:
        return importlib.import_module("mwparserfromhell").parse
    except ImportError as error:
        raise EnvironmentProblem(
            f"--input: {place}: mwparserfromhell is needed to read a Wikipedia dump ({error}); "
            "pip install 'mslt-ds[sources]'"
        ) from error
