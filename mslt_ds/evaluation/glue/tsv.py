"""Reads GLUE's own tab-separated files. A row that doesn't fit is an error that names its line.

These files have no quoting: a quotation mark is an ordinary character. Columns are found by the
header, because versions of a task differ in their columns (MNLI has 4, 11 or 15). A file without a
header (CoLA) has the columns that its task names. A file that was written with quoting could be read
without an error and would train on wrong text, so the reader looks for signs of quoting.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from mslt_ds.errors import DataError
from mslt_ds.evaluation.glue.examples import Examples, LabelledExamples
from mslt_ds.evaluation.glue.tasks import Split, Task
from mslt_ds.evaluation.text_files import read_text

# "He said ""yes"" twice": text in quotes whose inner quotes, at least one, are doubled.
_QUOTED = re.compile(r'"(?=.*"")(?:[^"]|"")*"', re.DOTALL)
_HIGHEST_SCORE = 5.0
_LAYOUT = "GLUE's layout is DIR/TASK/train.tsv, dev.tsv, test.tsv"


@dataclass(frozen=True)
class _Row:
    """The fields of a row by column. place: file and line, for messages."""

    place: str
    fields: dict[str, str]


def read_split(data: Path, task: Task, split: Split) -> LabelledExamples:
    """A labelled split (train or dev) of a task. DataError names file and line."""
    path = data / task.folder / f"{split.file}.tsv"
    columns = (*task.texts, task.label)
    rows = _read_rows(path, columns, task.columns, task.cut_rows)
    return LabelledExamples(
        texts=[tuple(_text(row, column) for column in task.texts) for row in rows],
        labels=[_label(row, task) for row in rows],
        ids=[str(number) for number in range(len(rows))],
    )


def read_test(data: Path, task: Task, split: Split, folder: str) -> Examples:
    """A test split in `data/folder`, without labels. Its first column (`index` or `id`) numbers the rows."""
    path = data / folder / f"{split.file}.tsv"
    rows = _read_rows(path, task.texts, (), 0)
    return Examples(
        texts=[tuple(_text(row, column) for column in task.texts) for row in rows],
        ids=[_index(row) for row in rows],
    )


def _read_rows(
    path: Path, columns: tuple[str, ...], without_header: tuple[str, ...], cut_rows: int
) -> list[_Row]:
    """The rows of `path`; DataError if it lacks one of `columns` or a row doesn't fit.

    without_header: the columns of a file that has no header, else empty
    cut_rows: how many rows with too few columns are skipped
    """
    # str.splitlines would also split at other separators, which occur in texts.
    lines = read_text(path, _LAYOUT).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    lines = [line.removesuffix("\r") for line in lines]
    if without_header:
        header, first = list(without_header), 1
    else:
        header, first = lines[0].split("\t") if lines else [], 2
        _check_header(path, header, columns)
        lines = lines[1:]
    rows, cut = [], []
    for number, line in enumerate(lines, start=first):
        fields = line.split("\t")
        place = f"{path}:{number}"
        if len(fields) != len(header):
            if len(fields) < len(header) and len(cut) < cut_rows:
                cut.append(number)
                continue
            raise DataError(f"{place}: {_wrong_count(line, fields, header)}")
        rows.append(_Row(place, dict(zip(header, fields, strict=True))))
    if cut:
        print(
            f"{path}: {len(cut)} lines without all columns left out (rows that are broken in the published "
            f"file), the first in line {cut[0]:,}"
        )
    if not rows:
        raise DataError(f"{path}: no rows; fetch the file again")
    return rows


def _check_header(path: Path, header: list[str], columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in header]
    if not missing:
        return
    quoted = any(column.startswith('"') for column in header)
    remedy = (
        "the header is in quotes: write the file without quoting"
        if quoted
        else "a tab has to stand between columns"
    )
    raise DataError(
        f"{path}:1: no column {', '.join(missing)} in the header ({', '.join(header)}); {remedy}"
    )


def _wrong_count(line: str, fields: list[str], header: list[str]) -> str:
    message = f"{len(fields)} columns where {len(header)} are due ({', '.join(header)})"
    if len(fields) < len(header) and line.count('"') % 2:
        return f"{message}; a quoted text with a line break in it? Write the file without quoting"
    return f"{message}; a text must hold no tab and no line break"


def _text(row: _Row, column: str) -> str:
    text = row.fields[column]
    if _QUOTED.fullmatch(text):
        raise DataError(
            f"{row.place}: {column} is in quotes with inner quotes doubled: {_short(text)}; GLUE's "
            "files have no quoting, write the file without it"
        )
    return text


def _index(row: _Row) -> str:
    column, text = next(iter(row.fields.items()))
    if not text.isdecimal():
        raise DataError(
            f"{row.place}: the first column ({column}) holds {_short(text)}; it has to number the "
            "rows, as GLUE's server asks for these numbers"
        )
    return text


def _label(row: _Row, task: Task) -> int | float:
    text = row.fields[task.label]
    if task.is_regression:
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not 0 <= score <= _HIGHEST_SCORE:
            raise DataError(
                f"{row.place}: {task.label} {_short(text)}; it has to be a number from 0 to 5"
            )
        return score
    if text not in task.labels:
        raise DataError(
            f"{row.place}: {task.label} {_short(text)}; known are {', '.join(task.labels)}"
        )
    return task.labels.index(text)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
