"""warnings.jsonl: what a run warned of, which its log shows among much else. The report reads it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WARNINGS_FILE = "warnings.jsonl"


def add_warning(run_dir: Path, text: str, kind: str | None = None) -> None:
    """Add a line. A disk that fails doesn't end the run.

    kind: what repeated warnings have in common; None: the text itself
    """
    line = {"time": time.time(), "text": text, "kind": kind or text}
    with suppress(OSError), (run_dir / WARNINGS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class _Handler(logging.Handler):
    def __init__(self, run_dir: Path) -> None:
        super().__init__(logging.WARNING)
        self._run_dir = run_dir

    def emit(self, record: logging.LogRecord) -> None:
        add_warning(self._run_dir, record.getMessage(), str(record.msg))


@contextmanager
def kept_warnings(run_dir: Path | None) -> Iterator[None]:
    """Inside of it, the package's warnings go to the file too. None: they don't (ranks but 0)."""
    logger = logging.getLogger("mslt_ds")
    handlers: list[logging.Handler] = [] if run_dir is None else [_Handler(run_dir)]
    # Python prints warnings of loggers without a handler; of one that has a handler it doesn't.
    if handlers and logging.lastResort is not None and not logging.getLogger().handlers:
        handlers.append(logging.lastResort)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
