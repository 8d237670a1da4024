"""ALBERT in stages, seen from outside: groups of layers that share their parameters are frozen,
copied and trained as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertForPreTraining,
    AutoConfig,
    AutoModelForPreTraining,
    AutoTokenizer,
)

from mslt_ds.evaluation.encoder import Encoder
from mslt_ds.model.initial import fresh_parameter
from tests.distributed.recipes import (
    SCRIPTS,
    metrics_of,
    moved_in,
    recipe,
    weights_at,
    write_recipes,
    zero_config,
)

GROUPS = "albert.encoder.albert_layer_groups."
# The embeddings' own, with their mapping to the hidden size, which must not train without them.
EMBEDDINGS = ("albert.embeddings.", "albert.encoder.embedding_hidden_mapping_in.")
ZERO_STAGES = (0, 1, 2)


@pytest.fixture(scope="module")
def runs(module_launch, store, tmp_path_factory) -> Path:
    """4 layers in 2 groups, two stages and a joint one, on two ranks: at each ZeRO stage, with a new
    group that is fresh, and a run that goes on from the middle of stage 2."""
    folder = tmp_path_factory.mktemp("runs")

    def albert(name: str, zero: int, **changes) -> dict:
        return recipe(
            store, folder, name,
            model={"family": "albert", "embedding_size": 16, "num_hidden_groups": 2},
            data={"input_format": "sop", "masking": "ngram"},
            optimizer={"name": "lamb", "state": "copy"},
            checkpoint={"every_steps": 7, "keep": 9},
            deepspeed=zero_config(folder, zero),
            **changes,
        )  # fmt: skip

    def train(recipes: list[dict]) -> None:
        path = write_recipes(folder / "recipes.json", recipes)
        module_launch(SCRIPTS / "run_recipes.py", 2, path)

    fresh = albert("random", 0, plan={"init": "random"})
    train([*(albert(f"zero-{zero}", zero) for zero in ZERO_STAGES), fresh])
    step = "checkpoints/step_0000000007"
    shutil.copytree(folder / "zero-1" / step, folder / "resumed" / step)
    train([albert("resumed", 1)])
    return folder


def group_of(name: str) -> int | None:
    return int(name[len(GROUPS) :].split(".")[0]) if name.startswith(GROUPS) else None


def is_head(name: str) -> bool:
    return name.startswith(("predictions.", "sop_classifier.", "albert.pooler."))


@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_each_stage_trains_its_group_and_the_heads(runs: Path, zero: int):
    run = runs / f"zero-{zero}"
    everything = set(weights_at(run, "stages/3/end"))
    assert {group_of(name) for name in everything} == {None, 0, 1}
    assert any(name.startswith(EMBEDDINGS[1]) for name in everything)
    assert moved_in(run, 1) == {name for name in everything if group_of(name) != 1}
    assert moved_in(run, 2) == {name for name in everything if group_of(name) == 1 or is_head(name)}
    assert moved_in(run, 3) == everything


@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_the_new_group_is_a_copy_of_the_top_one(runs: Path, zero: int):
    before = weights_at(runs / f"zero-{zero}", "stages/1/end")
    start = weights_at(runs / f"zero-{zero}", "stages/2/start")
    assert set(before) < set(start)
    for name, tensor in start.items():
        assert torch.equal(tensor, before[name.replace(f"{GROUPS}1.", f"{GROUPS}0.")]), name


def test_a_random_group_is_fresh_and_the_others_stay(runs: Path):
    before = weights_at(runs / "random", "stages/1/end")
    start = weights_at(runs / "random", "stages/2/start")
    config = AutoConfig.from_pretrained(runs / "random" / "model")
    for name, tensor in start.items():
        if group_of(name) != 1:
            assert torch.equal(tensor, before[name]), name
        else:
            fresh = fresh_parameter(name, tuple(tensor.shape), seed=7, final=config)
            assert torch.equal(tensor, fresh), name


def test_a_run_that_goes_on_ends_in_the_same_bits(runs: Path):
    assert [line["step"] for line in metrics_of(runs / "resumed")] == list(range(7, 14))
    whole, resumed = (weights_at(runs / name, "model") for name in ("zero-1", "resumed"))
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.parametrize("zero", ZERO_STAGES)
def test_a_shared_gradient_is_reduced_once(runs: Path, zero: int):
    run = runs / f"zero-{zero}"
    plan = json.loads((run / "plan.json").read_text())
    expected = {s["stage"]: s["elements_reduced_per_step"] for s in plan["stages"]}
    lines = metrics_of(run)
    assert [line["step"] for line in lines] == list(range(plan["total_steps"]))
    for line in lines:
        assert line["elements_reduced"] == expected[line["stage"]]
    heads_and_group = {
        name: tensor
        for name, tensor in weights_at(run, "stages/2/end").items()
        if group_of(name) == 1 or is_head(name)
    }
    assert plan["stages"][1]["trainable_parameters"] == sum(
        tensor.numel() for tensor in heads_and_group.values()
    )


def test_every_zero_stage_ends_in_the_same_weights(runs: Path):
    reference = weights_at(runs / "zero-0", "model")
    for zero in ZERO_STAGES[1:]:
        for name, tensor in weights_at(runs / f"zero-{zero}", "model").items():
            torch.testing.assert_close(
                tensor, reference[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_trust_ratios_are_told_by_group(runs: Path):
    by_layer = metrics_of(runs / "zero-1")[-1]["trust_ratio"]
    assert {"group_0", "group_1", "embeddings"} <= by_layer.keys()


def test_hugging_face_loads_what_was_trained(runs: Path):
    folder = runs / "zero-0" / "model"
    model, info = AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, AlbertForPreTraining)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (model.config.num_hidden_layers, model.config.num_hidden_groups) == (4, 2)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("abc").input_ids)[0] == "[CLS]"
    assert tokenizer.unk_token_id not in tokenizer("abc").input_ids
    assert Encoder.open(folder).tokenizer.vocab_size == tokenizer.vocab_size
    shallow = AutoModelForPreTraining.from_pretrained(runs / "zero-0" / "stages" / "1" / "end")
    assert (shallow.config.num_hidden_layers, shallow.config.num_hidden_groups) == (2, 1)
