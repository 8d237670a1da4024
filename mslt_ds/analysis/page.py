"""A self-contained HTML page of sections with text, figures and tables. It loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mslt_ds import __version__
from mslt_ds.analysis.drawing import Drawing
from mslt_ds.analysis.table import Table
from mslt_ds.atomic import replace_text
from mslt_ds.errors import EnvironmentProblem


@dataclass(frozen=True)
class Fact:
    """A number that the page begins with."""

    value: str
    label: str


@dataclass(frozen=True)
class Section:
    title: str
    text: str = ""
    parts: Sequence[Drawing | Table] = ()

    @property
    def anchor(self) -> str:
        return "".join(c if c.isalnum() else "-" for c in self.title.lower())


@dataclass(frozen=True)
class Page:
    title: str
    lead: str
    facts: Sequence[Fact]
    sections: Sequence[Section]
    files: str
    """Where the tables and figures lie, for the footer."""
    date: str = field(default="")

    def html(self) -> str:
        environment = Environment(
            loader=PackageLoader("mslt_ds.analysis"),
            autoescape=select_autoescape(default_for_string=True, default=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        sections = [section for section in self.sections if section.parts or section.text]
        return environment.get_template("page.html").render(
            page=self,
            sections=sections,
            version=__version__,
            is_table=lambda p: isinstance(p, Table),
        )

    def write(self, output: Path, tables: str = "tables") -> None:
        """`index.html`, and the files of all figures and tables. EnvironmentProblem if it can't."""
        try:
            for folder in (output / tables, output / "figures"):
                folder.mkdir(parents=True, exist_ok=True)
            for section in self.sections:
                for part in section.parts:
                    part.write(output / (tables if isinstance(part, Table) else "figures"))
            replace_text(output / "index.html", self.html())
        except OSError as error:
            raise EnvironmentProblem(
                f"--output: {output}: {error.strerror or error}; choose a folder that can be written"
            ) from error
