"""Which folders can be evaluated, what begins fresh, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    RobertaConfig,
    RobertaModel,
)

from mslt_ds.errors import CheckpointError, RecipeError
from mslt_ds.evaluation.encoder import Encoder, check_max_length, position_limit
from mslt_ds.evaluation.glue.examples import LabelledExamples, encode_labelled
from mslt_ds.evaluation.squad.data import Question
from mslt_ds.evaluation.squad.features import make_windows
from mslt_ds.evaluation.squad.recipe import SquadRecipe
from tests.unit.data.test_tokenizer import albert_kind
from tests.unit.evaluation.conftest import TOKENS, any_config, save_model, save_tokenizer


def build(folder, seed=0, **config) -> Any:
    return Encoder.open(folder).build(AutoModelForSequenceClassification, seed, **config)


def change_config(source, target, **changes):
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_only_the_head_of_a_pretraining_model_is_fresh(model_folder):
    model, fresh = build(model_folder, num_labels=3)
    assert fresh == ["classifier.bias", "classifier.weight"]
    again, _ = build(model_folder, num_labels=3)
    other, _ = build(model_folder, seed=1, num_labels=3)
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert not torch.equal(model.classifier.weight, other.classifier.weight)
    assert torch.equal(model.bert.pooler.dense.weight, other.bert.pooler.dense.weight)


def test_a_model_without_pooler_gets_a_fresh_one_and_says_so(tmp_path):
    config = BertConfig(
        vocab_size=len(TOKENS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model, fresh = build(tmp_path)
    assert [name for name in fresh if "pooler" in name] == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
    ]
    assert torch.equal(model.bert.pooler.dense.weight, build(tmp_path)[0].bert.pooler.dense.weight)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_the_digest_changes_with_every_file_that_scores_depend_on(model_folder, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    before = Encoder.open(folder).digest
    assert before == Encoder.open(model_folder).digest
    content = bytearray((folder / name).read_bytes())
    if name.endswith(".json"):
        content = content.replace(b"{", b'{"one_key_more": 1, ', 1)
    else:
        content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert Encoder.open(folder).digest != before


def test_fewer_or_more_layers_than_the_configuration_says(model_folder, tmp_path):
    deeper = change_config(model_folder, tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"encoder.layer.2.* config.json says 3 layers"):
        build(deeper)
    flatter = change_config(model_folder, tmp_path / "flatter", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"says 1 layers, and the folder holds more"):
        build(flatter)


def test_an_albert_is_fine_tuned_and_its_groups_are_counted(tmp_path):
    config = AlbertConfig(
        vocab_size=len(TOKENS), embedding_size=8, hidden_size=16, num_hidden_layers=4,
        num_hidden_groups=2, num_attention_heads=2, intermediate_size=32,
    )  # fmt: skip
    AlbertForPreTraining(config).save_pretrained(tmp_path / "albert")
    save_tokenizer(tmp_path / "albert")
    _, fresh = build(tmp_path / "albert", num_labels=2)
    assert fresh == ["classifier.bias", "classifier.weight"]
    flatter = change_config(tmp_path / "albert", tmp_path / "flatter", num_hidden_groups=1)
    with pytest.raises(CheckpointError, match=r"holds more, such as .*num_hidden_groups"):
        build(flatter)
    deeper = change_config(tmp_path / "albert", tmp_path / "deeper", num_hidden_groups=4)
    with pytest.raises(
        CheckpointError, match=r"groups\.2.* set num_hidden_layers and num_hidden_groups"
    ):
        build(deeper)


def test_other_shapes_than_the_configuration_says(model_folder, tmp_path):
    wider = change_config(model_folder, tmp_path / "wider", intermediate_size=128)
    with pytest.raises(
        CheckpointError, match=r"wider: weights of another shape: .*64 x 32, not 128 x 32"
    ):
        build(wider)


def test_short_position_embeddings(tmp_path):
    encoder = Encoder.open(save_model(tmp_path, max_position_embeddings=20))
    model, _ = encoder.build(AutoModelForSequenceClassification, 0)
    check_max_length(model, encoder, 20)
    with pytest.raises(
        RecipeError, match=r"max_length: 128, but .* 20 positions; --set max_length=20"
    ):
        check_max_length(model, encoder, 128)


def test_rotary_positions_end_where_the_configuration_says(tmp_path):
    config = any_config("modernbert")
    AutoModel.from_config(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, token_types=False)
    encoder = Encoder.open(tmp_path)
    model, fresh = encoder.build(AutoModelForSequenceClassification, 0)
    assert fresh == [
        "classifier.bias",
        "classifier.weight",
        "head.dense.weight",
        "head.norm.weight",
    ]
    check_max_length(model, encoder, 64)
    with pytest.raises(RecipeError, match=r"max_length: 65, but .* 64 positions"):
        check_max_length(model, encoder, 65)


def test_padding_takes_positions_of_roberta():
    config = RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=34, pad_token_id=1,
    )  # fmt: skip
    model = RobertaModel(config)
    limit = position_limit(model)
    assert limit == 32
    model(input_ids=torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, limit + 1), 5))


def test_folders_that_hold_no_model(model_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"--model: .*nowhere: no config.json"):
        Encoder.open(tmp_path / "nowhere")
    without = tmp_path / "without"
    shutil.copytree(model_folder, without)
    (without / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"without: no model.safetensors"):
        Encoder.open(without)
    smaller = save_model(tmp_path / "smaller", vocab_size=len(TOKENS) - 1)
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens and the model"):
        Encoder.open(smaller)


def test_the_digest_follows_weights_and_tokenizer(model_folder, tmp_path):
    digest = Encoder.open(model_folder).digest
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    assert Encoder.open(copy).digest == digest
    text = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'))
    assert Encoder.open(copy).digest != digest


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_special_tokens_that_a_text_spells_out_are_text(model_folder, tmp_path, kind):
    """Labels and windows go by the separators, of which a text must not add any."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    if kind == "unigram":
        given = albert_kind("so good was the [SEP] film " * 20)
        given.save(str(folder / "tokenizer.json"))
        settings = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<pad>"}
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = Encoder.open(folder).tokenizer
    ids = tokenizer("so [SEP] good", "the [CLS] film [MASK]")["input_ids"]
    assert [ids.count(number) for number in (2, 3, 4)] == [1, 2, 0]
    examples = LabelledExamples([("a [SEP]", "b")], ["0"], [1])
    columns = encode_labelled(examples, tokenizer, 32, is_regression=False).columns
    assert columns["input_ids"][0].count(3) == 2


def test_a_tokenizer_that_pads_on_the_left_changes_no_score(model_folder, tmp_path):
    """Batches are padded on the right whatever it says, for positions count from the left."""
    folder = shutil.copytree(model_folder, tmp_path / "left")
    padding = {
        "strategy": {"Fixed": 48}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    for name, change in (
        ("tokenizer_config.json", {"padding_side": "left"}),
        ("tokenizer.json", {"padding": padding}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | change))
    right, left = Encoder.open(model_folder), Encoder.open(folder)
    padded = left.tokenizer("good", padding="max_length", max_length=48)["input_ids"]
    assert padded[0] == left.tokenizer.pad_token_id

    examples = LabelledExamples(
        [("so good", "a film"), ("the dull old film is not very good", "bad")], ["0", "1"], [0, 1]
    )
    questions = [Question("q", "who is good", "the old man is good . " * 4, ())]
    recipe = SquadRecipe(max_length=24, stride=6)
    model, _ = left.build(AutoModelForSequenceClassification, 0)
    for encode in (
        lambda tokenizer: encode_labelled(examples, tokenizer, 32, is_regression=False),
        lambda tokenizer: make_windows(questions, tokenizer, recipe).encoded,
    ):
        expected, found = encode(right.tokenizer), encode(left.tokenizer)
        assert found.columns == expected.columns
        rows = range(len(found))
        batch = {name: values for name, values in found.batch(rows).items() if name != "labels"}
        assert not batch["attention_mask"].all()
        with torch.no_grad():
            together = model.eval()(**batch).logits
            for row in rows:
                alone = {
                    name: torch.tensor([values[row]]) for name, values in found.columns.items()
                }
                torch.testing.assert_close(together[row], model(**alone).logits[0])
