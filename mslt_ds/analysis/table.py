"""A table as a value, and its three forms: Markdown, CSV and the page's HTML.

A cell is a value with the text that a reader sees. CSV holds the values with all their digits.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mslt_ds.atomic import replace_text

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    value: Any
    text: str


@dataclass(frozen=True)
class Table:
    """name: of its files; caption: what it shows; the first column heads the rows."""

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        lines = [list(self.header), ["---"] * len(self.header)]
        lines += [[cell.text.replace("|", "\\|") for cell in row] for row in self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return "\n\n".join(part for part in (self.caption, table, self.note) if part) + "\n"

    def csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(["" if c.value is None else c.value for c in row] for row in self.rows)
        return out.getvalue()

    def write(self, folder: Path) -> None:
        """`<name>.md` and `<name>.csv` in `folder`."""
        replace_text(folder / f"{self.name}.md", self.markdown())
        replace_text(folder / f"{self.name}.csv", self.csv())


def make_table(
    name: str,
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell | str]],
    note: str = "",
) -> Table:
    """A table; a string is a cell with itself as value."""
    cells = (tuple(c if isinstance(c, Cell) else Cell(c, c) for c in row) for row in rows)
    return Table(name, caption, tuple(header), tuple(cells), note)


def number(template: str, value: float | None) -> Cell:
    """`value` in a format such as `{:.3f}`; a dash where there is none."""
    return Cell(value, MISSING if value is None else template.format(value))


def quantity(value: float | None, unit: str = "") -> Cell:
    """Three digits with a prefix: 26.2 M."""
    if value is None:
        return number("", None)
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return Cell(value, f"{value / size:.3g} {prefix}{unit}")
    return Cell(value, f"{value:.3g} {unit}".strip())


def seconds(value: float | None) -> Cell:
    """In the two largest units, or with three digits below ten seconds."""
    from mslt_ds.durations import duration

    if value is None:
        return number("", None)
    return Cell(value, f"{value:.3g} s" if value < 10 else duration(value))
