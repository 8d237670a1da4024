"""The package's imports go one way: no circle, not even of types alone."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]


def imports() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports anywhere, by full name."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / "mslt_ds").rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    names.add(inner if inner in files else node.module)
        found[module] = names & files.keys() - {module}
    return found


def test_no_import_circle() -> None:
    graph = imports()
    assert graph["mslt_ds.run"] >= {"mslt_ds.engine", "mslt_ds.model.growth"}
    TopologicalSorter(graph).prepare()  # CycleError names the circle
