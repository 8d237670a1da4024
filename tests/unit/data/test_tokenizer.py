import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mslt_ds.data import tokenizer
from mslt_ds.data.prepare import vocabulary
from mslt_ds.errors import DataError

WORDS = ["the", "un", "##believ", "##able", "cat", "a", "##s", ",", "é", "e", "2", "##2"]


def vocabulary_folder(folder: Path, config: dict | None = None) -> Path:
    tokens = [*tokenizer.SPECIAL.values(), *WORDS]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def ids(text: str, of: Tokenizer) -> list[str]:
    return of.encode(text, add_special_tokens=False).tokens


def test_a_vocabulary_file_is_used(tmp_path: Path):
    loaded = tokenizer.load(tokenizer.find(vocabulary_folder(tmp_path)))
    assert ids("The unbelievable CATS, É", loaded) == [
        "the", "un", "##believ", "##able", "cat", "##s", ",", "e",
    ]  # fmt: skip
    vocabulary.save(loaded, tmp_path / "saved", tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("cats") == ["cat", "##s"]


def test_a_vocabulary_files_configuration_is_heeded(tmp_path: Path):
    folder = vocabulary_folder(
        tmp_path, {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    )
    loaded = tokenizer.load(folder)
    assert ids("The cat É é", loaded) == ["[UNK]", "cat", "[UNK]", "é"]
    vocabulary.save(loaded, tmp_path / "saved", folder)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("The cat") == ["[UNK]", "cat"]


def test_truncation_and_padding_of_a_loaded_tokenizer_are_switched_off(store, tmp_path):
    trained = tokenizer.load(store.tokenizer_dir)
    trained.enable_truncation(4)
    trained.enable_padding(length=8)
    trained.save(str(tmp_path / "tokenizer.json"))
    assert len(tokenizer.load(tmp_path).encode("value " * 50, add_special_tokens=False).ids) == 50


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
    vocabulary.save(loaded, tmp_path / "saved", path)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("The cats") == [
        "the", "cat", "##s",
    ]  # fmt: skip


def test_a_vocabulary_with_capitals_keeps_them_without_being_told(tmp_path: Path):
    tokens = [*tokenizer.SPECIAL.values(), "The", "the", "Caf", "##é", "[unused1]"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    loaded = tokenizer.load(tmp_path)
    assert ids("The the Café", loaded) == ["The", "the", "Caf", "##é"]
    vocabulary.save(loaded, tmp_path / "saved", tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("The") == ["The"]


def test_a_vocabulary_that_isnt_used_is_an_error(tmp_path: Path):
    words = ["The", "Cat", "Is", "On", "A", "Mat", "And", "So", "It", "Goes"]
    tokens = [*tokenizer.SPECIAL.values(), *words]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert ids("The Cat", tokenizer.load(tmp_path)) == ["The", "Cat"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(DataError, match=r"10 of 10 words.*'A', become \[UNK\].*do_lower_case"):
        tokenizer.load(tmp_path)


SPELT_OUT = "A cat [MASK] the [SEP]cat[CLS] [PAD] [UNK]."


def spelling_tokenizer() -> Tokenizer:
    words = ["a", "cat", "the", "[", "]", ".", "mask", "sep", "cls", "pad", "un", "##k"]
    tokens = enumerate([*tokenizer.SPECIAL.values(), *words])
    return tokenizer.pipeline({token: number for number, token in tokens}, lowercase=True)


def test_special_tokens_that_a_text_spells_out_are_text(tmp_path: Path):
    spelling_tokenizer().save(str(tmp_path / "tokenizer.json"))
    assert ids(SPELT_OUT, tokenizer.load_for_text(tmp_path)) == [
        "a", "cat", "[", "mask", "]", "the", "[", "sep", "]", "cat", "[", "cls", "]",
        "[", "pad", "]", "[", "un", "##k", "]", ".",
    ]  # fmt: skip


@pytest.mark.parametrize("part", ["added_tokens", "pre_tokenizer"])
def test_a_tokenizer_that_takes_text_for_special_tokens_is_refused(tmp_path: Path, part: str):
    content = json.loads(spelling_tokenizer().to_str())
    if part == "added_tokens":
        for token in content["added_tokens"]:
            token["special"] = False
    else:
        content["pre_tokenizer"] = {"type": "WhitespaceSplit"}
        content["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"\[PAD\] written in a text becomes the special .*BertPreTok"
    ):
        tokenizer.load_for_text(tmp_path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["cat"], r"'cat' is on line 10 and again on line 18.*write \[unusedN\] on one"),
        (["new", "  cat\t"], "'cat' is on line 10 and again on line 19"),
        (["", "new"], r"line 18 is blank.*write \[unusedN\] there"),
        ([" ", "new"], "line 18 is blank"),
    ],
)
def test_a_vocabulary_file_whose_ids_are_ambiguous_is_refused(tmp_path: Path, extra, message: str):
    tokens = [*tokenizer.SPECIAL.values(), *WORDS, *extra]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"--tokenizer: .*vocab.txt: {message}"):
        tokenizer.load(tmp_path)


def test_two_tokens_of_one_id_are_refused(tmp_path: Path):
    content = json.loads(tokenizer.load(vocabulary_folder(tmp_path)).to_str())
    content["model"]["vocab"]["dog"] = content["model"]["vocab"]["cat"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="'cat' and 'dog' both have the id 9; give one"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("form", ["\ufeff{}", "{}\n\n", "{}\r\n", "{} \n"])
def test_line_ends_and_marks_belong_to_no_token(tmp_path: Path, form: str):
    plain = tokenizer.load(vocabulary_folder(tmp_path)).get_vocab()
    text = "\n".join([*tokenizer.SPECIAL.values(), *WORDS])
    if "\r" in form:
        text = text.replace("\n", "\r\n")
    (tmp_path / "vocab.txt").write_bytes(form.format(text).encode())
    assert tokenizer.load(tmp_path).get_vocab() == plain


def test_the_saved_ids_come_from_the_tokenizer_alone(tmp_path: Path):
    """A vocab.txt that contradicts tokenizer.json isn't copied, and a file of lines has no gaps."""
    content = json.loads(tokenizer.load(vocabulary_folder(tmp_path)).to_str())
    (tmp_path / "vocab.txt").write_text("other\n")
    for name, number in (("next", 17), ("far", 99)):
        content["model"]["vocab"]["new"] = number
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        loaded = tokenizer.load(tmp_path)
        vocabulary.save(loaded, tmp_path / name, tmp_path)
        saved = AutoTokenizer.from_pretrained(tmp_path / name)
        assert saved.get_vocab() == loaded.get_vocab() == content["model"]["vocab"]
    lines = (tmp_path / "next" / "vocab.txt").read_text(encoding="utf-8").split()
    assert lines == [*tokenizer.SPECIAL.values(), *WORDS, "new"]
    assert not (tmp_path / "far" / "vocab.txt").exists()
