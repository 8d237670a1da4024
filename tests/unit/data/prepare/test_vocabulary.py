import hashlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mslt_ds.data import tokenizer
from mslt_ds.data.bert_tokenizer import SPECIAL
from mslt_ds.data.prepare import saved_tokenizer, vocabulary
from mslt_ds.data.prepare.documents import TextCounts, TextFile, count_characters
from mslt_ds.data.prepare.vocabulary import TrainingOptions
from mslt_ds.data.tokenizer import TextEncoder, TextTokenizer
from mslt_ds.errors import DataError
from tests.unit.data.test_tokenizer import ids, vocabulary_folder


def train(text_file: Path, vocab_size: int, **options: Any) -> TextTokenizer:
    def documents():
        return TextFile(text_file).documents(TextCounts())

    texts = (paragraph for document in documents() for paragraph in document)
    characters = count_characters(documents())
    return vocabulary.train(texts, characters, TrainingOptions(vocab_size=vocab_size, **options))


@pytest.fixture(scope="module")
def trained(text_file: Path) -> TextTokenizer:
    return train(text_file, 5000)


def test_training(trained: TextTokenizer, text_file: Path):
    vocabulary = trained.vocabulary
    assert len(vocabulary) == 5000 == trained.vocab_size
    assert [vocabulary[token] for token in SPECIAL.values()] == [0, 1, 2, 3, 4]
    assert sorted(vocabulary.values()) == list(range(5000))
    text = text_file.read_text(encoding="utf-8").lower()
    frequent = [word for word, _ in Counter(text.split()).most_common(200) if word.isalpha()]
    assert len(frequent) > 100 and set(frequent) <= set(vocabulary)
    assert ids("The Returned VALUE", trained) == ["the", "returned", "value"]
    assert all("[UNK]" not in ids(line, trained) for line in text.split("\n")[:200])


def test_training_cased(text_file: Path):
    cased = train(text_file, 1000, lowercase=False)
    assert "The" in ids("The", cased) and any(token[0].isupper() for token in cased.vocabulary)


def test_characters_that_end_words_have_no_continuing_form(trained: TextTokenizer):
    vocabulary = trained.vocabulary
    assert "," in vocabulary and "##," not in vocabulary
    assert "e" in vocabulary and "##e" in vocabulary


def serialized(text_file: Path) -> str:
    """A digest of tokenizers that are trained on the text."""
    trained = [train(text_file, 600, model=model).backend for model in ("wordpiece", "bpe")]
    return hashlib.sha256("".join(one.to_str() for one in trained).encode()).hexdigest()


def test_equal_text_gives_an_equal_vocabulary_in_every_process(text_file: Path, tmp_path: Path):
    """Hash tables are seeded anew in each process, and threads share the counting differently."""
    short = tmp_path / "short.txt"
    short.write_text(text_file.read_text(encoding="utf-8")[:150_000], encoding="utf-8")
    script = (
        "import sys; from pathlib import Path; from tests.unit.data.prepare import test_vocabulary as t; "
        "print(t.serialized(Path(sys.argv[1])))"
    )
    found = {serialized(short)}
    for threads in ("1", "5"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"}
        command = [sys.executable, "-c", script, str(short)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.add(run.stdout.strip())
    assert len(found) == 1


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_other_models(text_file: Path, model: str, tmp_path: Path):
    short = tmp_path / "short.txt"
    short.write_text(text_file.read_text(encoding="utf-8")[:150_000], encoding="utf-8")
    of_text = train(short, 1000, model=model)
    assert of_text.vocab_size <= 1000 and not of_text.added
    assert [of_text.vocabulary[token] for token in SPECIAL.values()] == [0, 1, 2, 3, 4]
    saved_tokenizer.save(of_text, tmp_path / "saved", None)  # compares it with AutoTokenizer's
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "The Returned VALUE, naïve 東京 isn't it."
    expected = "the returned value, naive 東京 isn't it."
    if model == "unigram":  # which doesn't know the ideographs
        expected = expected.replace("東京", "")
    assert (
        loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True).split()
        == expected.split()
    )
    assert loaded("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
    spelt = TextEncoder(tmp_path / "saved").encode(["a [MASK] [SEP] b"], [False])[0]
    assert not {2, 3, 4} & set(spelt)
    again = tokenizer.load(tmp_path / "saved")
    assert again.digest() == of_text.digest() and again.special == of_text.special == SPECIAL


def trained_on(text: str, **options) -> TextTokenizer:
    paragraphs = text.splitlines()
    counts = count_characters(iter([paragraphs]))
    return vocabulary.train(paragraphs, counts, TrainingOptions(**options))


@pytest.mark.parametrize("vocab_size", [1000, 5000])  # the words of the larger one are checked
def test_unigram_has_frequent_words_that_are_part_of_no_other(text_file: Path, vocab_size: int):
    text = text_file.read_text(encoding="utf-8")[:150_000] + "\nzyxwvu zyxwvu" * 200
    of_text = trained_on(text, model="unigram", vocab_size=vocab_size)
    assert of_text.backend.encode("zyxwvu", add_special_tokens=False).tokens == ["\u2581zyxwvu"]
    assert of_text.vocab_size == len(of_text.vocabulary) <= vocab_size


def test_frequent_words_take_the_places_of_the_least_probable_pieces():
    special = [(token, 0.0) for token in SPECIAL.values()]
    single = [("\u2581", -1.0), ("a", -9.5), ("b", -9.0), ("c", -9.9)]
    pieces = [*special, *single, ("ab", -2.0), *((f"a{'b' * n}", -8.0 - n) for n in range(2, 92))]
    words = Counter(
        {"\u2581ac": 90, "ab": 5, "\u2581ad": 5, "\u2581a" + "b" * 15: 5, "\u2581ca": 5}
    )
    found = vocabulary._with_frequent_words(pieces, words, 100)
    assert found[:-2] == pieces[:-2]  # the word with "d" and that of 17 characters aren't pieces
    assert [piece for piece, _ in found[-2:]] == ["\u2581ca", "\u2581ac"]
    assert found[-1][1] == pytest.approx(math.log(90 / 110))
    roomier = vocabulary._with_frequent_words(pieces, words, 101)
    assert roomier[:-2] == pieces[:-1]
    assert [piece for piece, _ in roomier[-2:]] == ["\u2581ca", "\u2581ac"]


@pytest.mark.parametrize(
    "word", ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49"]
)
def test_byte_level_words_are_not_parted_at_vowel_signs(word: str, tmp_path: Path):
    of_text = trained_on(f"a{word} {word}\n" * 300, model="bpe", vocab_size=400, keep_accents=True)
    encoded = of_text.backend.encode(f"{word} {word}", add_special_tokens=False)
    assert len(encoded.tokens) == 2
    assert of_text.backend.decode(encoded.ids).strip() == f"{word} {word}"
    saved_tokenizer.save(of_text, tmp_path / "saved", None)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded(f"{word} {word}", add_special_tokens=False)["input_ids"] == encoded.ids
    assert tokenizer.load(tmp_path / "saved").digest() == of_text.digest()


def test_vowel_signs_that_are_stripped_are_told():
    def stripped(text: str, **options) -> float:
        return vocabulary.stripped_marks(
            count_characters(iter([[text]])), TrainingOptions(**options)
        )

    thai = "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49"  # three of its six are signs
    assert stripped(thai) == 0.5
    assert stripped(thai, keep_accents=True) == stripped(thai, lowercase=False) == 0
    assert stripped("e\u0301te\u0301 \u00e9t\u00e9 \u0451\u0439 \u03ae") == 0
    kana = "\u304c\u304b"  # "ga", which is "ka" with a mark, and "ka"
    assert stripped(kana) == stripped(kana, model="unigram") == pytest.approx(1 / 3)
    assert stripped(kana, keep_accents=True) == 0


def test_frequent_words_that_are_missing_are_an_error(trained, text_file, monkeypatch):
    without = {token: number for token, number in trained.vocabulary.items() if token != "the"}
    monkeypatch.setattr(TextTokenizer, "vocabulary", without)
    with pytest.raises(DataError, match="lacks 'the'.*overflow"):
        train(text_file, 5000)


def test_a_large_text_is_sampled():
    assert [vocabulary.sampling_stride(n, "bpe") for n in (1, 1 << 30, (1 << 30) + 1, 100 << 30)] == [
        1, 1, 2, 100,
    ]  # fmt: skip
    assert vocabulary.sampling_stride(1 << 30, "unigram") == 8


def test_a_saved_tokenizer_is_loaded_by_transformers(trained: TextTokenizer, tmp_path: Path):
    saved_tokenizer.save(trained, tmp_path / "saved", None)
    assert os.listdir(tmp_path) == ["saved"]
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert loaded.get_vocab() == trained.vocabulary
    text = "Naïve Größe — 東京, isn't it? [MASK]"
    assert (
        loaded(text, add_special_tokens=False)["input_ids"]
        == trained.backend.encode(text, add_special_tokens=False).ids
    )
    assert ids(text, tokenizer.load(tmp_path / "saved")) == ids(text, trained)
    saved_tokenizer.save(trained, tmp_path / "saved", None)  # another process was faster
    assert os.listdir(tmp_path) == ["saved"]


def test_a_configuration_that_contradicts_the_tokenizer_is_found(tmp_path, monkeypatch):
    """A loader that ignores the vocabulary, as transformers has done, doesn't go unnoticed."""
    loaded = tokenizer.load(vocabulary_folder(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nx\n")
    saved_tokenizer.save(tokenizer.load(other), other / "saved", None)
    wrong = AutoTokenizer.from_pretrained(other / "saved")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: wrong)
    with pytest.raises(DataError, match=r"another tokenizer of it \(6 tokens\)"):
        saved_tokenizer.save(loaded, tmp_path / "saved", None)
    assert not (tmp_path / "saved").exists()


def test_cased_and_uncased_text(text_file: Path, tmp_path: Path):
    for lowercase in (False, True):
        of_text = train(text_file, 5000, lowercase=lowercase)
        saved_tokenizer.save(of_text, tmp_path / str(lowercase), None)
        loaded = AutoTokenizer.from_pretrained(tmp_path / str(lowercase))
        text = "Return The value é"
        assert loaded.tokenize(text) == ids(text, of_text)
        assert loaded.tokenize("Return")[0] == ("return" if lowercase else "Return")


def test_a_file_that_adds_tokens_is_named(tmp_path: Path):
    given = tmp_path / "given"
    given.mkdir()
    loaded = tokenizer.load(vocabulary_folder(given))
    added = {"<extra>": loaded.vocab_size}
    (given / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(DataError, match="--tokenizer: added_tokens.json adds '<extra>'"):
        saved_tokenizer.save(loaded, tmp_path / "saved", given)


def alphabet_of(characters: str, vocab_size: int, size: int | None = None) -> set[str]:
    """The single characters of a vocabulary that is trained on a text of these characters."""
    counts = count_characters(iter([[characters]]))
    texts = [f"{one} " for one in characters]
    options = TrainingOptions(vocab_size=vocab_size, alphabet=size)
    of_text = vocabulary.train(texts, counts, options)
    return {token for token in of_text.vocabulary if token not in SPECIAL.values()}


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


def test_a_long_word_is_cut_and_an_unknown_character_costs_one_token(tmp_path: Path):
    text = "abcdefghij " * 900 + "unknown \u2620 rare"
    counts = count_characters(iter([[text]]))
    of_text = vocabulary.train([text], counts, TrainingOptions(vocab_size=300, alphabet=30))
    saved_tokenizer.save(of_text, tmp_path / "saved", None)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for given, unknown in {
        "abcdefghij" * 25: 0,
        "ab\U0001f6b2cd": 1,
        "\U0001f6b2\U0001f6b2": 2,
        "\U0001f6b2" + "j" * 99 + "\U0001f6b2": 2,
    }.items():
        tokens = loaded.tokenize(given)
        assert tokens == ids(given, of_text) and tokens.count("[UNK]") == unknown
        assert "".join(tokens).replace("##", "") == given.replace("\U0001f6b2", "[UNK]")
    # Three words of at most 100 characters.
    assert sum(not token.startswith("##") for token in loaded.tokenize("abcdefghij" * 25)) == 3


def test_accents_can_be_kept_in_lower_case():
    text = "\u00c9t\u00e9 \u00e0 No\u00ebl " * 50
    counts = count_characters(iter([[text]]))
    for keep, word in ((True, "no\u00ebl"), (False, "noel")):
        options = TrainingOptions(vocab_size=300, keep_accents=keep)
        assert word in vocabulary.train([text], counts, options).vocabulary
