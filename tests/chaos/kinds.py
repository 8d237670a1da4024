"""The faults that `faults.py` lets happen to a run, by kind.

A kind is a function of the start that it happens to. Where the start ends of it, or goes on, otherwise than it
should, it raises AssertionError. It returns the seconds until the fault was noticed: until the ranks that live
had ended, or the log told of it. None: nobody was there to notice it, or the ranks hadn't joined, so that only
their launcher could end them.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mslt_ds.distributed.signals import EXIT_CODE_STOPPED
from mslt_ds.errors import DataError, EnvironmentProblem, LostRank, RunIsAliveError
from tests.chaos.starts import RANKS, Start
from tests.volume import Volume

LAUNCHER_SECONDS = 15.0
"""A launcher ends the other ranks so long after one has ended. Before the ranks have joined, nothing else does."""


@dataclass(frozen=True)
class Scene:
    """What a fault happens to.

    hang_seconds: the recipe's train.hang_timeout_seconds
    store: the token store that is trained on
    volume: what the run's folder lies on; None: mounting isn't allowed here
    """

    start: Start
    draw: random.Random
    hang_seconds: float
    store: Path
    volume: Volume | None


Kind = Callable[[Scene], float | None]


def all_killed(scene: Scene) -> None:
    scene.start.kill()


def one_killed(scene: Scene) -> float | None:
    return _lose(scene, signal.SIGKILL, {LostRank.exit_code})


def one_stopped(scene: Scene) -> float | None:
    return _lose(scene, signal.SIGSTOP, {LostRank.exit_code})


def one_told_to_end(scene: Scene) -> float | None:
    return _lose(scene, signal.SIGTERM, {EXIT_CODE_STOPPED})


def disk_full(scene: Scene) -> float | None:
    assert scene.volume is not None
    return _without_disk(scene, scene.volume.fill, scene.volume.free)


def disk_read_only(scene: Scene) -> float | None:
    volume = scene.volume
    assert volume is not None
    return _without_disk(
        scene, lambda: volume.set_read_only(True), lambda: volume.set_read_only(False)
    )


def disk_gone(scene: Scene) -> float | None:
    assert scene.volume is not None
    return _without_disk(scene, scene.volume.detach, scene.volume.attach)


def checkpoint_damaged(scene: Scene) -> float | None:
    start = scene.start
    start.kill()
    checkpoints = sorted((start.run_dir / "checkpoints").glob("step_*"))
    if not checkpoints:
        return None
    files = sorted(path for path in checkpoints[-1].iterdir() if path.is_file())
    scene.draw.choice([_flip, _cut, _remove])(scene.draw.choice(files), scene.draw)
    return _told_at_the_next_start(start, "damaged (")


def index_damaged(scene: Scene) -> float | None:
    start = scene.start
    start.kill()
    indexes = sorted((scene.store / "index").iterdir())
    if not indexes:
        return None
    for path in indexes:
        scene.draw.choice([_flip, _cut])(path, scene.draw)
    return _told_at_the_next_start(start, "this index is made anew")


def store_damaged(scene: Scene) -> float | None:
    """The run ends before its first step and names the file, which is then restored."""
    start = scene.start
    start.kill()
    path = scene.store / scene.draw.choice(["tokens.bin", "sentences.bin", "documents.bin"])
    copy = scene.store.with_name("copy.bin")
    shutil.copy(path, copy)
    _flip(path, scene.draw)
    began = time.monotonic()
    start.begin()
    assert start.wait(8 * LAUNCHER_SECONDS), "a run of a damaged store goes on"
    seconds = time.monotonic() - began
    assert set(start.codes.values()) == {DataError.exit_code}, start.codes
    assert path.name in start.said, "the damaged file isn't named"
    shutil.move(copy, path)
    return seconds


def second_start(scene: Scene) -> float | None:
    """One of the two ends with the code for that, and the other goes on."""
    start = scene.start
    began = time.monotonic()
    second = Start(start.config, start.run_dir, start.spoils)
    main = 0
    try:
        ended = start.wait_until(
            lambda: main not in start.running() or main not in second.running(),
            8 * LAUNCHER_SECONDS,
        )
        seconds = time.monotonic() - began
        assert ended, "two starts of one run go on"
        loser = second if main not in second.running() else start
        assert loser.codes[main] in {0, RunIsAliveError.exit_code}, loser.codes
        was_refused = loser.codes[main] != 0
        if loser is start:
            start.pids, second.pids = second.pids, start.pids
            start.codes, second.codes = second.codes, start.codes
        return seconds if was_refused else None
    finally:
        second.kill()


KINDS: dict[Kind, int] = {
    one_killed: 5,
    all_killed: 5,
    one_stopped: 1,
    one_told_to_end: 2,
    disk_full: 2,
    disk_read_only: 2,
    disk_gone: 2,
    checkpoint_damaged: 3,
    index_damaged: 1,
    store_damaged: 1,
    second_start: 2,
}
"""The kinds, and how often each is drawn."""
NEED_A_VOLUME = {disk_full, disk_read_only, disk_gone}


def _lose(scene: Scene, number: signal.Signals, allowed: set[int]) -> float | None:
    """Send a signal to one rank: the other ends by itself, with one of the codes `allowed`."""
    start, victim = scene.start, scene.draw.randrange(RANKS)
    others = {rank for rank in range(RANKS) if rank != victim}
    began, trained = time.monotonic(), start.trains
    start.signal(number, [victim])
    # What may take long is given six times the time.
    patience = 8 * scene.hang_seconds if trained else LAUNCHER_SECONDS
    start.wait_until(lambda: not others & set(start.running()), patience)
    seconds = time.monotonic() - began
    if not trained:
        start.signal(signal.SIGTERM, sorted(others))
        start.wait_until(lambda: not others & set(start.running()), 30)
        allowed = allowed | {EXIT_CODE_STOPPED, EnvironmentProblem.exit_code}
    left = others & set(start.running())
    assert not left, f"ranks {left} go on after {seconds:.0f} s"
    if number == signal.SIGSTOP:
        start.signal(signal.SIGKILL, [victim])
    assert start.wait(30), f"rank {victim} doesn't end"
    codes = {start.codes[rank] for rank in others}
    assert codes <= allowed | {0}, f"exit codes {start.codes}"
    return seconds if trained else None


def _without_disk(
    scene: Scene, take: Callable[[], object], give_back: Callable[[], object]
) -> float | None:
    """The run's folder can't be written until the run tells so. One that trains goes on, others end."""
    start, trained = scene.start, scene.start.trains
    before, began = len(start.said), time.monotonic()

    def is_noticed() -> bool:
        return "can't be written" in start.said[before:] or len(start.running()) < RANKS

    take()
    try:
        noticed = start.wait_until(is_noticed, 8 * LAUNCHER_SECONDS)
    finally:
        give_back()
    seconds = time.monotonic() - began
    assert noticed, "nobody noticed"
    if not trained and not start.wait(LAUNCHER_SECONDS):
        if len(start.running()) == RANKS:
            return seconds  # it had joined when the disk went
        start.signal(signal.SIGTERM)
        assert start.wait(30), f"ranks {start.running()} go on"
    start.running()
    allowed = set() if trained else {EnvironmentProblem.exit_code, EXIT_CODE_STOPPED}
    assert set(start.codes.values()) <= allowed | {0}, f"exit codes {start.codes}"
    return seconds if trained else None


def _flip(path: Path, draw: random.Random) -> None:
    """Flip one bit."""
    place = draw.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << draw.randrange(8)]))


def _cut(path: Path, draw: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(draw.randrange(path.stat().st_size))


def _remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def _told_at_the_next_start(start: Start, text: str) -> float | None:
    """Start the ranks again; the seconds until they print `text`. None: all that was left was to end."""
    began = time.monotonic()
    start.begin()
    start.wait_until(lambda: text in start.said or not start.running(), 8 * LAUNCHER_SECONDS)
    if text in start.said:
        return time.monotonic() - began
    assert not start.trains and set(start.codes.values()) == {0}, f"the log doesn't say {text!r}"
    return None
