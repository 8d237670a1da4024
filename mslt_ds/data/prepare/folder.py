"""A folder as a data set: which of its Parquet files belong to which split.

No file is skipped silently. The folder has splits only if every Parquet file is named for one;
otherwise all of them are read. `datasets.load_dataset(folder)` guesses instead: it takes
`night-train.parquet` for a split and drops the files beside it, and of a folder with several kinds of
files it reads one kind.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePath

from mslt_ds.errors import DataError

DEFAULT_SPLIT = "train"
_SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""The names of splits, as `datasets` knows them."""
_SHARD = re.compile(r"-\d+-of-\d+$")
_STATE_FILES = ("state.json", "dataset_dict.json")
# Files without documents that data sets come with, besides hidden ones.
_ABOUT = re.compile(r"(README|LICENSE|CITATION)(\.\w+)?|dataset_infos?\.json", re.IGNORECASE)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote the folder."""
    return any((folder / name).is_file() for name in _STATE_FILES)


def check_saved(folder: Path) -> None:
    """DataError names a file in the folder that `save_to_disk` didn't write."""
    _refuse(
        folder,
        [
            name
            for name in _files(folder)
            if PurePath(name).suffix != ".arrow" and PurePath(name).name not in _STATE_FILES
        ],
        "which save_to_disk didn't write",
    )


def parquet_splits(folder: Path) -> dict[str, list[str]]:
    """The paths of the folder's Parquet files by split, sorted; all files are in DEFAULT_SPLIT if
    none is named for a split.

    A file is named for a split by its name (`test.parquet`, `train-00000-of-00002.parquet`) or by a
    folder (`dev/a.parquet`). DataError if there is no Parquet file, if there are files of another kind,
    or if only some files are named for a split.
    """
    files = _files(folder)
    parquet = [name for name in files if PurePath(name).suffix == ".parquet"]
    if not parquet:
        raise DataError(
            f"--input: {folder}: a folder, and no data set in it (Parquet files, or what "
            f"save_to_disk wrote); name its files by a glob in quotes, such as '{folder}/**/*.txt'"
        )
    _refuse(folder, sorted(set(files) - set(parquet)), f"and Parquet files such as {parquet[0]}")
    splits: dict[str | None, list[str]] = {}
    for name in parquet:
        splits.setdefault(_split_of(PurePath(name)), []).append(str(folder / name))
    if without := splits.pop(None, []):
        if splits:
            named = next(iter(splits.values()))[0]
            raise DataError(
                f"--input: {folder}: {named} is named for a split and {without[0]} isn't; name the "
                f"files to read by a glob in quotes, such as '{folder}/**/*.parquet'"
            )
        return {DEFAULT_SPLIT: without}
    return {split: paths for split, paths in splits.items() if split is not None}


def _split_of(path: PurePath) -> str | None:
    names = (_SHARD.sub("", path.stem), *reversed(path.parts[:-1]))
    return next((_SPLITS[name.lower()] for name in names if name.lower() in _SPLITS), None)


def _files(folder: Path) -> list[str]:
    """The files in the folder and below, relative to it, that may hold documents, sorted."""
    found = glob.glob("**", root_dir=folder, recursive=True, include_hidden=True)
    return sorted(
        name
        for name in found
        if not (folder / name).is_dir()
        and not (PurePath(name).suffix != ".parquet" and _is_about(PurePath(name)))
    )


def _is_about(path: PurePath) -> bool:
    """Whether the file describes the data set or is hidden, as `.gitattributes` and `_SUCCESS` are."""
    return any(part[0] in "._" for part in path.parts) or bool(_ABOUT.fullmatch(path.name))


def _refuse(folder: Path, others: list[str], beside: str) -> None:
    if others:
        raise DataError(
            f"--input: {folder}: it holds {others[0]}"
            + (f" and {len(others) - 1} others" if others[1:] else "")
            + f", {beside}; move what isn't meant, or name the files of each kind by a glob in quotes"
        )
