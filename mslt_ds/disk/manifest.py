"""`manifest.json`: the files of a folder with their sizes and checksums, written last.

A folder is renamed to its name once it is complete (`atomic.py`), so a kill leaves no half of one.
What the manifest finds is damage of other kinds: a lost sector, a flipped bit, a file that was cut or
replaced. The checksum is sha256, as in a token store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mslt_ds.data.store import file_digest

MANIFEST = "manifest.json"
Model = TypeVar("Model", bound=BaseModel)


class DamageError(Exception):
    """A file isn't what was written. The message is a reason without the folder's path."""


class Entry(BaseModel):
    """A file, as it was written."""

    model_config = ConfigDict(strict=True)

    bytes: int
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True)

    files: dict[str, Entry]


def describe(path: Path) -> Entry:
    """Size and checksum of a file."""
    return Entry(bytes=path.stat().st_size, sha256=file_digest(path))


def write(folder: Path, names: Iterable[str], known: Mapping[str, Entry] | None = None) -> None:
    """Describe the files `names` of `folder`, and those that are `known`."""
    files = {name: describe(folder / name) for name in names} | dict(known or {})
    text = _Manifest(files=files).model_dump_json(indent=1) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def names(folder: Path) -> set[str]:
    """The files that the folder's manifest describes; none without one. DamageError, OSError."""
    manifest = _read(folder)
    return set() if manifest is None else set(manifest.files)


def exists(folder: Path) -> bool:
    """Whether the folder has a manifest."""
    return (folder / MANIFEST).is_file()


def verify(folder: Path, names: Iterable[str]) -> None:
    """DamageError unless the files `names` of `folder` are those that its manifest describes.

    OSError where one can't be read. Nothing is compared where there is no manifest.
    """
    manifest = _read(folder)
    if manifest is None:
        return
    for name in names:
        described = manifest.files.get(name)
        if described is None:
            raise DamageError(f"{MANIFEST} doesn't describe {name}")
        found = (folder / name).stat().st_size
        if found != described.bytes:
            raise DamageError(f"{name}: {found} bytes instead of {described.bytes}")
        if file_digest(folder / name) != described.sha256:
            raise DamageError(f"{name}: its sha256 isn't that of {MANIFEST}")


def _read(folder: Path) -> _Manifest | None:
    try:
        text = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None
    return parse(text, _Manifest, MANIFEST)


def parse(text: bytes, model: type[Model], name: str) -> Model:
    """The JSON of the file `name` as `model`; DamageError if it isn't one."""
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = "".join(f"{part}: " for part in problem["loc"])
        raise DamageError(f"{name}: {place}{problem['msg']}") from None
