"""A Wikipedia dump (pages-articles, XML) as documents: the running text of its articles.

Pages are streamed by the standard library's XML parser, and wikitext is parsed by mwparserfromhell.
Lists, tables and headings are dropped, as in the original BERT (Devlin et al. 2019, section 3.1: "we
extract only the text passages and ignore lists, tables, and headers"), and so are references,
templates, files, formulas and categories. Templates aren't expanded, so a number that `{{convert}}`
would show is missing. Brackets that become empty are removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mslt_ds.data.prepare.documents import FileOfTexts, TextCounts
from mslt_ds.data.prepare.files import import_for, open_input, unpacked
from mslt_ds.data.prepare.wikipedia_links import PREFIXES_EVERYWHERE, hidden_prefixes, shows_text
from mslt_ds.errors import DataError

# enwiki-20261101-pages-articles.xml.bz2, or a piece of it: …-articles1.xml-p1p41242.bz2
_DUMP = re.compile(r"\.xml(-p\d+p\d+[\w-]*)?$")
_LIST_ITEMS = {"li", "dd", "dt"}
_DROPPED = {
    "categorytree", "ce", "chem", "gallery", "graph", "hiero", "imagemap", "inputbox", "mapframe",
    "maplink", "math", "noinclude", "pre", "ref", "references", "score", "source",
    "syntaxhighlight", "table", "templatedata", "templatestyles", "timeline",
}  # fmt: skip
# __NOTOC__, in any language
_SWITCH = re.compile(r"__[^\W\d_a-z]+(?:_[^\W\d_a-z]+)*__")
_EMPTY_BRACKETS = re.compile(r"\s*[(\[][\s,;:–-]*[)\]]")
_BEFORE_PUNCTUATION = re.compile(r"[ \xa0]+([,.;:])")
_AFTER_BRACKET = re.compile(r"\([\s,;:]+")
_BLANKS = re.compile(r" {2,}")  # around what shows no text


@dataclass(frozen=True)
class WikipediaDump(FileOfTexts):
    """A dump whose articles are documents. Redirects and pages of other namespaces are skipped."""

    def check(self) -> None:
        _parser(self.path)
        if not any(True for _ in self._pages()):
            raise DataError(
                f"--input: {self.path}: no page in it; a MediaWiki export is expected, such as "
                "pages-articles.xml.bz2"
            )

    def texts(self, counts: TextCounts) -> Iterator[bytes | None]:
        parse = _parser(self.path)
        for wikitext, hidden in self._pages():
            if wikitext is None:
                counts.skipped_pages += 1
                continue
            try:
                text = plain_text(parse(wikitext), hidden)
            except RecursionError:
                counts.deeply_nested_pages += 1
            else:
                yield text.encode("utf-8", "surrogatepass")

    def _pages(self) -> Iterator[tuple[str | None, frozenset[str]]]:
        """Yields the wikitext of each article, or None for any other page, and the prefixes of links
        without text in this dump."""
        hidden = PREFIXES_EVERYWHERE
        with open_input(self.path) as file:
            try:
                events = ElementTree.iterparse(file, ("start", "end"))
                _, root = next(events)
                for event, element in events:
                    tag = element.tag.rpartition("}")[2] if event == "end" else None
                    if tag == "siteinfo":
                        hidden = hidden_prefixes(element)
                    elif tag == "page":
                        yield _article(element), hidden
                        root.clear()  # otherwise the whole dump would accumulate in memory
            except (ElementTree.ParseError, StopIteration, LookupError, ValueError) as error:
                raise DataError(
                    f"--input: {self.path}: no whole MediaWiki export ({error}); load it again"
                ) from error


def is_dump(path: Path) -> bool:
    return _DUMP.search(unpacked(path).name) is not None


def plain_text(wikicode: Any, hidden: frozenset[str] = PREFIXES_EVERYWHERE) -> str:
    """The running text of parsed wikitext, with a paragraph on each line.

    hidden: the prefixes of links without text
    """
    text = _SWITCH.sub("", _text_of(wikicode, hidden))
    text = _EMPTY_BRACKETS.sub("", text)
    text = _AFTER_BRACKET.sub("(", text)
    return _BLANKS.sub(" ", _BEFORE_PUNCTUATION.sub(r"\1", text))


def _article(page: ElementTree.Element) -> str | None:
    """The wikitext of a page; None if it isn't an article."""
    is_article = page.findtext("{*}ns", "0") == "0" and page.find("{*}redirect") is None
    model = page.findtext("{*}revision/{*}model", "wikitext")
    if not is_article or model != "wikitext":
        return None
    return page.findtext("{*}revision/{*}text") or ""


def _text_of(wikicode: Any, hidden: frozenset[str]) -> str:
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
                in_list_item = bool(node.wiki_markup)  # for an HTML tag, its contents are the item
            elif tag == "br":
                parts.append(" ")
            elif tag not in _DROPPED and node.contents is not None:
                parts.append(_text_of(node.contents, hidden))
        elif kind == "Wikilink":
            if node.text is not None and shows_text(str(node.title), hidden):
                parts.append(_text_of(node.text, hidden))
            elif shows_text(str(node.title), hidden):
                parts.append(_text_of(node.title, hidden).lstrip().removeprefix(":"))
        elif kind == "ExternalLink":
            if node.title is not None:
                parts.append(_text_of(node.title, hidden))
        elif kind == "HTMLEntity":
            parts.append(node.normalize())
    return "".join(parts)


def _parser(place: object) -> Any:
    return import_for(place, "mwparserfromhell").parse
