import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import AutoTokenizer

from mslt_ds.data import tokenizer
from mslt_ds.data.bert_tokenizer import SPECIAL, pipeline
from mslt_ds.data.prepare import saved_tokenizer
from mslt_ds.data.tokenizer import TextEncoder, TextTokenizer
from mslt_ds.errors import DataError
from tests.fuzzing import damaged

WORDS = ["the", "un", "##believ", "##able", "cat", "a", "##s", ",", "é", "e", "2", "##2"]


def vocabulary_folder(folder: Path, config: dict | None = None) -> Path:
    tokens = [*SPECIAL.values(), *WORDS]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def ids(text: str, of: TextTokenizer) -> list[str]:
    return of.backend.encode(text, add_special_tokens=False).tokens


def test_a_vocabulary_file_is_used(tmp_path: Path):
    loaded = tokenizer.load(tokenizer.find(vocabulary_folder(tmp_path)))
    assert ids("The unbelievable CATS, É", loaded) == [
        "the", "un", "##believ", "##able", "cat", "##s", ",", "e",
    ]  # fmt: skip
    saved_tokenizer.save(loaded, tmp_path / "saved", tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("cats") == ["cat", "##s"]


def test_a_vocabulary_files_configuration_is_heeded(tmp_path: Path):
    folder = vocabulary_folder(
        tmp_path, {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}
    )
    loaded = tokenizer.load(folder)
    assert ids("The cat É é", loaded) == ["[UNK]", "cat", "[UNK]", "é"]
    saved_tokenizer.save(loaded, tmp_path / "saved", folder)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("The cat") == ["[UNK]", "cat"]


def test_truncation_and_padding_of_a_loaded_tokenizer_are_switched_off(store, tmp_path):
    trained = tokenizer.load(store.tokenizer_dir).backend
    trained.enable_truncation(4)
    trained.enable_padding(length=8)
    trained.save(str(tmp_path / "tokenizer.json"))
    assert (
        len(tokenizer.load(tmp_path).backend.encode("value " * 50, add_special_tokens=False).ids)
        == 50
    )


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
    content = json.loads(loaded.backend.to_str())
    content["model"]["vocab"]["far"] = 99
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer.load(tmp_path).vocab_size == 100


@pytest.mark.parametrize("name", ["bert-base-uncased-vocab.txt", "words"])
def test_a_vocabulary_file_of_any_name(tmp_path: Path, name: str):
    path = (vocabulary_folder(tmp_path) / "vocab.txt").rename(tmp_path / name)
    loaded = tokenizer.load(tokenizer.find(path))
    assert ids("The unbelievable CATS", loaded) == ["the", "un", "##believ", "##able", "cat", "##s"]
    saved_tokenizer.save(loaded, tmp_path / "saved", path)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("The cats") == [
        "the", "cat", "##s",
    ]  # fmt: skip


def test_a_vocabulary_with_capitals_keeps_them_without_being_told(tmp_path: Path):
    tokens = [*SPECIAL.values(), "The", "the", "Caf", "##é", "[unused1]"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    loaded = tokenizer.load(tmp_path)
    assert ids("The the Café", loaded) == ["The", "the", "Caf", "##é"]
    saved_tokenizer.save(loaded, tmp_path / "saved", tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").tokenize("The") == ["The"]


def test_a_vocabulary_that_isnt_used_is_an_error(tmp_path: Path):
    words = ["The", "Cat", "Is", "On", "A", "Mat", "And", "So", "It", "Goes"]
    tokens = [*SPECIAL.values(), *words]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert ids("The Cat", tokenizer.load(tmp_path)) == ["The", "Cat"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    with pytest.raises(DataError, match=r"10 of 10 words.*'A', aren't found.*do_lower_case"):
        tokenizer.load(tmp_path)


SPELT_OUT = "A cat [MASK] the [SEP]cat[CLS] [PAD] [UNK]."


def spelling_tokenizer() -> Tokenizer:
    words = ["a", "cat", "the", "[", "]", ".", "mask", "sep", "cls", "pad", "un", "##k"]
    tokens = enumerate([*SPECIAL.values(), *words])
    return pipeline({token: number for number, token in tokens}, lowercase=True)


def test_special_tokens_that_a_text_spells_out_are_text(tmp_path: Path):
    spelling_tokenizer().save(str(tmp_path / "tokenizer.json"))
    names = [token for token, _ in tokenizer.load(tmp_path).tokens_by_id()]
    (found,) = TextEncoder(tmp_path).encode([SPELT_OUT], [False])
    assert [names[number] for number in found] == [
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
        DataError, match=r"\[CLS\] written in a text becomes the special .*BertPreTok"
    ):
        TextEncoder(tmp_path)


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
    tokens = [*SPECIAL.values(), *WORDS, *extra]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"--tokenizer: .*vocab.txt: {message}"):
        tokenizer.load(tmp_path)


def test_two_tokens_of_one_id_are_refused(tmp_path: Path):
    content = json.loads(tokenizer.load(vocabulary_folder(tmp_path)).backend.to_str())
    content["model"]["vocab"]["dog"] = content["model"]["vocab"]["cat"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="'cat' and 'dog' both have the id 9; give one"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("form", ["\ufeff{}", "{}\n\n", "{}\r\n", "{} \n"])
def test_line_ends_and_marks_belong_to_no_token(tmp_path: Path, form: str):
    plain = tokenizer.load(vocabulary_folder(tmp_path)).vocabulary
    text = "\n".join([*SPECIAL.values(), *WORDS])
    if "\r" in form:
        text = text.replace("\n", "\r\n")
    (tmp_path / "vocab.txt").write_bytes(form.format(text).encode())
    assert tokenizer.load(tmp_path).vocabulary == plain


def test_the_saved_ids_come_from_the_tokenizer_alone(tmp_path: Path):
    """A vocab.txt that contradicts tokenizer.json isn't copied, and a file of lines has no gaps."""
    content = json.loads(tokenizer.load(vocabulary_folder(tmp_path)).backend.to_str())
    (tmp_path / "vocab.txt").write_text("other\n")
    for name, number in (("next", 17), ("far", 99)):
        content["model"]["vocab"]["new"] = number
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        loaded = tokenizer.load(tmp_path)
        saved_tokenizer.save(loaded, tmp_path / name, tmp_path)
        saved = AutoTokenizer.from_pretrained(tmp_path / name)
        assert saved.get_vocab() == loaded.vocabulary == content["model"]["vocab"]
    lines = (tmp_path / "next" / "vocab.txt").read_text(encoding="utf-8").split()
    assert lines == [*SPECIAL.values(), *WORDS, "new"]
    assert not (tmp_path / "far" / "vocab.txt").exists()


def roberta_kind(text: str) -> Tokenizer:
    """Byte-level BPE whose words are marked by the blank before them, framed as RoBERTa's."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [text],
        BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return backend


MODERNBERT_ADDED = ("|||IP_ADDRESS|||", "    ", "  ", "[unused0]")


def modernbert_kind(text: str) -> Tokenizer:
    """Byte-level BPE over composed characters, with runs of blanks among its added tokens, framed as BERT's."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|padding|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [text],
        BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    backend.add_tokens([AddedToken(token, normalized=True) for token in MODERNBERT_ADDED])
    backend.add_special_tokens(
        ["[UNK]", "[CLS]", "[SEP]", "[PAD]", AddedToken("[MASK]", lstrip=True)]
    )
    frame = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=frame
    )
    return backend


def llama_kind(text: str) -> Tokenizer:
    """BPE with bytes for unknown characters, whose words begin with a mark: no mask, no padding."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        [text], BpeTrainer(vocab_size=350, special_tokens=special, show_progress=False)
    )
    content = json.loads(trained.to_str())["model"]
    backend.model = models.BPE(
        content["vocab"], [tuple(merge) for merge in content["merges"]],
        unk_token="<unk>", byte_fallback=True, fuse_unk=True,
    )  # fmt: skip
    backend.add_special_tokens(special[:3])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return backend


def albert_kind(text: str) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        [text],
        UnigramTrainer(
            vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return backend


TEXT = "the cat sat on the mat. the mat sat on a hat, so the hat is flat. " * 30
KINDS = {
    "roberta": (
        roberta_kind,
        {"cls": "<s>", "sep": "</s>", "mask": "<mask>", "pad": "<pad>", "unk": "<unk>"},
    ),
    "modernbert": (
        modernbert_kind,
        {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]", "unk": "[UNK]"},
    ),
    "llama": (
        llama_kind,
        {"cls": "<s>", "sep": "</s>", "mask": "[MASK]", "pad": "[PAD]", "unk": "<unk>"},
    ),
    "albert": (
        albert_kind,
        {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "<pad>", "unk": "<unk>"},
    ),
}


def folder_of_kind(kind: str, folder: Path) -> Path:
    make, roles = KINDS[kind]
    make(TEXT).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if kind == "llama":
        settings |= {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": "</s>",
        }
    elif kind == "roberta":  # as transformers 4 writes them
        settings |= {
            f"{role}_token": {"content": name, "__type": "AddedToken"}
            for role, name in roles.items()
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_of_any_kind_is_taken_as_it_is(kind: str, tmp_path: Path):
    (given := tmp_path / "given").mkdir()
    folder_of_kind(kind, given)
    original = Tokenizer.from_file(str(given / "tokenizer.json"))
    loaded = tokenizer.load(given)
    assert loaded.special == KINDS[kind][1]
    assert loaded.added == (("[MASK]", "[PAD]") if kind == "llama" else ())
    assert original.get_vocab().items() <= loaded.vocabulary.items()
    assert sorted(loaded.vocabulary.values()) == list(range(loaded.vocab_size))
    saved_tokenizer.save(loaded, tmp_path / "saved", given)
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = "The cat  sat on    a mat, \u732b \u00e9 e\u0301!"
    expected = original.encode(text, add_special_tokens=False).ids
    assert again(text, add_special_tokens=False)["input_ids"] == expected
    framed = again(text)["input_ids"]
    assert framed == [again.cls_token_id, *expected, again.sep_token_id]
    special = loaded.special_tokens
    assert (again.pad_token_id, again.mask_token_id) == (special.pad, special.mask)
    assert len({special.pad, special.cls, special.sep, special.mask}) == 4
    spelt = " ".join(loaded.special.values())
    plain, found = TextEncoder(tmp_path / "saved").encode([text, spelt], [False, False])
    assert plain == expected
    assert not {special.pad, special.cls, special.sep, special.mask} & set(found)
    assert tokenizer.load(tmp_path / "saved").special == loaded.special


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_that_isnt_used_is_found_in_any_kind(kind: str, tmp_path: Path):
    content = json.loads((folder_of_kind(kind, tmp_path) / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": "Q"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="words of its own vocabulary, such as .*, aren't found"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_begins_as_a_word_inside_of_a_text_does(kind: str, tmp_path: Path):
    encoder = TextEncoder(folder_of_kind(kind, tmp_path))
    first, second = encoder.encode(["the cat.", "the mat."], [False, True])
    whole = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert first + second == whole.encode("the cat. the mat.", add_special_tokens=False).ids


def test_roles_that_share_a_token_get_one_each(tmp_path: Path):
    """As GPT-2's, whose only special token begins and ends a text."""
    backend = roberta_kind(TEXT)
    content = json.loads(backend.to_str())
    content["added_tokens"] = [content["added_tokens"][0] | {"content": "<|endoftext|>"}]
    for name in ("<s>", "<pad>", "</s>", "<unk>", "<mask>"):
        content["model"]["vocab"].pop(name, None)
    content["model"]["vocab"]["<|endoftext|>"] = 0
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    names = {f"{key}_token": "<|endoftext|>" for key in ("bos", "eos", "unk")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    loaded = tokenizer.load(tmp_path)
    assert loaded.special["cls"] == "<|endoftext|>" and loaded.added == ("[SEP]", "[MASK]", "[PAD]")
    assert loaded.backend.encode("a").ids[0] == 0


# ---- whatever a folder holds -----------------------------------------------------------------------


def only_our_errors(folder: Path) -> None:
    try:
        TextEncoder(tokenizer.find(folder)).encode(["the cat [MASK] \u732b"], [True])
    except DataError as error:
        assert str(error).startswith("--tokenizer: ")


@pytest.mark.parametrize("kind", [*KINDS, "bert"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_tokenizer_with_wrong_values_raises_no_library_error(kind: str, tmp_path: Path, data):
    if not (tmp_path / "whole").exists():
        (tmp_path / "whole").mkdir()
        if kind == "bert":
            spelling_tokenizer().save(str(tmp_path / "whole" / "tokenizer.json"))
            (tmp_path / "whole" / "tokenizer_config.json").write_text('{"mask_token": "[MASK]"}')
        else:
            folder_of_kind(kind, tmp_path / "whole")
    name = data.draw(st.sampled_from(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"]))
    content = json.loads((tmp_path / "whole" / name).read_text())
    wrong = data.draw(damaged(content))
    shutil.copytree(tmp_path / "whole", tmp_path / "wrong", dirs_exist_ok=True)
    (tmp_path / "wrong" / name).write_text(json.dumps(wrong))
    only_our_errors(tmp_path / "wrong")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["tokenizer.json", "vocab.txt", "tokenizer_config.json"]),
    content=st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")),
)
def test_files_of_anything_raise_no_library_error(tmp_path: Path, name: str, content: bytes):
    (folder := tmp_path / "folder").mkdir(exist_ok=True)
    vocabulary_folder(folder)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    only_our_errors(folder)


def test_a_token_for_what_is_unknown_that_isnt_in_the_vocabulary_is_refused(tmp_path: Path):
    content = json.loads(tokenizer.load(vocabulary_folder(tmp_path)).backend.to_str())
    content["model"]["unk_token"] = "[NONE]"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="can't encode a text .*check unk_token"):
        TextEncoder(tmp_path).encode(["the \u732b"], [False])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "tokenizer_config.json: no JSON"),
        ("[1]", "tokenizer_config.json: no JSON object: it holds a list"),
        ('{"do_lower_case": "yes"}', "tokenizer_config.json: do_lower_case: 'yes'"),
    ],
)
def test_a_wrong_file_of_settings_is_named(tmp_path: Path, content: str, problem: str):
    folder = vocabulary_folder(tmp_path)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(DataError, match=problem):
        tokenizer.load(folder)


def test_a_setting_of_null_is_one_that_isnt_given(tmp_path: Path):
    folder = vocabulary_folder(tmp_path)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": null}')
    tokenizer.load(folder)


def test_an_id_out_of_all_proportion_is_refused(tmp_path: Path):
    content = json.loads(tokenizer.load(vocabulary_folder(tmp_path)).backend.to_str())
    content["model"]["vocab"]["dog"] = 1 << 30
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="18 tokens with ids up to 1073741824; expected"):
        tokenizer.load(tmp_path)


def test_a_runs_model_has_a_manifest_of_its_own_and_is_no_store(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert tokenizer.find(tmp_path) == tmp_path
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_text("[UNK]\n")
    assert tokenizer.find(tmp_path) == tmp_path / "tokenizer"
