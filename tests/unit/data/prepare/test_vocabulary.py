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
from mslt_ds.data.prepare import vocabulary
from mslt_ds.data.prepare.documents import TextCounts, TextFile, count_characters
from mslt_ds.errors import DataError
from tests.unit.data.test_tokenizer import ids, vocabulary_folder


def train(text_file: Path, vocab_size: int, *, lowercase: bool = True) -> Tokenizer:
    def documents():
        return TextFile(text_file).documents(TextCounts())

    texts = (paragraph for document in documents() for paragraph in document)
    characters = count_characters(documents())
    return vocabulary.train(texts, characters, vocab_size, lowercase=lowercase)


@pytest.fixture(scope="module")
def trained(text_file: Path) -> Tokenizer:
    return train(text_file, 5000)


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
        "import sys; from pathlib import Path; from tests.unit.data.prepare import test_vocabulary as t; "
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
    assert [vocabulary.sampling_stride(n) for n in (1, 1 << 30, (1 << 30) + 1, 100 << 30)] == [
        1, 1, 2, 100,
    ]  # fmt: skip


def test_a_saved_tokenizer_is_loaded_by_transformers(trained: Tokenizer, tmp_path: Path):
    vocabulary.save(trained, tmp_path / "saved", None)
    assert os.listdir(tmp_path) == ["saved"]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.get_vocab() == trained.get_vocab()
    text = "Naïve Größe — 東京, isn't it? [MASK]"
    assert (
        loaded(text, add_special_tokens=False)["input_ids"]
        == trained.encode(text, add_special_tokens=False).ids
    )
    assert ids(text, tokenizer.load(tmp_path / "saved")) == ids(text, trained)
    vocabulary.save(trained, tmp_path / "saved", None)  # another process was faster
    assert os.listdir(tmp_path) == ["saved"]


def test_a_configuration_that_contradicts_the_tokenizer_is_found(tmp_path, monkeypatch):
    """A loader that ignores the vocabulary, as transformers has done, doesn't go unnoticed."""
    loaded = tokenizer.load(vocabulary_folder(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nx\n")
    vocabulary.save(tokenizer.load(other), other / "saved", None)
    wrong = AutoTokenizer.from_pretrained(other / "saved")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: wrong)
    with pytest.raises(DataError, match=r"another tokenizer of it \(6 tokens\)"):
        vocabulary.save(loaded, tmp_path / "saved", None)
    assert not (tmp_path / "saved").exists()


def test_cased_and_uncased_text(text_file: Path, tmp_path: Path):
    for lowercase in (False, True):
        of_text = train(text_file, 5000, lowercase=lowercase)
        vocabulary.save(of_text, tmp_path / str(lowercase), None)
        loaded = AutoTokenizer.from_pretrained(tmp_path / str(lowercase))
        text = "Return The value é"
        assert loaded.tokenize(text) == ids(text, of_text)
        assert loaded.tokenize("Return")[0] == ("return" if lowercase else "Return")


def test_a_file_that_adds_tokens_is_named(tmp_path: Path):
    given = tmp_path / "given"
    given.mkdir()
    loaded = tokenizer.load(vocabulary_folder(given))
    added = {"<extra>": tokenizer.vocab_size(loaded)}
    (given / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(DataError, match="--tokenizer: added_tokens.json adds '<extra>'"):
        vocabulary.save(loaded, tmp_path / "saved", given)


def alphabet_of(characters: str, vocab_size: int, size: int | None = None) -> set[str]:
    """The single characters of a vocabulary that is trained on a text of these characters."""
    counts = count_characters(iter([[characters]]))
    texts = [f"{one} " for one in characters]
    of_text = vocabulary.train(texts, counts, vocab_size, lowercase=True, alphabet_size=size)
    return {token for token in of_text.get_vocab() if token not in tokenizer.SPECIAL.values()}


IDEOGRAPHS = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
SYLLABLES = "".join(map(chr, range(0x1401, 0x1401 + 600)))  # of Canadian Aboriginal languages


def test_the_alphabet_grows_with_the_text_and_ideographs_stand_alone():
    assert alphabet_of(IDEOGRAPHS * 2, 8000) == set(IDEOGRAPHS)
    expected = set(SYLLABLES) | {f"##{one}" for one in SYLLABLES}
    assert alphabet_of(SYLLABLES * 2, 3000) == expected


def test_the_alphabet_leaves_half_of_the_vocabulary():
    assert len(alphabet_of(IDEOGRAPHS * 2, 2000)) == 1000
    assert len(alphabet_of(SYLLABLES * 2, 1000)) == 500  # each with and without ##


def test_a_few_rare_characters_do_not_enlarge_the_alphabet():
    alphabet = alphabet_of("abcdefghij" * 90_000 + SYLLABLES[:70], 300)
    assert len({one for one in alphabet if len(one) == 1}) == 60


def test_a_larger_alphabet_has_rare_characters_too():
    assert alphabet_of(IDEOGRAPHS[:2999] * 20 + IDEOGRAPHS[2999], 8000) == set(IDEOGRAPHS)


def test_the_alphabet_can_be_set():
    assert len(alphabet_of(IDEOGRAPHS * 2, 8000, 1500)) == 1500
