"""The documentation keeps up with the code: recipe keys, links, commands of the Makefile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from mslt_ds.config.sections import RunConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def keys(section: type[BaseModel]) -> Iterator[str]:
    """The names of all keys of a recipe."""
    for name, field in section.model_fields.items():
        yield name
        annotations = [field.annotation]
        while annotations:
            annotation = annotations.pop()
            annotations.extend(get_args(annotation))
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from keys(annotation)


def test_every_recipe_key_is_described() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    assert [key for key in keys(RunConfig) if not re.search(rf"\b{key}\b", text)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.split("#")[0]).exists(), target


def test_make_targets_in_the_documentation_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for named in re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+)", page.read_text(), re.MULTILINE):
            assert set(named.split()) <= targets, (page.name, named)


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    index, navigation = (folder / "index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for page in folder.glob("0*.md"):
        assert f"]({page.name})" in index
        assert f"decisions/{page.name}" in navigation
