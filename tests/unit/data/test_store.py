import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mslt_ds.data import inspect
from mslt_ds.data.store import ARRAYS, FORMAT, MANIFEST, TOKENS, TokenStore, token_dtype
from mslt_ds.errors import DataError
from tests.fuzzing import damaged
from tests.unit.data.conftest import VOCAB_SIZE


@pytest.fixture
def copy(store_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store_path, tmp_path / "copy"))


def test_what_a_store_holds(store: TokenStore, store_path: Path):
    corpus = store.corpus
    assert corpus.tokens.dtype == np.uint16
    assert store.num_tokens == len(corpus.tokens) == corpus.sentences[-1]
    assert store.num_sentences == len(corpus.sentences) - 1 == corpus.documents[-1]
    assert store.num_documents == len(corpus.documents) - 1 > 100
    assert (np.diff(corpus.sentences) > 0).all() and (np.diff(corpus.documents) > 0).all()
    assert len(np.unique(corpus.groups)) == len(corpus.groups) == store.num_documents
    assert store.vocab_size == corpus.vocab_size == VOCAB_SIZE
    assert type(corpus.tokens) is np.ndarray and not corpus.tokens.flags.writeable
    assert np.array_equal(store.token_counts, np.bincount(corpus.tokens, minlength=VOCAB_SIZE))
    store.verify()


def test_the_tokenizer_is_loaded_by_transformers(store: TokenStore, text_file: Path):
    tokenizer = AutoTokenizer.from_pretrained(store.tokenizer_dir)
    assert len(tokenizer) == store.vocab_size
    first_line = text_file.read_text(encoding="utf-8").split("\n")[0]
    ids = tokenizer(first_line, add_special_tokens=False)["input_ids"]
    assert store.corpus.tokens[: len(ids)].tolist() == ids
    special = store.corpus.special
    found = tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id
    assert found == (special.pad, special.cls, special.sep)
    assert tokenizer.mask_token_id == special.mask
    pair = tokenizer("one", "two")
    assert pair["token_type_ids"][0] == 0 and pair["token_type_ids"][-1] == 1


def test_entropy(store: TokenStore):
    shares = [count / store.num_tokens for count in store.token_counts.tolist() if count]
    assert store.unigram_entropy() == pytest.approx(-sum(p * np.log(p) for p in shares))
    assert 3 < store.unigram_entropy() < np.log(VOCAB_SIZE)


def test_token_numbers_take_the_smallest_type_that_holds_them():
    assert token_dtype(65_536) == np.dtype("<u2") and token_dtype(65_537) == np.dtype("<u4")


def test_a_folder_that_isnt_there_a_file_and_a_folder_without_manifest(tmp_path: Path):
    with pytest.raises(DataError, match="nothing: no such token store; make it with"):
        TokenStore.open(tmp_path / "nothing")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: a file; expected the folder"):
        TokenStore.open(tmp_path / "file")
    with pytest.raises(DataError, match="no manifest.json here.*run the same"):
        TokenStore.open(tmp_path)


@pytest.mark.parametrize("name", ARRAYS[:4])
def test_files_that_are_cut_or_missing_are_named(copy: Path, name: str):
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-2])
    with pytest.raises(DataError, match=f"{name}: damaged, {len(content) - 2} bytes instead of"):
        TokenStore.open(copy)
    (copy / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing; prepare the store again"):
        TokenStore.open(copy)


def test_a_manifest_that_isnt_one(copy: Path):
    (copy / MANIFEST).write_text('{"format": 99}')
    with pytest.raises(DataError, match="format 99, but this version reads format"):
        TokenStore.open(copy)
    (copy / MANIFEST).write_text("[1]")
    with pytest.raises(DataError, match="a list instead of an object"):
        TokenStore.open(copy)
    (copy / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="can't be read"):
        TokenStore.open(copy)
    (copy / MANIFEST).write_text(f'{{"format": {FORMAT}}}')
    with pytest.raises(DataError, match="lacks"):
        TokenStore.open(copy)


def test_a_changed_byte_is_found_and_named(copy: Path):
    content = bytearray((copy / TOKENS).read_bytes())
    content[100] ^= 1
    (copy / TOKENS).write_bytes(content)
    with pytest.raises(DataError, match="tokens.bin: damaged, its sha256"):
        TokenStore.open(copy).verify()


def test_same_vocabulary(store: TokenStore, copy: Path):
    assert store.same_vocabulary(TokenStore.open(copy))
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(manifest | {"vocabulary_digest": "other"}))
    assert not store.same_vocabulary(TokenStore.open(copy))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_manifest_with_wrong_values_raises_no_library_error(store_path, tmp_path, data):
    if not (tmp_path / "copy").exists():
        shutil.copytree(store_path, tmp_path / "copy")
    manifest = json.loads((store_path / MANIFEST).read_text())
    content = data.draw(damaged({key: value for key, value in manifest.items() if key != "job"}))
    (tmp_path / "copy" / MANIFEST).write_text(json.dumps(content))
    try:
        store = TokenStore.open(tmp_path / "copy")
        store.verify()
        inspect.figures(store)
    except DataError as error:
        assert str(tmp_path / "copy") in str(error)


def test_a_manifest_names_no_files_outside_of_its_folder(copy: Path):
    """Nor does it make them read: a checksum in an error would tell what they hold."""
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["checksums"]["../secret"] = "0"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    (copy.parent / "secret").write_text("secret")
    with pytest.raises(DataError, match="damaged, checksums isn't what"):
        TokenStore.open(copy)
