"""A disk that fills up, becomes read-only and vanishes, for real. Needs root."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Volume:
    """A tmpfs of `megabytes`, mounted at `folder`/mounted."""

    def __init__(self, folder: Path, megabytes: int = 8) -> None:
        self.disk, self.path = folder / "disk", folder / "mounted"
        self.disk.mkdir()
        self.path.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", self.disk)
        self.attach()

    def attach(self) -> None:
        _mount("--bind", self.disk, self.path)

    def detach(self) -> None:
        """Files that are open stay usable, as nothing else lets a busy disk go."""
        subprocess.run(["umount", "--lazy", self.path], check=True)

    def set_read_only(self, on: bool) -> None:
        self.detach()
        self.attach()
        if on:
            _mount("-o", "remount,bind,ro", self.path)

    def fill(self) -> None:
        with suppress(OSError), (self.disk / "filler").open("wb", buffering=0) as file:
            while file.write(b"\0" * 4096):
                pass

    def free(self) -> None:
        (self.disk / "filler").unlink()


class MountingNotAllowedError(Exception):
    """This process may not mount anything."""


def _mount(*arguments: object) -> None:
    found = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if found.returncode:
        raise MountingNotAllowedError(found.stderr.strip())


@contextmanager
def mounted(folder: Path, megabytes: int = 8) -> Iterator[Volume]:
    """MountingNotAllowedError where this process may not mount."""
    try:
        yield Volume(folder, megabytes)
    finally:
        for path in (folder / "mounted", folder / "disk"):
            subprocess.run(["umount", "--lazy", path], capture_output=True)
