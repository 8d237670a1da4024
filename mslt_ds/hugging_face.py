"""Folders of models in Hugging Face's format, read without its messages."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers

from mslt_ds.errors import CheckpointError

LOAD: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""Arguments of every `from_pretrained`: nothing is fetched, and no code that a folder's `auto_map` names is
run. By default transformers asks on the terminal whether to run it."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without Hugging Face's table of missing keys and its progress bars."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of the model in `folder`; CheckpointError where none is."""
    patterns = ("*.safetensors", "pytorch_model*.bin")
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    for wanted, there in (
        ("config.json", (folder / "config.json").is_file()),
        ("model.safetensors", bool(files)),
    ):
        if not there:
            raise CheckpointError(
                f"{folder}: no {wanted} here; name a folder that save_pretrained wrote, such as a "
                "run's model/ or stages/K/end/"
            )
    return files
