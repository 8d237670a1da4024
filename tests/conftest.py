"""Settings of all tests, and the token store of those that run the main job."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.text import write_text
from tests.volume import MountingNotAllowedError, Volume, mounted

# The first example of a test may be the one that compiles the code, on a machine that is busy. The same
# examples each time: a new one that fails is found by its author, with `--hypothesis-profile=default`.
settings.register_profile(
    "mslt", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mslt")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same random numbers in each test, its fixtures included, whichever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    try:
        with mounted(tmp_path) as volume:
            yield volume
    except MountingNotAllowedError as error:
        pytest.skip(f"mounting isn't allowed here: {error}")


@pytest.fixture(autouse=True)
def leaves_signals_as_they_were() -> Iterator[None]:
    """The processes that later tests start would inherit a signal that is ignored."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == handlers


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token store, made by the command that users run."""
    folder = tmp_path_factory.mktemp("store")
    write_text(folder / "text.txt")
    command = [sys.executable, "-m", "mslt_ds.cli", "prepare", "--input", str(folder / "text.txt"),
               "--output", str(folder / "tokens"), "--vocab-size", "400"]  # fmt: skip
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder / "tokens"
