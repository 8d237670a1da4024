"""pydantic's errors in the recipe's own words: `key: value found; what is allowed`."""

from __future__ import annotations

import difflib
import json
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (in quotes where it looks like something else)",
    "list_type": "a list",
    "tuple_type": "a list",
    "by_stage": "a list with a value for each stage, or a section with first and last",
    "model_type": "a section (key: value lines)",
    "model_attributes_type": "a section (key: value lines)",
    "dict_type": "a section (key: value lines)",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "string_too_long": "text of {max_length} characters or fewer",
    "string_too_short": "text of {min_length} characters or more",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', beginning with a letter or "
    "digit",
}


def describe(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line for each problem that pydantic found in a recipe of the class `root`."""
    return [_line(detail, root) for detail in error.errors(include_url=False)]


def _line(detail: ErrorDetails, root: type[BaseModel]) -> str:
    kind = detail["type"]
    loc = _without_tags(detail["loc"], root, is_unknown=kind == "extra_forbidden")
    key = ".".join(str(part) for part in loc)
    if kind == "extra_forbidden":
        return f"{key}: {_unknown(loc, root)}"
    if kind == "missing":
        return f"{key}: missing; this key has no default"
    value = show(detail["input"])
    context = detail.get("ctx", {})
    template = _EXPECTED.get(kind)
    if template is None:
        return f"{key}: {value}: {detail['msg'].removeprefix('Value error, ')}"
    if kind == "literal_error":
        return f"{key}: {value} is not known; choose {_unquoted(context['expected'])}"
    return f"{key}: {value}; it has to be {template.format(**context)}"


def _without_tags(
    loc: tuple[int | str, ...], root: type[BaseModel], *, is_unknown: bool
) -> tuple[int | str, ...]:
    """`loc` without the tags that pydantic inserts for the member of a union.

    is_unknown: its last part is a key that doesn't exist
    """
    section = root
    kept: list[int | str] = []
    end = len(loc) - is_unknown
    for part in loc[:end]:
        if isinstance(part, str):
            if part not in section.model_fields:
                continue
            section = _section((part,), section)
        kept.append(part)
    return (*kept, *loc[end:])


def _unknown(loc: tuple[int | str, ...], root: type[BaseModel]) -> str:
    known = list(_section(loc[:-1], root).model_fields)
    prefix = "".join(f"{part}." for part in loc[:-1])
    close = difflib.get_close_matches(str(loc[-1]), known, n=1)
    if close:
        return f"unknown key; did you mean {prefix}{close[0]}?"
    elsewhere = [
        f"{name}.{loc[-1]}"
        for name, field in root.model_fields.items()
        if (section := _model_in(field.annotation)) and loc[-1] in section.model_fields
    ]
    if elsewhere:
        return f"unknown key; did you mean {' or '.join(elsewhere)}?"
    return f"unknown key; known here: {', '.join(known)}"


def _section(loc: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel]:
    """The class of the section at `loc`, counted from `root`; list indices don't change it."""
    section = root
    for part in loc:
        if isinstance(part, str):
            section = _model_in(section.model_fields[part].annotation) or section
    return section


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `list[StageConfig] | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for argument in typing.get_args(annotation):
        if (found := _model_in(argument)) is not None:
            return found
    return None


def _unquoted(expected: str) -> str:
    return expected.replace("'", "")


def show(value: Any) -> str:
    """A value as YAML would write it on one line, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
