"""The documentation keeps up with the code: recipe keys, links, commands of the Makefile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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


def test_every_page_is_listed() -> None:
    index, navigation = (ROOT / "docs" / "index.md").read_text(), (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"- {page.name}\n" in navigation, page.name
        assert page.name == "index.md" or f"]({page.name})" in index, page.name


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "api" / "index.html").read_text()
    assert "LAMB for fp32 parameters" in api, "the docstrings are on the page"
