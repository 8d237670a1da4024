"""Recipes are read by the core schema of YAML 1.2, not by PyYAML's YAML 1.1.

`off`, `on`, `yes` and `no` are strings, `1e-4` and `8.8e-4` are numbers, `2026-11-24` is a string,
`010` is ten, and digits may be grouped as in `200_000`. A key that occurs twice in a mapping is an
error, where PyYAML keeps the last one silently. `--set a.b=value` types its value by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mslt_ds.errors import RecipeError

_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(
    r"""[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[0-9][0-9_]*[eE][-+]?[0-9]+
        |\.(?:inf|Inf|INF))
        |\.(?:nan|NaN|NAN)""",
    re.VERBOSE,
)
_SCALARS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("tag:yaml.org,2002:null", re.compile(r"~|null|Null|NULL|"), "~nN\0"),
    ("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("tag:yaml.org,2002:int", _INT, "-+0123456789"),
    ("tag:yaml.org,2002:float", _FLOAT, "-+.0123456789"),
)


def _full(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """PyYAML calls `match`, which is open at the end."""
    return re.compile(rf"(?:{pattern.pattern})$", pattern.flags)


class _Loader(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value that isn't of its tag (`!!int abc`), or can't be converted, is a RecipeError."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            value = node.value if isinstance(node, yaml.ScalarNode) else "a list or a section"
            raise RecipeError(
                f"line {node.start_mark.line + 1}: {value[:40]}{'...' * (len(value) > 40)}: "
                f"can't be read as a value of the type {kind}"
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Keys are text and unique; merge keys (`<<`) are plain, unknown keys here."""
        seen: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise RecipeError(f"line {line}: {key!r}: a key has to be text; write it in quotes")
            if key in seen:
                raise RecipeError(f"line {line}: {key}: given twice in the same section; keep one")
            seen[key] = self.construct_object(value_node, deep=True)
        return seen

    def construct_map(self, node: yaml.MappingNode) -> dict[Hashable, Any]:
        return self.construct_mapping(node)

    def construct_list(self, node: yaml.SequenceNode) -> list[Any]:
        """Made at once, so that a list inside itself (`&a [*a]`) is refused."""
        return self.construct_sequence(node, deep=True)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node).replace("_", ""))


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or our own rules would read as something else."""


_Loader.yaml_implicit_resolvers = {}  # none of PyYAML's
for _tag, _pattern, _first in _SCALARS:
    _characters = [c if c != "\0" else "" for c in _first]
    _Loader.add_implicit_resolver(_tag, _full(_pattern), _characters)
    _Dumper.add_implicit_resolver(_tag, _full(_pattern), _characters)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_map)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.construct_list)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def parse(text: str, place: str) -> Any:
    """The value that `text` stands for. `place` opens the message of a RecipeError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}") from None
    except RecursionError:
        raise RecipeError(f"{place}: not a recipe: nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{place}{where}: not valid YAML: {problem}") from None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping that a recipe file holds."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"--config: {path}: no such file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"--config: {path}: not UTF-8 text: {error}") from None
    except OSError as error:
        raise RecipeError(f"--config: {path}: {error.strerror}") from None
    value = parse(text, str(path))
    if not isinstance(value, dict):
        found = "nothing" if value is None else type(value).__name__
        raise RecipeError(f"{path}: holds {found}; a recipe is a mapping of sections")
    return value


def dump(value: Mapping[str, Any]) -> str:
    """`value` as YAML that `parse`, and any other YAML reader, takes back unchanged."""
    return yaml.dump(dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def apply_overrides(recipe: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`recipe` with each `a.b=value` set, in order; sections that are missing are made.

    A number addresses an element of a list: `plan.stages.0.steps=10`. `recipe` is left as it was.
    """
    for override in overrides:
        key, equals, text = override.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise RecipeError(f"--set {override}: write it as section.key=value")
        value = parse(text, f"--set {override}")
        recipe = _with_value(recipe, parts, value, override, done=0)
    return recipe


def _with_value(container: Any, parts: Sequence[str], value: Any, override: str, done: int) -> Any:
    if done == len(parts):
        return value
    part = parts[done]
    here = ".".join(parts[:done])
    if isinstance(container, list):
        if not part.isdecimal() or int(part) >= len(container):
            raise RecipeError(
                f"--set {override}: {here} is a list; {part} isn't one of its elements "
                f"0 to {len(container) - 1}"
            )
        copy = list(container)
        copy[int(part)] = _with_value(copy[int(part)], parts, value, override, done + 1)
        return copy
    if container is None:
        container = {}
    if not isinstance(container, dict):
        raise RecipeError(f"--set {override}: {here} holds {container!r}, not a section")
    return {**container, part: _with_value(container.get(part), parts, value, override, done + 1)}
