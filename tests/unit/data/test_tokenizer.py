import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mslt_ds.data import tokenizer
from mslt_ds.data.prepare.documents import TextCounts, TextFile, count_characters
from mslt_ds.errors import DataError

WORDS = ["the", "un", "##believ", "##able", "cat", "a", "##s", ",", "é", "e", "2", "##2"]


def train(text_file: Path, vocab_size: int, *, lowercase: bool = True) -> Tokenizer:
    def documents():
        return TextFile(text_file).documents(TextCounts())

    texts = (paragraph for document in documents() for paragraph in document)
    characters = count_characters(documents())
    return tokenizer.train(texts, characters, vocab_size, lowercase=lowercase)


@pytest.fixture(scope="module")
def trained(text_file: Path) -> Tokenizer:
    return train(text_file, 5000)


def vocabulary_folder(folder: Path, config: dict | None = None) -> Path:
    tokens = [*tokenizer.SPECIAL.values(), *WORDS]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def ids(text: str, of: Tokenizer) -> list[str]:
    return of.encode(text, add_special_tokens=False).tokens


def test_training(trained: Tokenizer, text_file: Path):
    vocabulary = trained.get_vocab()
    assert len(vocabulary) == 5000 == tokenizer.vocab_size(trained)
    assert [vocabulary[token] for token in tokenizer.SPECIAL.values()] == [0, 1, 2, 3, 4]
    assert sorted(vocabulary.values()) == list(range(5000))
    text = text_file.read_text(encoding="utf-8").lower()
    frequent = [word for word, _ in Counter(text.split()).most_common(200) if word.isalpha()]
    assert len(frequent) > 100 and set(frequent) <= set(vocabulary)
    assert ids("The Returned VALUE", trained) == ["the", "returned", "value"]
    assert all("[UNK]" not in ids(line, trained) for line in text.split("\n")[:200])


def test_training_cased(text_file: Path):
    cased = train(text_file, 1000, lowercase=False)
    assert "The" in ids("The", cased) and any(token[0].isupper() for token in cased.get_vocab())


def test_characters_that_end_words_have_no_continuing_form(trained: Tokenizer):
    vocabulary = trained.get_vocab()
    assert "," in vocabulary and "##," not in vocabulary
    assert "e" in vocabulary and "##e" in vocabulary


def test_equal_text_gives_an_equal_vocabulary_in_every_process(trained, text_file, tmp_path):
    """Hash tables are seeded anew in each process, and threads share the counting differently."""
    script = (
        "import sys; from pathlib import Path; from tests.unit.data import test_tokenizer as t; "
        "print(t.tokenizer.vocabulary_digest(t.train(Path(sys.argv[1]), 5000)))"
    )
    found = {tokenizer.vocabulary_digest(trained)}
    for threads in ("1", "2", "5"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        command = [sys.executable, "-c", script, str(text_file)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.add(run.stdout.strip())
    assert len(found) == 1


def test_frequent_words_that_are_missing_are_an_error(trained, text_file, monkeypatch):
    monkeypatch.setattr(Tokenizer, "get_vocab", lambda *_, **__: _without(trained, "the"))
    with pytest.raises(DataError, match="lacks 'the'.*overflowed"):
        train(text_file, 5000)


def _without(of: Tokenizer, word: str) -> dict[str, int]:
    vocabulary = json.loads(of.to_str())["model"]["vocab"]
    del vocabulary[word]
    return vocabulary


def test_a_large_text_is_sampled():
    assert [tokenizer.sampling_stride(n) for n in (1, 1 << 30, (1 << 30) + 1, 100 << 30)] == [
        1, 1, 2, 100,
    ]  # fmt: skip


def test_a_saved_tokenizer_is_loaded_by_transformers(trained: Tokenizer, tmp_path: Path):
    tokenizer.save(trained, tmp_path / "saved", None)
    assert os.listdir(tmp_path) == ["saved"]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.get_vocab() == trained.get_vocab()
    text = "Naïve Größe — 東京, isn't it? [MASK]"
    assert (
        loaded(text, add_special_tokens=False)["input_ids"]
        == trained.encode(text, add_special_tokens=False).ids
    )
    assert ids(text, tokenizer.load(tmp_path / "saved")) == ids(text, trained)
    tokenizer.save(trained, tmp_path / "saved", None)  # another process was faster
    assert os.listdir(tmp_path) == ["saved"]


def test_a_vocabulary_file_is_used(tmp_path: Path):
    loaded = tokenizer.load(tokenizer.find(vocabulary_folder(tmp_path)))
    assert ids("The unbelievable CATS, É", loaded) == [
        "the", "un", "##believ", "##able", "cat", "##s", ",", "e",
    ]  # fmt: skip
    tokenizer.save(loaded, tmp_path / "saved", tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("cats") == ["cat", "##s"]


def test_a_vocabulary_files_configuration_is_heeded(tmp_path: Path):
    folder = vocabulary_folder(
        tmp_path, {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    )
    loaded = tokenizer.load(folder)
    assert ids("The cat É é", loaded) == ["[UNK]", "cat", "[UNK]", "é"]
    tokenizer.save(loaded, tmp_path / "saved", folder)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("The cat") == ["[UNK]", "cat"]


def test_truncation_and_padding_of_a_loaded_tokenizer_are_switched_off(trained, tmp_path):
    trained = Tokenizer.from_str(trained.to_str())
    trained.enable_truncation(4)
    trained.enable_padding(length=8)
    trained.save(str(tmp_path / "tokenizer.json"))
    assert len(tokenizer.load(tmp_path).encode("value " * 50, add_special_tokens=False).ids) == 50


def test_a_configuration_that_contradicts_the_tokenizer_is_found(tmp_path, monkeypatch):
    """A loader that ignores the vocabulary, as transformers has done, doesn't go unnoticed."""
    loaded = tokenizer.load(vocabulary_folder(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nx\n")
    tokenizer.save(tokenizer.load(other), other / "saved", None)
    wrong = AutoTokenizer.from_pretrained(other / "saved")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda _: wrong)
    with pytest.raises(DataError, match=r"another tokenizer of it \(6 tokens\)"):
        tokenizer.save(loaded, tmp_path / "saved", None)
    assert not (tmp_path / "saved").exists()


def test_folders_without_a_tokenizer(tmp_path: Path):
    with pytest.raises(DataError, match="--tokenizer: .*nothing: no such folder or file"):
        tokenizer.find(tmp_path / "nothing")
    with pytest.raises(DataError, match="no tokenizer here; expected tokenizer.json or vocab.txt"):
        tokenizer.find(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    with pytest.raises(DataError, match="no tokenizer here"):
        tokenizer.find(tmp_path)


def test_tokenizers_that_arent_berts(tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("<s>\n</s>\nword\n")
    with pytest.raises(DataError, match=r"can't be read \(vocab.txt lacks \[PAD\]"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="can't be read"):
        tokenizer.load(tmp_path)


def test_a_number_above_the_count_is_counted(tmp_path: Path):
    loaded = tokenizer.load(vocabulary_folder(tmp_path))
    content = json.loads(loaded.to_str())
    content["model"]["vocab"]["far"] = 99
    assert tokenizer.vocab_size(Tokenizer.from_str(json.dumps(content))) == 100


@pytest.mark.parametrize("name", ["bert-base-uncased-vocab.txt", "words"])
def test_a_vocabulary_file_of_any_name(tmp_path: Path, name: str):
    path = (vocabulary_folder(tmp_path) / "vocab.txt").rename(tmp_path / name)
    loaded = tokenizer.load(tokenizer.find(path))
    assert ids("The unbelievable CATS", loaded) == ["the", "un", "##believ", "##able", "cat", "##s"]
    tokenizer.save(loaded, tmp_path / "saved", path)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("The cats") == [
        "the", "cat", "##s",
    ]  # fmt: skip


def test_a_vocabulary_with_capitals_keeps_them_without_being_told(tmp_path: Path):
    tokens = [*tokenizer.SPECIAL.values(), "The", "the", "Caf", "##é", "[unused1]"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    loaded = tokenizer.load(tmp_path)
    assert ids("The the Café", loaded) == ["The", "the", "Caf", "##é"]
    tokenizer.save(loaded, tmp_path / "saved", tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("The") == ["The"]


def test_a_vocabulary_that_isnt_used_is_an_error(tmp_path: Path):
    words = ["The", "Cat", "Is", "On", "A", "Mat", "And", "So", "It", "Goes"]
    tokens = [*tokenizer.SPECIAL.values(), *words]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert ids("The Cat", tokenizer.load(tmp_path)) == ["The", "Cat"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(DataError, match=r"10 of 10 words.*'A', become \[UNK\].*do_lower_case"):
        tokenizer.load(tmp_path)


def test_cased_and_uncased_text(text_file: Path, tmp_path: Path):
    for lowercase in (False, True):
        of_text = train(text_file, 5000, lowercase=lowercase)
        tokenizer.save(of_text, tmp_path / str(lowercase), None)
        loaded = AutoTokenizer.from_pretrained(tmp_path / str(lowercase))
        text = "Return The value é"
        assert loaded.tokenize(text) == ids(text, of_text)
        assert loaded.tokenize("Return")[0] == ("return" if lowercase else "Return")
