import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mslt_ds.data import epoch_index as module
from mslt_ds.data.epoch_index import epoch_index
from mslt_ds.data.instances import InstanceOptions, epoch_key, index_documents
from mslt_ds.data.store import TokenStore
from mslt_ds.errors import DataError
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
    return index_documents(store.corpus, OPTIONS, key, 0, store.num_documents)


def test_blocks_make_the_whole(copy: TokenStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_DOCUMENTS_PER_BLOCK", 7)
    assert np.array_equal(epoch_index(copy, OPTIONS, 1, 0), expected(copy, 0))


def test_it_is_kept_and_read_again(copy: TokenStore, monkeypatch: pytest.MonkeyPatch):
    made = epoch_index(copy, OPTIONS, 1, 0)
    assert len(list((copy.path / "index").iterdir())) == 1
    monkeypatch.setattr(module, "index_documents", None)  # not called any more
    assert np.array_equal(epoch_index(copy, OPTIONS, 1, 0), made)


def test_what_it_depends_on_has_a_file_of_its_own(copy: TokenStore):
    epoch_index(copy, OPTIONS, 1, 0)
    epoch_index(copy, OPTIONS, 1, 1)
    epoch_index(copy, OPTIONS, 2, 0)
    epoch_index(copy, replace(OPTIONS, seq_length=32), 1, 0)
    epoch_index(copy, replace(OPTIONS, short_seq_prob=0.2), 1, 0)
    assert len(list((copy.path / "index").iterdir())) == 5


def test_old_epochs_are_removed_but_the_first(copy: TokenStore):
    for epoch in range(8):
        epoch_index(copy, OPTIONS, 1, epoch)
    left = sorted(int(p.stem.split("-")[1]) for p in (copy.path / "index").iterdir())
    assert left == [0, 5, 6, 7]
    assert np.array_equal(epoch_index(copy, OPTIONS, 1, 2), expected(copy, 2))


def test_a_store_that_cant_be_written_is_indexed_in_the_cache(
    copy: TokenStore, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    (copy.path / "index").touch()  # where the folder would be
    assert np.array_equal(epoch_index(copy, OPTIONS, 1, 0), expected(copy, 0))
    assert len(list((cache / "index").iterdir())) == 1
    monkeypatch.setattr(module, "index_documents", None)
    assert np.array_equal(epoch_index(copy, OPTIONS, 1, 0), expected(copy, 0))


def test_no_folder_at_all(copy: TokenStore, cache: Path):
    (copy.path / "index").touch()
    cache.touch()
    with pytest.raises(DataError, match="no folder for the index.*set MSLT_CACHE_DIR"):
        epoch_index(copy, OPTIONS, 1, 0)


def test_many_at_once(copy: TokenStore):
    with ThreadPoolExecutor(8) as executor:
        made = list(executor.map(lambda _: epoch_index(copy, OPTIONS, 1, 0), range(16)))
    assert all(np.array_equal(index, expected(copy, 0)) for index in made)
    assert [name for name in os.listdir(copy.path / "index") if name.startswith(".")] == []


def test_one_document_is_refused(copy: TokenStore):
    manifest = copy.manifest | {"num_documents": 1}
    one = replace(copy, manifest=manifest, corpus=make_corpus([[[5, 6], [7]]]))
    with pytest.raises(DataError, match="1 document; next-sentence prediction.*at least 2"):
        epoch_index(one, OPTIONS, 1, 0)
