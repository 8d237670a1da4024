"""Tokens that two vocabularies share keep their vectors, and new ones begin as the mean of their pieces."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertForPreTraining, BertTokenizer, RobertaConfig, RobertaModel

from mslt_ds.data import tokenizer
from mslt_ds.disk import pretrained
from mslt_ds.disk.new_vocabulary import old_rows, take
from mslt_ds.model.initial import fresh_parameter

OLD = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "cat",
    "sat",
    "##s",
    "##ing",
    "ing",
    "un",
    "##do",
]
NEW = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "the", "cats", "##s", "undo", "zz", "##ings"]  # fmt: skip


def wordpiece(folder, words):
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


def byte_level(folder):
    """`the` at the beginning of a word and `ing` inside of one, among others."""
    vocabulary = {"[CLS]": 0, "[SEP]": 1, "[MASK]": 2, "[PAD]": 3}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary |= {character: 4 + i for i, character in enumerate(alphabet)}
    merges = [("\u0120", "t"), ("h", "e"), ("\u0120t", "he"), ("i", "n"), ("in", "g")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["[CLS]", "[SEP]", "[MASK]", "[PAD]"])
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    return folder


def named(rows, old, new):
    """New token -> the old tokens that it begins with."""
    names = {number: token for token, number in old.vocabulary.items()}
    return {token: [names[row] for row in rows[number]] for token, number in new.vocabulary.items()}


def test_rows_of_a_vocabulary_of_the_same_kind(tmp_path):
    old, new = (
        tokenizer.load(wordpiece(tmp_path / name, words))
        for name, words in (("o", OLD), ("n", NEW))
    )
    assert named(old_rows(old, new), old, new) == {
        "[UNK]": ["[UNK]"], "[PAD]": ["[PAD]"], "[CLS]": ["[CLS]"], "[SEP]": ["[SEP]"],
        "[MASK]": ["[MASK]"], "the": ["the"], "##s": ["##s"], "cats": ["cat", "##s"],
        "undo": ["un", "##do"], "##ings": ["ing", "##s"], "zz": [],
    }  # fmt: skip


def test_rows_of_a_vocabulary_of_another_kind(tmp_path):
    old, new = (
        tokenizer.load(wordpiece(tmp_path / "o", OLD)),
        tokenizer.load(byte_level(tmp_path / "n")),
    )
    found = named(old_rows(old, new), old, new)
    assert found["\u0120the"] == ["the"]
    assert found["ing"] == ["##ing"]
    assert found["[MASK]"] == ["[MASK]"]
    assert found["\u0120t"] == []  # `t` isn't known
    back = tokenizer.load(byte_level(tmp_path / "b"))
    found = named(old_rows(back, old), back, old)
    assert found["the"] == ["\u0120the"]
    assert found["##ing"] == ["ing"]
    assert found["cat"] == ["\u0120", "c", "a", "t"]
    assert found["##s"] == ["s"]
    assert found["[UNK]"] != ["[UNK]"]


def test_means():
    tensor = torch.arange(8.0).reshape(4, 2)
    found = take(tensor, [[2], [], [0, 3]], 5)
    mean = tensor.mean(0)
    expected = torch.stack([tensor[2], mean, (tensor[0] + tensor[3]) / 2, mean, mean])
    assert torch.equal(found, expected)
    assert torch.equal(take(tensor[:, 0], [[2], [], [0, 3]], 5), expected[:, 0])


def sizes(words) -> dict[str, Any]:
    return {
        "vocab_size": len(words), "num_hidden_layers": 1, "hidden_size": 16,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 24,
    }  # fmt: skip


def test_what_belongs_to_tokens_is_mapped_and_the_rest_kept(tmp_path, capsys):
    folder, place = wordpiece(tmp_path / "model", OLD), wordpiece(tmp_path / "new", NEW)
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**sizes(OLD)))
    torch.nn.init.normal_(model.cls.predictions.bias)
    model.save_pretrained(folder)
    target = BertConfig(**sizes(NEW), architectures=["BertForPreTraining"])

    def fresh(name, shape):
        return fresh_parameter(name, shape, seed=1, final=target)

    pretrained.check_folder(folder, target, place, new_vocabulary=True)
    loaded, missing = pretrained.load(folder, target, fresh, place)
    assert missing == []
    assert "of 11 tokens, 7 begin with the vector of one token" in capsys.readouterr().out
    mapped = {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}
    for name, parameter in model.named_parameters():
        if name in mapped:
            assert loaded[name].shape == (len(NEW), *parameter.shape[1:])
            assert torch.equal(loaded[name][5], parameter[5])
            assert torch.equal(loaded[name][0], parameter[1])
            torch.testing.assert_close(loaded[name][6], (parameter[6] + parameter[8]) / 2)
        else:
            assert torch.equal(loaded[name], parameter), name


def test_robertas_positions_move_with_the_padding_tokens_id(tmp_path):
    folder, place = wordpiece(tmp_path / "model", OLD), wordpiece(tmp_path / "new", NEW)
    torch.manual_seed(0)
    model = RobertaModel(RobertaConfig(**sizes(OLD), pad_token_id=0), add_pooling_layer=False)
    model.save_pretrained(folder)
    target = RobertaConfig(**sizes(NEW), pad_token_id=1, architectures=["RobertaForMaskedLM"])

    def fresh(name, shape):
        return fresh_parameter(name, shape, seed=1, final=target)

    loaded, _ = pretrained.load(folder, target, fresh, place)
    before = model.embeddings.position_embeddings.weight
    after = loaded["roberta.embeddings.position_embeddings.weight"]
    assert torch.equal(after[2:], before[1:-1])  # position 0 and those behind it
