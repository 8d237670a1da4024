import errno
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mslt_ds.data import epoch_index as module
from mslt_ds.data import tokenizer
from mslt_ds.data.epoch_index import epoch_index
from mslt_ds.data.instances import InstanceOptions, epoch_key
from mslt_ds.data.store import TokenStore
from mslt_ds.errors import DataError
from tests.unit.data.comparison import NO_WORDS
from tests.unit.data.conftest import make_corpus

OPTIONS = InstanceOptions(seq_length=64, max_predictions=10)


@pytest.fixture
def copy(store_path: Path, tmp_path: Path) -> TokenStore:
    ignored = shutil.ignore_patterns("index")
    return TokenStore.open(shutil.copytree(store_path, tmp_path / "copy", ignore=ignored))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSLT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def expected(store: TokenStore, epoch: int) -> np.ndarray:
    key = epoch_key(store.digest, 1, epoch)
    return OPTIONS.index_documents(store.corpus, NO_WORDS, key, 0, store.num_documents)[0]


def test_blocks_make_the_whole(copy: TokenStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_DOCUMENTS_PER_BLOCK", 7)
    assert np.array_equal(epoch_index(copy, NO_WORDS, OPTIONS, 1, 0), expected(copy, 0))


def test_that_it_takes_long_is_said_once(
    copy: TokenStore, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    epoch_index(copy, NO_WORDS, OPTIONS, 1, 0, said.append)
    assert not said
    monkeypatch.setattr(module, "_LONG_SECONDS", 0)
    monkeypatch.setattr(module, "_DOCUMENTS_PER_BLOCK", 7)
    epoch_index(copy, NO_WORDS, OPTIONS, 1, 0, said.append)
    assert not said  # it's there
    epoch_index(copy, NO_WORDS, OPTIONS, 1, 1, said.append)
    (line,) = said
    assert f"{copy.path}: making the index of epoch 1 from {copy.num_documents:,} doc" in line
    assert line.endswith(f" s more; it's kept in {copy.path / 'index'}")
    shutil.rmtree(copy.path / "index")
    (copy.path / "index").touch()  # where the folder would be
    epoch_index(copy, NO_WORDS, OPTIONS, 1, 1, said.append)
    assert said[1:] and said[1].endswith(f"it's kept in {cache / 'index'}")


def test_it_is_kept_and_read_again(copy: TokenStore, monkeypatch: pytest.MonkeyPatch):
    made = epoch_index(copy, NO_WORDS, OPTIONS, 1, 0)
    assert len(list((copy.path / "index").iterdir())) == 1
    # Nothing whose time grows with the corpus is done any more.
    monkeypatch.setattr(InstanceOptions, "index_documents", None)
    unread: Any = None
    opened = replace(copy, corpus=replace(copy.corpus, groups=unread))
    assert np.array_equal(epoch_index(opened, NO_WORDS, OPTIONS, 1, 0), made)


def test_what_it_depends_on_has_a_file_of_its_own(copy: TokenStore):
    epoch_index(copy, NO_WORDS, OPTIONS, 1, 0)
    epoch_index(copy, NO_WORDS, OPTIONS, 1, 1)
    epoch_index(copy, NO_WORDS, OPTIONS, 2, 0)
    epoch_index(copy, NO_WORDS, replace(OPTIONS, seq_length=32), 1, 0)
    epoch_index(copy, NO_WORDS, replace(OPTIONS, short_seq_prob=0.2), 1, 0)
    assert len(list((copy.path / "index").iterdir())) == 5


def test_old_epochs_are_removed_but_the_first(copy: TokenStore):
    for epoch in range(8):
        epoch_index(copy, NO_WORDS, OPTIONS, 1, epoch)
    left = sorted(int(p.stem.split("-")[1]) for p in (copy.path / "index").iterdir())
    assert left == [0, 5, 6, 7]
    assert np.array_equal(epoch_index(copy, NO_WORDS, OPTIONS, 1, 2), expected(copy, 2))


def test_a_store_that_cant_be_written_is_indexed_in_the_cache(
    copy: TokenStore, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    (copy.path / "index").touch()  # where the folder would be
    made = epoch_index(copy, NO_WORDS, OPTIONS, 1, 0)
    assert np.array_equal(made, expected(copy, 0))
    assert len(list((cache / "index").iterdir())) == 1
    monkeypatch.setattr(InstanceOptions, "index_documents", None)
    assert np.array_equal(epoch_index(copy, NO_WORDS, OPTIONS, 1, 0), made)


def test_no_folder_at_all(copy: TokenStore, cache: Path):
    (copy.path / "index").touch()
    cache.touch()
    with pytest.raises(DataError, match="no folder for the index.*set MSLT_CACHE_DIR"):
        epoch_index(copy, NO_WORDS, OPTIONS, 1, 0)


def test_many_at_once(copy: TokenStore):
    with ThreadPoolExecutor(8) as executor:
        made = list(executor.map(lambda _: epoch_index(copy, NO_WORDS, OPTIONS, 1, 0), range(16)))
    assert all(np.array_equal(index, expected(copy, 0)) for index in made)
    assert [name for name in os.listdir(copy.path / "index") if name.startswith(".")] == []


@pytest.mark.parametrize("input_format", ["full_sentences", "doc_sentences"])
@pytest.mark.parametrize("masking", ["token", "span"])
def test_packed_sentences_go_on_from_block_to_block(
    copy: TokenStore, monkeypatch: pytest.MonkeyPatch, input_format, masking
):
    options = replace(OPTIONS, input_format=input_format, masking=masking)
    continues = tokenizer.load(copy.tokenizer_dir).continuing_tokens()
    key = epoch_key(copy.digest, 1, 0)
    whole, _ = options.index_documents(copy.corpus, continues, key, 0, copy.num_documents)
    monkeypatch.setattr(module, "_DOCUMENTS_PER_BLOCK", 3)
    assert np.array_equal(epoch_index(copy, continues, options, 1, 0), whole)


@pytest.mark.parametrize("copies", [1, 3])
def test_documents_that_are_all_the_same_are_refused(copy: TokenStore, copies: int):
    manifest = copy.manifest | {"num_documents": copies, "digest": f"copies {copies}"}
    corpus = make_corpus([[[5, 6], [7]]] * copies, groups=[8] * copies)
    same = replace(copy, manifest=manifest, corpus=corpus)
    with pytest.raises(DataError, match=f"{copies} documents, all the same; next-sentence.* 2 "):
        epoch_index(same, NO_WORDS, OPTIONS, 1, 0)
    # Whoever draws from no other document needs none.
    options = replace(OPTIONS, input_format="sop")
    assert len(epoch_index(same, NO_WORDS, options, 1, 0)) == copies


def test_no_instance_at_all(copy: TokenStore):
    manifest = copy.manifest | {"num_documents": 2, "digest": "words"}
    words = replace(copy, manifest=manifest, corpus=make_corpus([[[5]], [[7]]]))
    with pytest.raises(DataError, match="no instance at data.input_format sop"):
        epoch_index(words, NO_WORDS, replace(OPTIONS, input_format="sop"), 1, 0)
    assert not list((copy.path / "index").iterdir())


MAKER = """
import sys, time
from mslt_ds.data import epoch_index as module
from mslt_ds.data.instances import InstanceOptions
from mslt_ds.data.store import TokenStore
from tests.unit.data.comparison import NO_WORDS
from tests.unit.data.test_epoch_index import OPTIONS
made, module._DOCUMENTS_PER_BLOCK = InstanceOptions.index_documents, 7
def slow(*arguments):
    print("making", flush=True)
    time.sleep(float(sys.argv[2]))
    return made(*arguments)
InstanceOptions.index_documents = slow
print("started", flush=True)
print(len(module.epoch_index(TokenStore.open(sys.argv[1]), NO_WORDS, OPTIONS, 1, 0)), flush=True)
"""


def test_of_several_processes_one_makes_it_also_after_a_kill(copy: TokenStore):
    def start(seconds: float) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", MAKER, str(copy.path), str(seconds)],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3],
        )  # fmt: skip

    def said(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    killed = start(1200)
    assert (said(killed), said(killed)) == ("started\n", "making\n")
    others = [start(0.01) for _ in range(3)]
    assert [said(other) for other in others] == ["started\n"] * 3
    time.sleep(0.5)  # in which they come to wait
    killed.kill()
    outputs = [other.communicate(timeout=600)[0].split() for other in others]
    length = str(len(expected(copy, 0)))
    assert [output[-1] for output in outputs] == [length] * 3
    assert sorted(output.count("making") > 0 for output in outputs) == [False, False, True]
    assert len(list((copy.path / "index").iterdir())) == 1
    assert np.array_equal(epoch_index(copy, NO_WORDS, OPTIONS, 1, 0), expected(copy, 0))


def test_without_locks_each_makes_it(copy: TokenStore, monkeypatch: pytest.MonkeyPatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    assert np.array_equal(epoch_index(copy, NO_WORDS, OPTIONS, 1, 0), expected(copy, 0))
    assert len(list((copy.path / "index").iterdir())) == 1
