"""Files of a store and an index that say anything: an error that names the file, never a crash or a wait."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mslt_ds.data import store as module
from mslt_ds.data.instances import InstanceOptions
from mslt_ds.data.loader import InstanceSequence
from mslt_ds.data.store import (
    ARRAYS,
    DOCUMENTS,
    GROUPS,
    MANIFEST,
    SENTENCES,
    TOKENS,
    TokenStore,
    file_digest,
)
from mslt_ds.errors import DataError

OPTIONS = [
    InstanceOptions(seq_length=32, max_predictions=5, input_format="nsp", masking="token"),
    InstanceOptions(seq_length=32, max_predictions=5, input_format="sop", masking="whole_word"),
    InstanceOptions(
        seq_length=32, max_predictions=5, input_format="full_sentences", masking="span"
    ),
]


@pytest.fixture
def copy(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MSLT_CACHE_DIR", str(tmp_path / "cache"))
    return shutil.copytree(store_path, tmp_path / "copy", ignore=shutil.ignore_patterns("index"))


def forge(path: Path) -> None:
    """Make the manifest say that the files are as they should be."""
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["checksums"] = {name: file_digest(path / name) for name in ARRAYS}
    (path / MANIFEST).write_text(json.dumps(manifest))


def build_all(path: Path, options: InstanceOptions) -> None:
    """Every instance of an epoch, as training builds them."""
    opened = TokenStore.open(path)
    sequence = InstanceSequence(opened, options, seed=1)
    sequence.check_files()
    entries, keys = sequence.entries(0, sequence.length)
    tensors = sequence.build(entries, keys)
    assert tensors["input_ids"].max() < opened.vocab_size


def change(file: Path, position: int, content: bytes) -> None:
    before = file.read_bytes()
    at = position % len(before)
    file.write_bytes((before[:at] + content + before[at + len(content) :])[: len(before)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    name=st.sampled_from(ARRAYS[:4]),
    position=st.integers(0, 10**6),
    content=st.binary(min_size=1, max_size=64) | st.binary(min_size=4096, max_size=4096),
    options=st.sampled_from(OPTIONS),
    is_forged=st.booleans(),
)
def test_whatever_the_stores_bytes_say(copy, name, position, content, options, is_forged):
    before = (copy / name).read_bytes()
    manifest = (copy / MANIFEST).read_text()
    change(copy / name, position, content)
    changed = (copy / name).read_bytes() != before
    if is_forged:
        forge(copy)
    shutil.rmtree(copy / "index", ignore_errors=True)
    try:
        build_all(copy, options)
        if changed and not is_forged:
            with pytest.raises(DataError, match=name):
                TokenStore.open(copy).verify_at_start()
    except DataError as error:
        assert changed and (name in str(error) or "all the same" in str(error))
    finally:
        (copy / name).write_bytes(before)
        (copy / MANIFEST).write_text(manifest)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(
    position=st.integers(0, 10**6),
    content=st.binary(max_size=64),
    size=st.none() | st.integers(0, 10**5),
    options=st.sampled_from(OPTIONS),
)
def test_whatever_an_index_says_it_is_made_anew(copy, position, content, size, options):
    opened = TokenStore.open(copy)
    good = InstanceSequence(opened, options, seed=1).index(0).copy()
    (path,) = (copy / "index").iterdir()
    change(path, position, content)
    if size is not None:
        path.write_bytes(path.read_bytes()[: size // 8 * 8])
    assert np.array_equal(InstanceSequence(opened, options, seed=1).index(0), good)
    (path,) = (copy / "index").iterdir()
    path.unlink()


def test_an_index_of_another_epoch_or_recipe_is_not_taken_for_it(copy):
    opened = TokenStore.open(copy)
    sequence = InstanceSequence(opened, OPTIONS[0], seed=1)
    indices = [sequence.index(epoch).copy() for epoch in (0, 1)]
    first, second = sorted((copy / "index").iterdir())
    shutil.copyfile(second, first)
    sequence = InstanceSequence(opened, OPTIONS[0], seed=1)
    assert all(np.array_equal(sequence.index(epoch), indices[epoch]) for epoch in (0, 1))


def test_no_index_is_made_of_a_damaged_store(copy):
    content = bytearray((copy / GROUPS).read_bytes())
    content[3] ^= 1
    (copy / GROUPS).write_bytes(content)
    with pytest.raises(DataError, match="groups.bin: damaged, its sha256"):
        InstanceSequence(TokenStore.open(copy), OPTIONS[0], seed=1)
    assert not list(copy.glob("index/*"))


@pytest.mark.parametrize("name", [SENTENCES, DOCUMENTS])
def test_offsets_have_to_rise(copy, name):
    offsets = np.fromfile(copy / name, dtype="<i8")
    offsets[3] = offsets[4]
    offsets.tofile(copy / name)
    with pytest.raises(DataError, match=f"{name}: damaged, its offsets don't rise from 0 to"):
        TokenStore.open(copy)


def test_a_large_store_is_verified_in_the_background(copy, monkeypatch):
    content = bytearray((copy / TOKENS).read_bytes())
    content[100] ^= 1
    (copy / TOKENS).write_bytes(content)
    with pytest.raises(DataError, match="tokens.bin: damaged"):
        TokenStore.open(copy).verify_at_start()
    monkeypatch.setattr(module, "_VERIFIED_AT_ONCE", 0)
    opened = TokenStore.open(copy)
    opened.verify_at_start()
    with pytest.raises(DataError, match="tokens.bin: damaged"):
        for _ in wait():
            opened.check()


def wait() -> Iterator[None]:
    import time

    for _ in range(6000):
        yield
        time.sleep(0.05)
