"""JSON values of any kind, and files of which a part is replaced by one, for tests of what users may write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2, 12, 10**6, 10**12, 10**30, 0.5])
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)
"""A JSON value, small but for its numbers."""


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """The paths to the parts of a JSON value, of long lists and objects the first ones."""
    yield path
    if isinstance(value, dict | list):
        for key in list(value if isinstance(value, dict) else range(len(value)))[:12]:
            yield from places(value[key], (*path, key))


def put(value: Any, path: Path, new: Any) -> Any:
    """A copy of a JSON value with `new` at `path`."""
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def damaged(value: Any) -> st.SearchStrategy[Any]:
    """JSON values with anything at one place of `value`."""
    return st.builds(
        lambda path, new: put(value, path, new), st.sampled_from(list(places(value))), anything
    )
