"""`manifest.json`: the files of a folder with their sizes and checksums, written last.

A folder is renamed to its name once it is complete (`atomic.py`), so a kill leaves no half of one.
What the manifest finds is damage of other kinds: a lost sector, a flipped bit, a file that was cut or
replaced. The checksum is sha256, as in a token store.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mslt_ds.data.store import file_digest

MANIFEST = "manifest.json"
Model = TypeVar("Model", bound=BaseModel)


class DamageError(Exception):
    """A file isn't what was written. The message is a reason without the folder's path."""


class _File(BaseModel):
    model_config = ConfigDict(strict=True)

    bytes: int
    sha256: str


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True)

    files: dict[str, _File]


def write(folder: Path, names: Iterable[str]) -> None:
    """Describe the files `names` of `folder`."""
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_digest(folder / name)}
        for name in names
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


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
