"""The package's imports go one way: no circle, not even of types alone, and none upwards in the table of
docs/architecture.md."""

from __future__ import annotations

import ast
import re
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
    assert graph["mslt_ds.stage_run"] >= {"mslt_ds.engine", "mslt_ds.preparation"}
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def places() -> list[list[str]]:
    """The lines of the table "Where things are", each as the names of its modules and folders."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Where things are")[2].partition("\n\nA family")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return [re.findall(r"`([\w/.]+)`", row) for row in rows]


def test_every_module_stands_in_the_table_and_imports_from_its_line_or_above() -> None:
    def line_of(module: str) -> int:
        file = module.removeprefix("mslt_ds.").replace(".", "/")
        fitting = {
            name: number
            for number, names in enumerate(places())
            for name in names
            if f"{file}.py" == name or f"{file}/".startswith(name)
        }
        assert fitting, f"{module}: docs/architecture.md doesn't say where it is"
        return fitting[max(fitting, key=len)]

    graph = imports()
    upwards = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others - {"mslt_ds"}
        # The command imports each subcommand by its name, when that is given.
        if module not in ("mslt_ds", "mslt_ds.cli") and line_of(module) < line_of(other)
    ]
    assert not upwards
