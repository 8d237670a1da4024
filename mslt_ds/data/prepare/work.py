"""The work folder of a preparation, which exists until the units are merged into a store.

    job.json               everything that the content of the store depends on
    tokenizer/             the tokenizer of the units
    INPUT-UNIT.unit        tokenized documents, see unit.py
    INPUT.source.json      counts of an input, written once it has been read to its end

Every file appears with its complete content, even if several processes write it. Processes of several
machines may therefore share the folder, and a killed process leaves no partial file.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mslt_ds.atomic import flush_to_disk
from mslt_ds.data.prepare.documents import TextCounts
from mslt_ds.data.store import MANIFEST, TOKENIZER
from mslt_ds.errors import DataError
from mslt_ds.json_object import read_object

_FOLDER = "work"
_JOB = "job.json"


@dataclass(frozen=True)
class SourceRecord:
    """What is recorded of an input that has been read to its end."""

    name: str
    weight: float
    sha256: str  # of the text, decompressed
    units: int
    counts: TextCounts


@dataclass(frozen=True)
class WorkFolder:
    """The work folder inside `output`, the folder of the future store."""

    output: Path

    @property
    def path(self) -> Path:
        return self.output / _FOLDER

    @property
    def tokenizer_folder(self) -> Path:
        return self.path / TOKENIZER

    def check_output(self) -> None:
        """DataError unless the output folder can be created, is empty, or holds a preparation."""
        output = self.output
        if output.exists() and not output.is_dir():
            raise DataError(f"--output: {output}: a file; name a new folder")
        is_ours = (output / MANIFEST).exists() or (self.path / _JOB).exists()
        # A kill before job.json is written leaves only the work folder, which is ours too.
        if output.exists() and not is_ours and set(os.listdir(output)) - {_FOLDER}:
            raise DataError(
                f"--output: {output}: not empty, and no token store; name a new or empty folder"
            )
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"--output: {output}: can't be made ({error.strerror})") from error
        if not os.access(output, os.W_OK):
            raise DataError(f"--output: {output}: can't be written; name another folder")

    def find_job(self) -> dict[str, Any] | None:
        """The job of the finished store or of the preparation that was begun here."""
        for path, key in ((self.output / MANIFEST, "job"), (self.path / _JOB, None)):
            try:
                content = read_object(path)
                return content if key is None else content[key]
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: can't be read ({error}); delete {self.output} and start anew"
                ) from error
        return None

    def begun_job(self) -> dict[str, Any]:
        """The job that was begun here; DataError if there is none."""
        job = self.find_job()
        if job is None:
            raise DataError(
                f"--output: {self.output}: no shard was begun here; run them with --shard first"
            )
        return job

    def check_same_job(self, job: dict[str, Any]) -> None:
        """DataError if a different job was begun or finished here."""
        found = self.find_job()
        if found is None:
            return
        different = sorted(key for key in job | found if job.get(key) != found.get(key))
        if different:
            raise DataError(
                f"--output: {self.output}: holds a store of other {' and '.join(different)}; name "
                "another folder, or delete this one"
            )

    def is_finished(self) -> bool:
        return (self.output / MANIFEST).exists()

    def begin(self, job: dict[str, Any]) -> None:
        self.path.mkdir(exist_ok=True)
        self._write(_JOB, job)

    def unit(self, file: int, number: int) -> Path:
        return self.path / f"{file:04d}-{number:06d}.unit"

    def write_source(self, file: int, record: SourceRecord) -> None:
        self._write(f"{file:04d}.source.json", asdict(record))

    def sources(self, count: int) -> list[SourceRecord]:
        """The records of all inputs; DataError names an input that wasn't read to its end."""
        records = []
        for file in range(count):
            path = self.path / f"{file:04d}.source.json"
            try:
                content = read_object(path)
                counts = TextCounts(**content.pop("counts"))
                records.append(SourceRecord(**content, counts=counts))
            except FileNotFoundError:
                raise DataError(
                    f"{path}: missing, so input {file + 1} of {count} wasn't read to its end; run "
                    "the shards that aren't done again"
                ) from None
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}: damaged ({error}); delete it and run the same `mslt-ds prepare` again"
                ) from error
        return records

    def units(self, sources: list[SourceRecord]) -> list[list[Path]]:
        """Each source's units in the order of the text; DataError names a missing one."""
        units = [
            [self.unit(file, number) for number in range(record.units)]
            for file, record in enumerate(sources)
        ]
        missing = [path for paths in units for path in paths if not path.exists()]
        if missing:
            raise DataError(
                f"{missing[0]}: missing, as {len(missing)} of {sum(map(len, units))} units are; "
                "run the shards that aren't done again"
            )
        return units

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        descriptor, partial = tempfile.mkstemp(prefix=f".{name}.", dir=self.path)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=1) + "\n")
        os.chmod(partial, 0o644)
        flush_to_disk(Path(partial))
        os.replace(partial, self.path / name)
