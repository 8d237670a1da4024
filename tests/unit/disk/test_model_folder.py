"""A folder of weights is a Hugging Face model: no key missing, the decoder tied, every bit kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    PreTrainedTokenizerFast,
)

from mslt_ds.disk.model_folder import load_weights, save_weights
from mslt_ds.errors import CheckpointError, DataError
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.initial import fresh_weights

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "quick"]


@pytest.fixture
def config() -> BertConfig:
    return BertConfig(
        vocab_size=len(WORDS),
        num_hidden_layers=3,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        architectures=["BertForPreTraining"],
    )


@pytest.fixture
def weights(config):
    """Random everywhere (biases too), so that a tensor in the wrong place shows."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.3
        for name, tensor in fresh_weights(config, seed=1).items()
    }


@pytest.fixture
def tokenizer_dir(tmp_path):
    folder = tmp_path / "store"
    model = models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"
    ).save_pretrained(folder)
    (folder / "tokens.bin").write_bytes(b"a large token store")
    return folder


def test_pretraining_model_loads_without_a_word_and_is_tied(
    tmp_path, config, weights, tokenizer_dir
):
    folder = tmp_path / "model"
    save_weights(folder, weights, config, tokenizer_dir)
    model, info = AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert type(model) is BertForPreTraining
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not info[key], (key, info[key])
    decoder = model.cls.predictions.decoder
    assert decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert decoder.bias is model.cls.predictions.bias
    assert model.config.num_hidden_layers == 3
    assert model.dtype == torch.float32
    parameters = dict(model.named_parameters())
    assert set(parameters) == set(weights)
    for name, tensor in weights.items():
        assert torch.equal(parameters[name], tensor), name


def test_encoder_alone_leaves_out_the_heads_only(tmp_path, config, weights):
    folder = tmp_path / "model"
    save_weights(folder, weights, config, None)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert {key.split(".")[0] for key in info["unexpected_keys"]} == {"cls"}
    assert torch.equal(
        model.encoder.layer[2].output.dense.weight,
        weights["bert.encoder.layer.2.output.dense.weight"],
    )


def test_saved_and_loaded_weights_are_equal_and_without_aliases(tmp_path, config, weights):
    save_weights(tmp_path / "model", weights, config, None)
    loaded = load_weights(tmp_path / "model")
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert not set(file.keys()) & set(FAMILIES["bert"].tied)


def test_config_tells_architecture_depth_and_precision(tmp_path, config, weights):
    save_weights(tmp_path / "model", weights, config, None)
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["architectures"] == ["BertForPreTraining"]
    assert written["num_hidden_layers"] == 3
    assert written["dtype"] == "float32"
    assert config.dtype is None, "the caller's config was changed"


def test_tokenizer_comes_along_and_nothing_else(tmp_path, config, weights, tokenizer_dir):
    folder = tmp_path / "model"
    save_weights(folder, weights, config, tokenizer_dir)
    text = "the cats sat [MASK] quick dog"
    expected = AutoTokenizer.from_pretrained(tokenizer_dir)(text)["input_ids"]
    assert len(set(expected)) > 5, "the tokenizer of this test knows no words"
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == expected
    assert not (folder / "tokens.bin").exists()


@pytest.mark.parametrize("settings", [None, {"do_lower_case": True, "model_max_length": 512}])
def test_a_tokenizer_that_does_not_say_its_class_stays_wordpiece(
    tmp_path, config, weights, tokenizer_dir, settings
):
    """AutoTokenizer would take the class from the model: SentencePiece's for an ALBERT."""
    path = tokenizer_dir / "tokenizer_config.json"
    path.unlink() if settings is None else path.write_text(json.dumps(settings))
    folder = tmp_path / "model"
    config.max_position_embeddings = 512
    save_weights(folder, weights, config, tokenizer_dir)
    albert = json.loads((folder / "config.json").read_text()) | {"model_type": "albert"}
    (folder / "config.json").write_text(json.dumps(albert))
    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.convert_ids_to_tokens(loaded("the cats")["input_ids"]).count("[UNK]") == 0
    assert loaded.get_vocab().keys() == set(WORDS)
    if settings:
        assert loaded.model_max_length == 512


@pytest.mark.parametrize(("given", "length"), [({}, 24), ({"model_max_length": 16}, 16)])
@pytest.mark.parametrize(
    "auto_map", [{}, {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}]
)
def test_the_tokenizer_truncates_to_the_models_positions(
    tmp_path, config, weights, tokenizer_dir, given, length, auto_map
):
    path = tokenizer_dir / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | given | auto_map))
    folder = tmp_path / "model"
    save_weights(folder, weights, config, tokenizer_dir)
    assert "auto_map" not in (folder / "tokenizer_config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == length
    encoded = tokenizer("the cat sat " * 50, truncation=True, return_tensors="pt")
    assert encoded["input_ids"].shape == (1, length)
    model = AutoModelForPreTraining.from_pretrained(folder)
    assert model(input_ids=encoded["input_ids"]).prediction_logits.shape[1] == length


@pytest.mark.parametrize(
    "load",
    [
        "from mslt_ds.disk.model_folder import read_config as load",
        "from mslt_ds.evaluation.encoder import Encoder; load = Encoder.open",
    ],
)
def test_code_in_a_folder_is_neither_run_nor_asked_about(tmp_path, load):
    """A folder of an unknown model, whose `auto_map` names code, and a user who answers yes."""
    folder, marker = tmp_path / "model", tmp_path / "marker"
    folder.mkdir()
    settings = {"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(
        "from transformers import PretrainedConfig\n"
        f"open({str(marker)!r}, 'w').close()\n"
        "class Config(PretrainedConfig):\n    model_type = 'theirs'\n"
    )
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    script = (
        f"import sys; from pathlib import Path; from mslt_ds.errors import MsltError, report; {load}\n"
        "try: load(Path(sys.argv[1]))\nexcept MsltError as error: raise SystemExit(report(error))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        input="y\n", capture_output=True, text=True, env=os.environ | {"HF_HOME": str(tmp_path)},
    )  # fmt: skip
    assert found.returncode == 2, found.stderr
    assert not marker.exists() and "y/N" not in found.stdout + found.stderr


def test_a_model_without_segments_gets_no_token_types(tmp_path, config, weights, tokenizer_dir):
    save_weights(tmp_path / "two", weights, config, tokenizer_dir)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "two")
    assert list(loaded("the cat")) == ["input_ids", "token_type_ids", "attention_mask"]
    config.type_vocab_size = 1
    save_weights(tmp_path / "one", weights, config, tokenizer_dir)
    assert list(AutoTokenizer.from_pretrained(tmp_path / "one")("the cat")) == [
        "input_ids", "attention_mask",
    ]  # fmt: skip


def test_missing_tokenizer_is_refused_and_leaves_no_folder(tmp_path, config, weights):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no tokenizer here"):
        save_weights(tmp_path / "model", weights, config, tmp_path / "empty")
    assert not (tmp_path / "model").exists()


def test_weights_are_as_readable_as_their_config(tmp_path, config, weights):
    save_weights(tmp_path / "model", weights, config, None)
    modes = {os.stat(entry).st_mode & 0o777 for entry in (tmp_path / "model").iterdir()}
    assert len(modes) == 1


def test_views_and_half_precision_become_fp32_tensors_of_their_own(tmp_path, config, weights):
    name = "bert.pooler.dense.weight"
    mixed = weights | {name: weights[name].bfloat16().T}
    save_weights(tmp_path / "model", mixed, config, None)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        stored = file.get_tensor(name)
    assert stored.dtype == torch.float32
    assert torch.equal(stored, weights[name].bfloat16().T.float())


def save_as_it_is(folder, weights, config):
    """`weights` as another program might store them: any names, any dtype."""
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_half_precision_files_are_loaded_as_fp32(tmp_path, config, weights):
    save_as_it_is(tmp_path, {n: t.bfloat16() for n, t in weights.items()}, config)
    loaded = load_weights(tmp_path)
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert all(torch.equal(loaded[name], t.bfloat16().float()) for name, t in weights.items())


def test_stored_aliases_are_dropped_if_tied_and_refused_if_not(tmp_path, config, weights):
    aliases = {alias: weights[owner].clone() for alias, owner in FAMILIES["bert"].tied.items()}
    save_as_it_is(tmp_path, weights | aliases, config)
    assert set(load_weights(tmp_path)) == set(weights)
    aliases["cls.predictions.decoder.weight"][3, 3] += 1
    save_as_it_is(tmp_path, weights | aliases, config)
    with pytest.raises(CheckpointError, match=r"decoder\.weight differs"):
        load_weights(tmp_path)


def test_names_of_the_first_published_models_are_known(tmp_path, config, weights):
    """LayerNorm's parameters were gamma and beta there."""
    renames = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    old = dict(weights)
    for new_part, old_part in renames:
        old = {name.replace(new_part, old_part): tensor for name, tensor in old.items()}
    save_as_it_is(tmp_path, old, config)
    loaded = load_weights(tmp_path)
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_what_the_folder_lacks_is_not_made_up(tmp_path, config, weights):
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("cls.")}
    save_as_it_is(tmp_path, kept, config)
    assert set(load_weights(tmp_path)) == set(kept)


def test_a_config_of_another_model_is_refused(tmp_path, config, weights):
    config.num_hidden_layers = 2
    save_as_it_is(tmp_path, weights, config)
    with pytest.raises(
        CheckpointError, match=r"holds bert\.encoder\.layer\.2\..*, which a model of its config"
    ):
        load_weights(tmp_path)
    config.num_hidden_layers, config.intermediate_size = 3, 16
    save_as_it_is(tmp_path, weights, config)
    with pytest.raises(
        CheckpointError,
        match=r"intermediate\.dense\.\w+ has the shape \(32,.* the model's is \(16,",
    ):
        load_weights(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path, config, weights):
    with pytest.raises(CheckpointError, match=r"no config\.json here; name a folder"):
        load_weights(tmp_path)
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no model\.safetensors here; name a folder"):
        load_weights(tmp_path)
    save_weights(tmp_path / "model", weights, config, None)
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model: damaged \(model.safetensors: 38012 bytes"):
        load_weights(tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"model: can't be loaded"):
        load_weights(tmp_path / "model")


def test_a_changed_bit_of_the_weights_is_refused_and_one_of_other_files_is_not(
    tmp_path, config, weights
):
    folder = tmp_path / "model"
    save_weights(folder, weights, config, tokenizer_dir=None)
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    load_weights(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model: damaged \(model.safetensors: its sha256"):
        load_weights(folder)
    (folder / "manifest.json").unlink()
    load_weights(folder)
