from __future__ import annotations

import bz2
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import mwparserfromhell
import pytest

from mslt_ds.data.prepare.documents import TextCounts
from mslt_ds.data.prepare.wikipedia import WikipediaDump, is_dump, plain_text
from mslt_ds.errors import DataError, EnvironmentProblem

HEAD = (
    '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="en">\n'
    "<siteinfo><sitename>Wikipedia</sitename><dbname>enwiki</dbname></siteinfo>\n"
)


def page(text: str, *, ns: int = 0, redirect: bool = False, model: str = "wikitext") -> str:
    to = '<redirect title="Other" />' if redirect else ""
    return (
        f"<page><title>A title</title><ns>{ns}</ns><id>1</id>{to}<revision><id>2</id>"
        f"<model>{model}</model><format>text/x-wiki</format>"
        f'<text bytes="{len(text)}" xml:space="preserve">{escape(text)}</text>'
        "</revision></page>\n"
    )


def write_dump(path: Path, *pages: str) -> WikipediaDump:
    path.write_bytes(bz2.compress((HEAD + "".join(pages) + "</mediawiki>\n").encode()))
    return WikipediaDump(path)


def read(dump: WikipediaDump) -> tuple[list[Any], TextCounts]:
    counts = TextCounts()
    return list(dump.documents(counts)), counts


def test_articles_are_documents_and_other_pages_are_counted(tmp_path: Path):
    dump = write_dump(
        tmp_path / "enwiki-pages-articles.xml.bz2",
        page("#REDIRECT [[Other]]", redirect=True),
        page("First '''article'''.\n\nIts second paragraph.\n\n== Head ==\nIts third."),
        page("A talk page.", ns=1),
        page("local p = {}", model="Scribunto"),
        page("{{Only a template}}\n* and a list"),
        page("Second <nowiki>&</nowiki> last — “article”."),
    )
    dump.check()
    found, counts = read(dump)
    assert found == [
        ["First article.", "Its second paragraph.", "Its third."],
        ["Second & last — “article”."],
    ]
    assert (counts.documents, counts.empty_documents, counts.skipped_pages) == (2, 1, 3)
    assert counts.text_bytes > 0 and counts.paragraphs == 4


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("A [[city]] and [[Paris|the city]]s.", "A city and the citys."),
        ("See [http://x.org the site] or [http://x.org] or http://x.org.", "See the site or or."),
        ("Text.<ref name=a>{{cite book|title=B}}</ref><ref name=a /> More.", "Text. More."),
        ("''Italic'', '''bold''' and <sub>x</sub><br>y.", "Italic, bold and x y."),
        ("[[File:A.jpg|thumb|A [[cat]].]]Text.[[Category:Cats]][[de:Katze]]", "Text."),
        ("{| class=wikitable\n|-\n! a !! b\n|-\n| c || d\n|}Text.", "Text."),
        ("One.\n* Two\n** three [[four]]\n# five\n; six : seven\nEight.", "One.\n\n\n\n\nEight."),
        ("== Head ==\nText.\n=== Lower ===\nMore.", "\n\nText.\n\n\nMore."),
        ("Born ({{lang-fr|x}}; {{IPA|y}}) in 1900 ({{a}}, see b).", "Born in 1900 (see b)."),
        ("<!-- no -->A&nbsp;b &amp; c &eacute;.__NOTOC__", "A\xa0b & c é."),
        ("<math>x^2</math>Text<gallery>\nA.jpg|b\n</gallery>.", "Text."),
        ("<ul><li>Item</li></ul>Text.", "Text."),
        ("{{Infobox\n| a = [[b]]\n| c = {{d}}\n}}\nText.", "\nText."),
        ("Unclosed {{template and [[link and <b>tag", "Unclosed {{template and [[link and <b>tag"),
    ],
)
def test_running_text(wikitext: str, text: str):
    assert plain_text(mwparserfromhell.parse(wikitext)) == text


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("enwiki-20261101-pages-articles.xml.bz2", True),
        ("enwiki-latest-pages-articles-multistream1.xml-p1p41242.bz2", True),
        ("small.xml", True),
        ("small.xml.zst", True),
        ("books.txt.bz2", False),
        ("xml.bz2", False),
    ],
)
def test_dumps_are_known_by_their_names(name: str, is_one: bool):
    assert is_dump(Path(name)) is is_one


SITE = """<siteinfo><sitename>Wiki</sitename><namespaces>
<namespace key="-2" case="first-letter">Медиа</namespace>
<namespace key="-1" case="first-letter">Служебная</namespace>
<namespace key="0" case="first-letter" />
<namespace key="1" case="first-letter">Обсуждение</namespace>
<namespace key="6" case="first-letter">Файл</namespace>
<namespace key="7" case="first-letter">Обсуждение файла</namespace>
<namespace key="14" case="first-letter">Категория ru</namespace>
</namespaces></siteinfo>
"""


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("A[[Файл:A.jpg|мини|B [[c]].]][[ файл :B.bin]][[Медиа:C.bin|D]].", "A."),
        ("A[[Категория_ru:B]][[категория  RU:C]][[\u200eКатегория ru:D]].", "A."),
        ("A[[File:A.bin]][[image:B.bin|thumb]][[Category:C]][[media:D.bin|e]].", "A."),
        ("A[[Изображение:Reiher.JPG|мини|b]][[Bild:B.svg]].", "A."),  # names of earlier times
        ("A[[分类:B]][[Kategorija:C]][[分類: D]].", "A."),  # not named in a dump
        ("A[[de:Katze]][[En:Cat]][[zh-min-nan:Niau]][[simple:Cat]].", "A."),
        ("A [[CSI: Miami]], [[SOS: Der Sturm|b]] [[C.P.C.: d]], [[Ep 1: e]].",
         "A CSI: Miami, b C.P.C.: d, Ep 1: e."),
        ("A [[Обсуждение:B|c]] [[Datei: d]] [[NLA: x]].", "A c Datei: d NLA: x."),
        ("A [[:Файл:B.jpg|c]] [[:de:D|e]] [[:Category:F]].", "A c e Category:F."),
        ("__БЕЗ_ОГЛ____NOTOC__A __目次__snake__case__.", "A snake__case__."),
    ],
)  # fmt: skip
def test_namespaces_come_from_the_dump(tmp_path: Path, wikitext: str, text: str):
    path = tmp_path / "dump.xml"
    path.write_text("<mediawiki>" + SITE + page(wikitext) + "</mediawiki>", encoding="utf-8")
    assert read(WikipediaDump(path))[0] == [[text]]


def test_a_dotted_capital_is_no_other_letter(tmp_path: Path):
    path = tmp_path / "dump.xml"
    names = '<siteinfo><namespaces><namespace key="14">Kategori</namespace></namespaces></siteinfo>'
    path.write_text(f"<mediawiki>{names}{page('A[[KATEGORİ:B]].')}</mediawiki>", encoding="utf-8")
    assert read(WikipediaDump(path))[0] == [["A."]]


def test_a_page_that_cant_be_parsed_is_counted(tmp_path: Path):
    path = tmp_path / "dump.xml"
    pages = page("One.") + page("{{" * 5000 + "a" + "}}" * 5000)
    path.write_text(f"{HEAD}{pages}</mediawiki>")
    found, counts = read(WikipediaDump(path))
    assert found == [["One."]] and counts.deeply_nested_pages == 1


def test_streams_one_after_the_other(tmp_path: Path):
    """As in Wikipedia's multistream dumps."""
    path = tmp_path / "multistream.xml.bz2"
    parts = [HEAD, page("One."), page("Two."), "</mediawiki>"]
    path.write_bytes(b"".join(bz2.compress(part.encode()) for part in parts))
    assert read(WikipediaDump(path))[0] == [["One."], ["Two."]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD + page("One.") + page("Two.")[:100], "no whole MediaWiki export .*load it again"),
        (HEAD + page("One.") + "<page>\x00", "no whole MediaWiki export"),
        ("", "no whole MediaWiki export"),
        ('<?xml version="1.0" encoding="none"?><mediawiki/>', "no whole MediaWiki export"),
        ('<?xml version="1.0" encoding="utf-7"?><mediawiki/>', "no whole MediaWiki export"),
        ("plain text", "no whole MediaWiki export"),
        ("<html><body>Not found</body></html>", "no page in it; a MediaWiki export is expected"),
        (HEAD + "</mediawiki>", "no page in it"),
    ],
)
def test_what_is_no_whole_dump(tmp_path: Path, content: str, message: str):
    path = tmp_path / "dump.xml"
    path.write_text(content)
    with pytest.raises(DataError, match=f"--input: .*dump.xml: {message}"):
        dump = WikipediaDump(path)
        dump.check()
        read(dump)


def test_a_cut_archive(tmp_path: Path):
    dump = write_dump(tmp_path / "dump.xml.bz2", *[page(f"Text {i}. " * 99) for i in range(300)])
    dump.path.write_bytes(dump.path.read_bytes()[:-30])
    with pytest.raises(DataError, match="dump.xml.bz2: can't be read .*whole"):
        read(dump)


def test_pages_that_were_read_leave_memory(tmp_path: Path):
    import tracemalloc

    dump = write_dump(tmp_path / "dump.xml.bz2", *[page("Text. " * 10_000)] * 60)
    tracemalloc.start()
    for _ in dump._pages():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_500_000  # of 3.6 MB of text


def test_without_the_parser_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dump = write_dump(tmp_path / "dump.xml.bz2", page("One."))
    monkeypatch.setitem(__import__("sys").modules, "mwparserfromhell", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'mslt-ds\[sources\]'"):
        dump.check()
