"""A folder to begin with: the whole model is taken as it is, and anything else is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    BertConfig,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
)

from mslt_ds.disk import pretrained
from mslt_ds.disk.manifest import MANIFEST
from mslt_ds.disk.model_folder import save_weights
from mslt_ds.errors import CheckpointError
from mslt_ds.model.initial import fresh_parameter, fresh_weights
from tests.unit.hub import commit_of, serve

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "quick"]


def bert(**changes) -> BertConfig:
    sizes = {
        "vocab_size": len(WORDS), "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 24,
        "architectures": ["BertForPreTraining"],
    }  # fmt: skip
    return BertConfig(**sizes | changes)


def tokenizer(folder, words=WORDS, **settings):
    vocabulary = {word: i for i, word in enumerate(words)}
    BertTokenizer(vocab=vocabulary, **settings).save_pretrained(folder)
    return folder


def fresh(name, shape):
    return fresh_parameter(name, shape, seed=1, final=albert() if "albert" in name else bert())


@pytest.fixture
def store_tokenizer(tmp_path):
    return tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(3)
    shapes = {name: t.shape for name, t in fresh_weights(bert(), seed=1).items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path, weights, store_tokenizer):
    save_weights(tmp_path / "model", weights, bert(), store_tokenizer)
    (tmp_path / "model" / MANIFEST).unlink()  # as in a folder of another program
    return tmp_path / "model"


def test_a_whole_model_is_taken_bit_for_bit(folder, weights, store_tokenizer):
    pretrained.check_folder(folder, bert(), store_tokenizer)
    loaded, missing = pretrained.load(folder, bert(), fresh)
    assert missing == []
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def test_heads_that_an_encoder_lacks_begin_fresh(tmp_path):
    torch.manual_seed(0)
    encoder = BertModel(bert(), add_pooling_layer=False)
    encoder.save_pretrained(tmp_path / "encoder")
    loaded, missing = pretrained.load(tmp_path / "encoder", bert(), fresh)
    whole = fresh_weights(bert(), seed=1)
    assert missing == sorted(n for n in whole if n.startswith(("cls.", "bert.pooler.")))
    assert loaded.keys() == whole.keys()
    for name, tensor in encoder.named_parameters():
        assert torch.equal(loaded[f"bert.{name}"], tensor), name
    assert all(torch.equal(loaded[name], whole[name]) for name in missing)


def test_the_sentence_head_is_left_out_where_there_is_no_such_objective(folder, weights):
    masked_lm = bert(architectures=["BertForMaskedLM"])
    loaded, missing = pretrained.load(folder, masked_lm, fresh)
    assert missing == []
    left_out = {n for n in weights if n.startswith(("bert.pooler.", "cls.seq_relationship."))}
    assert loaded.keys() == weights.keys() - left_out


def test_an_encoder_with_holes_is_refused(folder, weights, store_tokenizer):
    partial = {n: t for n, t in weights.items() if not n.startswith("bert.encoder.layer.1.")}
    save_weights(folder, partial, bert(), store_tokenizer)
    with pytest.raises(
        CheckpointError, match=r"init_from: .*16 weights of the encoder are missing"
    ):
        pretrained.load(folder, bert(), fresh)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 4}, ["num_hidden_layers is 2, and stage 1 of the plan has 4"]),
        ({"vocab_size": 16}, ["vocab_size is 10, and the recipe's 16; set model.vocab_size"]),
        (
            {"hidden_act": "relu", "num_attention_heads": 4},
            ["hidden_act is gelu, and the recipe's relu", "num_attention_heads is 2"],
        ),
    ],
)
def test_other_sizes_are_all_named_at_once(folder, store_tokenizer, changes, named):
    with pytest.raises(CheckpointError) as refused:
        pretrained.check_folder(folder, bert(**changes), store_tokenizer)
    for part in named:
        assert f"plan.init_from: {folder}: its {part}" in str(refused.value)


def test_another_family_is_refused(folder, store_tokenizer):
    with pytest.raises(CheckpointError, match="model_type is bert, and model.family is albert"):
        pretrained.check_folder(folder, AlbertConfig(), store_tokenizer)


def albert(**changes) -> AlbertConfig:
    sizes = {
        "vocab_size": len(WORDS), "num_hidden_layers": 4, "num_hidden_groups": 2, "hidden_size": 16,
        "embedding_size": 8, "num_attention_heads": 2, "intermediate_size": 32,
        "architectures": ["AlbertForPreTraining"],
    }  # fmt: skip
    return AlbertConfig(**sizes | changes)


def test_an_albert_is_taken_and_its_groups_are_compared(tmp_path):
    folder = tokenizer(tmp_path / "albert")
    torch.manual_seed(0)
    model = AlbertForPreTraining(albert())
    model.save_pretrained(folder)
    pretrained.check_folder(folder, albert(), folder)
    loaded, missing = pretrained.load(folder, albert(), fresh)
    assert missing == []
    parameters = dict(model.named_parameters())
    assert loaded.keys() == parameters.keys()
    assert all(torch.equal(loaded[name], parameters[name]) for name in loaded)
    with pytest.raises(
        CheckpointError, match="num_hidden_groups is 2, and stage 1 of the plan has 4"
    ):
        pretrained.check_folder(folder, albert(num_hidden_groups=4), folder)


def test_shards_are_put_together(tmp_path):
    torch.manual_seed(0)
    model = BertForPreTraining(bert())
    model.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    loaded, missing = pretrained.load(tmp_path / "shards", bert(), fresh)
    assert missing == []
    assert all(torch.equal(loaded[name], p) for name, p in model.named_parameters())


def test_more_rows_than_tokens_are_taken_with_the_recipe_saying_so(tmp_path, store_tokenizer):
    padded = bert(vocab_size=64)
    folder = tokenizer(tmp_path / "padded")
    BertForPreTraining(padded).save_pretrained(folder)
    pretrained.check_folder(folder, padded, store_tokenizer)
    loaded, _ = pretrained.load(folder, padded, fresh)
    assert loaded["bert.embeddings.word_embeddings.weight"].shape == (64, 16)


def test_a_parameter_that_is_not_of_the_model_is_refused(folder, weights):
    path = folder / "model.safetensors"
    save_file(weights | {"bert.adapter.weight": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"it holds bert\.adapter\.weight, which a model"):
        pretrained.load(folder, bert(), fresh)


def test_another_vocabulary_is_refused_with_what_to_do(tmp_path, folder):
    swapped = [*WORDS[:5], *reversed(WORDS[5:])]
    with pytest.raises(CheckpointError, match=rf"prepare the text with --tokenizer {folder}"):
        pretrained.check_folder(folder, bert(), tokenizer(tmp_path / "other", swapped))
    cased = tokenizer(tmp_path / "cased", do_lower_case=False)
    with pytest.raises(
        CheckpointError, match=r"cuts text otherwise .* that of data\.path; prepare .* --tokenizer"
    ):
        pretrained.check_folder(folder, bert(), cased)


def test_a_folder_without_a_model_or_tokenizer_is_refused(tmp_path, weights, store_tokenizer):
    with pytest.raises(
        CheckpointError, match=r"init_from: .*nowhere: no config\.json here.*save_pretrained"
    ):
        pretrained.check_folder(tmp_path / "nowhere", bert(), store_tokenizer)
    save_weights(tmp_path / "bare", weights, bert(), None)
    with pytest.raises(CheckpointError, match=r"init_from: .*bare: no tokenizer here"):
        pretrained.check_folder(tmp_path / "bare", bert(), store_tokenizer)
    (tmp_path / "bare" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"bare: no model\.safetensors here"):
        pretrained.check_folder(tmp_path / "bare", bert(), store_tokenizer)


FIND = """
import json, sys
from mslt_ds.disk import pretrained
from mslt_ds.errors import MsltError
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = 0, str(pretrained.find(name))
    except MsltError as error:
        found[name] = error.exit_code, str(error)
print(json.dumps(found))
"""


def find(*names, hub_url, home, **environment) -> dict[str, list]:
    """Name -> exit code, and the folder or the error. In a process of its own: the hub's address is read when
    its library is imported."""
    given = {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(home),
        "NO_PROXY": "*",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", FIND, *names], capture_output=True, text=True, timeout=600,
        cwd=home.parent, env=os.environ | given | environment, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_a_model_of_the_hub_is_fetched(tmp_path, folder, weights, store_tokenizer):
    home = tmp_path / "hf"
    with serve() as hub:
        hub.repository = "someone/tiny"
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        others = {"README.md": b"x", "onnx/model.safetensors": b"x", "pytorch_model.bin": b"x"}
        hub.revisions = {"main": files | others, "v1": files, "old": {"pytorch_model.bin": b"x"}}
        names = ("someone/tiny", "someone/tiny@v1")
        refusals = {
            "someone/tiny@v9": "the hub doesn't show such a model",
            "someone/other": "the hub doesn't show such a model",
            "someone/tiny@old": "it holds no model.safetensors",
        }
        found = find(*names, *refusals, hub_url=hub.url, home=home)
        fetched = home
        for name in names:
            assert found[name][0] == 0, found[name]
            fetched = Path(found[name][1])
            pretrained.check_folder(fetched, bert(), store_tokenizer)
            loaded, _ = pretrained.load(fetched, bert(), fresh)
            assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
        assert fetched.name == commit_of("v1")
        assert "config.json" in hub.fetched
        assert not hub.fetched & others.keys()
        for name, problem in refusals.items():
            code, error = found[name]
            assert code == 2
            assert f"plan.init_from: {name}: " in error
            assert problem in error
    # What was fetched once needs no network.
    again = find(names[1], hub_url=hub.url, home=home, HF_HUB_OFFLINE="1")
    assert again == {names[1]: [0, str(fetched)]}
    offline = find(names[0], hub_url=hub.url, home=tmp_path / "empty", HF_HUB_OFFLINE="1")
    code, error = offline[names[0]]
    assert code == 3
    assert "hf download someone/tiny --local-dir FOLDER" in error


def test_a_local_folder_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    assert pretrained.find("runs/model") == Path("runs/model")
    assert pretrained.find("../runs/base/model") == Path("../runs/base/model")
