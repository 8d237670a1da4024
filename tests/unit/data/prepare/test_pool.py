import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from mslt_ds.data.prepare import pool, unit
from mslt_ds.data.prepare.documents import TextFile
from mslt_ds.data.prepare.sources import Input
from mslt_ds.data.prepare.work import WorkFolder
from mslt_ds.data.store import TokenStore
from mslt_ds.errors import DataError
from mslt_ds.shard import Shard


@pytest.mark.parametrize("num_files", [1, 2, 5, 6, 13])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_unit_is_made_by_one_shard(num_files: int, count: int):
    shards = [Shard(number, count) for number in range(1, count + 1)]
    for file in range(num_files):
        readers = [shard for shard in shards if pool.reads(shard, file, num_files)]
        assert len(readers) == (1 if num_files >= count else count)
        for number in range(10):
            makers = [shard for shard in readers if pool.makes(shard, number, num_files)]
            assert len(makers) == 1


def test_whoever_makes_a_unit_makes_the_same(
    store: TokenStore, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unit, "UNIT_CHARACTERS", 100_000)
    inputs = [Input(TextFile(text_file))] * 2
    made = []
    for name, tasks in {
        "alone": [(1, Shard())],
        "workers": [(2, Shard())],
        "shards": [(1, Shard(number, 3)) for number in (3, 1, 2)],
    }.items():
        work = WorkFolder(tmp_path / name)
        work.path.mkdir(parents=True)
        work.tokenizer_folder.symlink_to(store.tokenizer_dir.resolve())
        lines: list[str] = []
        for workers, shard in tasks:
            pool.tokenize(inputs, work, np.dtype("<u2"), "en", workers, shard, lines.append)
        sources = work.sources(2)
        assert sources[0] == sources[1] and sources[0].units > 5
        made.append([path.read_bytes() for paths in work.units(sources) for path in paths])
    assert made[0] == made[1] == made[2]


def test_units_that_are_there_are_not_made_again_but_for_other_text(
    store: TokenStore, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unit, "UNIT_CHARACTERS", 100_000)
    work = WorkFolder(tmp_path)
    work.path.mkdir()
    work.tokenizer_folder.symlink_to(store.tokenizer_dir.resolve())
    arguments = [Input(TextFile(text_file))], work, np.dtype("<u2"), "en", 1, Shard(), print
    pool.tokenize(*arguments)
    (paths,) = work.units(work.sources(1))
    whole = [path.read_bytes() for path in paths]
    paths[1].unlink()
    paths[2].write_bytes(whole[2][:-5])  # cut off
    paths[3].write_bytes(whole[4])  # of other text
    written = []
    monkeypatch.setattr(
        pool, "write_unit", lambda path, *rest: (written.append(path), unit.write_unit(path, *rest))
    )
    pool.tokenize(*arguments)
    assert written == paths[1:4]
    assert [path.read_bytes() for path in paths] == whole


def test_a_worker_that_dies_is_reported(store: TokenStore, tmp_path: Path):
    """As the kernel ends it when memory runs out."""
    with (
        pytest.raises(DataError, match="--workers: 2: one of the processes died.*with fewer"),
        pool._workers(2, store.tokenizer_dir, np.dtype("<u2"), "en") as submit,
    ):
        submit(tmp_path / "0.unit", [["A sentence. " * 300_000]], "text")
        for process in multiprocessing.active_children():
            process.kill()
    assert os.listdir(tmp_path) == []
