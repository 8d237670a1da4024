"""A recipe becomes a typed value, or every problem in it becomes one line."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import AlbertConfig

from mslt_ds.config.messages import _model_in
from mslt_ds.config.sections import RunConfig
from mslt_ds.config.strict_yaml import dump
from mslt_ds.data.store import MANIFEST
from mslt_ds.errors import RecipeError
from mslt_ds.optim.lamb_reference import LambOptions
from mslt_ds.plan.methods import build_plan
from mslt_ds.recipe.loading import load_recipe, parse_recipe
from tests.fuzzing import anything

RECIPE = {
    "name": "run",
    "plan": {"method": "mslt", "num_stages": 4, "steps_per_stage": 200, "joint_steps": 200},
    "data": {"path": "store"},
    "train": {"global_batch_size": 64, "micro_batch_size": 16},
    "optimizer": {"learning_rate": 1e-3},
}


def recipe(**values):
    """RECIPE with `section__key=value`, or whole sections, replaced."""
    result = copy.deepcopy(RECIPE)
    for name, value in values.items():
        section, _, key = name.partition("__")
        if key:
            result.setdefault(section, {})[key] = value
        else:
            result[section] = value
    return result


@pytest.mark.parametrize(("family", "expected"), [("bert", "nsp"), ("roberta", "full_sentences")])
def test_the_input_format_is_the_first_that_the_family_has_heads_for(family, expected):
    for left_out in ({}, {"data__input_format": None}):
        config = parse_recipe(recipe(model={"family": family}, **left_out)).config
        assert config.data.input_format == expected
    given = parse_recipe(recipe(model={"family": family}, data__input_format="doc_sentences"))
    assert given.config.data.input_format == "doc_sentences"


def problems(**values) -> list[str]:
    with pytest.raises(RecipeError) as error:
        parse_recipe(recipe(**values))
    return str(error.value).splitlines()


def test_defaults_and_conversions():
    config = parse_recipe(
        recipe(
            optimizer={"learning_rate": 1, "betas": [0.8, 0.98]},
            plan__steps_per_stage=2e2,
            telemetry=None,
            model=None,
        )
    ).config
    assert config.optimizer.betas == (0.8, 0.98)
    assert config.optimizer.learning_rate == 1.0
    assert config.plan.steps_per_stage == 200 and type(config.plan.steps_per_stage) is int
    assert config.train.frozen_dropout == "off"
    assert config.model.num_hidden_layers == 12
    assert config.telemetry.log_every_steps == 10
    assert str(config.run_dir) == "runs/run"


def test_the_keys_of_albert_alone_have_hugging_faces_defaults():
    model = parse_recipe(
        recipe(model={"family": "albert", "embedding_size": None}, plan__num_stages=1)
    ).config.model
    assert (model.embedding_size, model.num_hidden_groups) == (128, 1)
    assert (AlbertConfig().embedding_size, AlbertConfig().num_hidden_groups) == (128, 1)
    assert (model.num_blocks, model.layers_per_block) == (1, 12)
    bert = parse_recipe(recipe()).config.model
    assert (bert.embedding_size, bert.num_hidden_groups) == (None, None)
    assert (bert.num_blocks, bert.layers_per_block) == (12, 1)


def test_lambs_options_are_the_optimizers_own():
    lamb = parse_recipe(recipe()).config.optimizer.lamb
    assert LambOptions(**lamb.model_dump(exclude={"backend"})) == LambOptions()


def test_frozen():
    config = parse_recipe(recipe()).config
    with pytest.raises(ValidationError):
        config.seed = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"plan__num_stage": 4}, ["plan.num_stage:", "did you mean plan.num_stages?"]),
        ({"learning_rate": 1.0}, ["learning_rate:", "did you mean optimizer.learning_rate?"]),
        ({"train__momentum": 1}, ["train.momentum:", "known here:", "micro_batch_size"]),
        ({"telemetry": {"wandb": {"enable": True}}}, ["did you mean telemetry.wandb.enabled?"]),
        ({"plan__num_stages": 5}, ["plan.num_stages: 5", "12", "1, 2, 3, 4, 6 or 12"]),
        ({"plan__num_stages": "4"}, ["plan.num_stages:", '"4"', "whole number"]),
        ({"plan__num_stages": True}, ["plan.num_stages: true", "whole number"]),
        ({"plan__num_stages": 2.5}, ["plan.num_stages: 2.5", "whole number"]),
        ({"plan__num_stages": 0}, ["plan.num_stages: 0", "at least 1"]),
        ({"plan__method": "full", "plan__joint_share": 0.1}, ["plan.joint_steps: 200 beside"]),
        ({"plan__total_steps": 9}, ["plan.total_steps: 9 beside plan.steps_per_stage 200"]),
        ({"train__precision": "fp8"}, ["train.precision:", '"fp8"', "fp32, bf16 or fp16"]),
        ({"train__frozen_dropout": False}, ["train.frozen_dropout: false", "off or on"]),
        (
            {"train__prefix_micro_batch_size": "most"},
            ['train.prefix_micro_batch_size: "most"; it has to be a whole number'],
        ),
        (
            {"train__prefix_micro_batch_size": 0},
            ["train.prefix_micro_batch_size: 0; it has to be a number of at least 1"],
        ),
        (
            {"train__prefix_micro_batch_size": 40},
            ["train.prefix_micro_batch_size: 40 is not a multiple of train.micro_batch_size 16"],
        ),
        (
            {"train__prefix_micro_batch_size": 32, "train__frozen_dropout": "on"},
            ["train.prefix_micro_batch_size: 32, but train.frozen_dropout on"],
        ),
        (
            {"train__prefix_ahead": "on", "train__frozen_dropout": "on", "train__device": "cpu"},
            ["train.prefix_ahead: on, but on a CPU"],
        ),
        (
            {"train__prefix_graph": "on", "train__device": "cpu"},
            ["train.prefix_graph: on, but a CPU has no CUDA graphs"],
        ),
        (
            {"train__prefix_graph": "on", "train__frozen_dropout": "on"},
            ["train.prefix_graph: on, but train.frozen_dropout on"],
        ),
        (
            {"train__prefix_precision": "fp16", "train__device": "cpu"},
            ["train.prefix_precision: fp16 is not supported on a CPU"],
        ),
        ({"train__micro_batch_size": 24}, ["train.global_batch_size: 64", "micro_batch_size 24"]),
        ({"train__device": "cpu", "train__precision": "fp16"}, ["train.precision: fp16", "CPU"]),
        ({"optimizer__learning_rate": "1e-3"}, ["optimizer.learning_rate:", "a number"]),
        ({"optimizer__learning_rate": 0.0}, ["optimizer.learning_rate: 0.0", "above 0"]),
        ({"optimizer__learning_rate": math.nan}, ["optimizer.learning_rate: NaN", "finite"]),
        ({"optimizer__betas": [0.9]}, ["optimizer.betas.1"]),
        ({"optimizer__betas": [0.9, 1.0]}, ["optimizer.betas.1: 1.0", "below 1"]),
        ({"optimizer": None}, ["optimizer.learning_rate: missing"]),
        ({"data": []}, ["data: []", "a section"]),
        ({"name": "a/b"}, ["name:", "a/b"]),
        ({"name": None}, ["name: null", "text"]),
        ({"model__hidden_size": 770}, ["model.hidden_size: 770", "num_attention_heads 12"]),
        (
            {"model__num_hidden_groups": 4},
            ["num_hidden_groups: 4", "albert", "bert", "leave it out"],
        ),
        ({"model__embedding_size": 128}, ["model.embedding_size: 128", "albert"]),
        (
            {"model": {"family": "albert", "num_hidden_groups": 5}},
            ["model.num_hidden_groups: 5", "num_hidden_layers 12", "1, 2, 3, 4, 6 or 12"],
        ),
        (
            {"model": {"family": "albert", "num_hidden_groups": 24}},
            ["model.num_hidden_groups: 24", "num_hidden_layers 12"],
        ),
        (
            {"model": {"family": "albert"}},
            [
                "plan.num_stages: 4",
                "model.num_hidden_groups 1;",
                "or model.num_hidden_groups 4 or 12",
            ],
        ),
        ({"model": {"family": "albert", "hidden_size": None}}, ["model.hidden_size: null"]),
        ({"model__family": "deberta"}, ["model.family:", "bert or albert"]),
        ({"schedule__warmup_steps": 1001}, ["schedule.warmup_steps: 1001", "1000 steps"]),
        ({"schedule": {"warmup_steps": 201, "restart": True}}, ["warmup_steps: 201", "200 steps"]),
        ({"schedule__name": "wsd"}, ["schedule.decay_steps: missing"]),
        ({"schedule__decay_steps": 5}, ["schedule.decay_steps: 5", "wsd"]),
        ({"schedule__power": 2.0}, ["schedule.power: 2.0", "polynomial"]),
        ({"schedule": {"name": "constant", "end_factor": 0.1}}, ["schedule.end_factor: 0.1"]),
        ({"data__seq_length": 513}, ["data.seq_length: 513", "max_position_embeddings 512"]),
        ({"data__input_format": "mlm"}, ['data.input_format: "mlm"', "full_sentences"]),
        ({"data__masking": "words"}, ['data.masking: "words"', "whole_word"]),
        (
            {"data": {"path": "s", "input_format": "full_sentences", "short_seq_prob": 0.2}},
            ["data.short_seq_prob: 0.2", "full_sentences"],
        ),
        ({"data__max_predictions_per_seq": 200}, ["data.max_predictions_per_seq: 200", "128"]),
        ({"plan__stages": []}, ["plan.stages:", "mslt"]),
        (
            {
                "plan": {
                    "method": "custom",
                    "stages": [{"depth": 12, "steps": 9}],
                    "stage_shares": [1.0],
                }
            },
            ["plan.stage_shares:", "plan.stages"],
        ),
        ({"plan__long_sequence": {"share": 0.1, "seq_length": 64}}, ["seq_length: 64", "128"]),
        ({"optimizer__lamb": {"decay": "l2"}}, ["optimizer.lamb.decay:", "update or gradient"]),
        ({"optimizer__lamb": {"max_trust_ratio": math.nan}}, ["max_trust_ratio: NaN"]),
        ({"optimizer__lamb": {"min_trust_ratio": 2, "max_trust_ratio": 1}}, ["2.0", "1.0"]),
        ({"optimizer__lamb": {"max_grad_norm": 2}}, ["max_grad_norm: 2.0", "clip"]),
        (
            {"optimizer": {"name": "adamw", "learning_rate": 1, "lamb": {"adapt": "all"}}},
            ["optimizer.lamb: given", "adamw"],
        ),
        ({"deepspeed__config": "absent.json"}, ["deepspeed.config: absent.json", "no such file"]),
    ],
)
def test_one_line_names_key_value_and_what_is_allowed(values, words):
    lines = problems(**values)
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]


def test_all_problems_at_once():
    assert len(problems(name="a b", plan__num_stages="x", train__precision="fp8", modle={})) == 4
    lines = problems(
        plan__num_stages=5,
        model__hidden_size=770,
        schedule__power=3.0,
        data__max_predictions_per_seq=500,
    )
    assert [line.split(":")[0] for line in lines] == [
        "model.hidden_size",
        "data.max_predictions_per_seq",
        "schedule.power",
        "plan.num_stages",
    ]


def test_world_size():
    parsed = parse_recipe(recipe())
    for world_size in (1, 2, 4):
        parsed.check_world(world_size)
    with pytest.raises(
        RecipeError, match=r"train.global_batch_size: 64 .* 48 .*3 ranks.* 48 or 96"
    ):
        parsed.check_world(3)
    with pytest.raises(RecipeError, match=r"128.*8 ranks.*choose 128"):
        parsed.check_world(8)


def test_world_size_and_long_sequences():
    parsed = parse_recipe(
        recipe(
            plan__long_sequence={"share": 0.1, "micro_batch_size": 32}, train__micro_batch_size=8
        )
    )
    parsed.check_world(2)
    with pytest.raises(RecipeError, match=r"plan.long_sequence.micro_batch_size 32"):
        parsed.check_world(4)


def test_fp16_needs_a_gpu():
    parsed = parse_recipe(recipe(train__precision="fp16"))
    parsed.check_environment("cuda")
    with pytest.raises(RecipeError, match=r"train.precision: fp16"):
        parsed.check_environment("cpu")


def test_files(tmp_path):
    store = tmp_path / "store"
    parsed = parse_recipe(recipe(data={"path": str(store), "eval_path": str(tmp_path)}))
    with pytest.raises(RecipeError) as error:
        parsed.check_files()
    first, second = str(error.value).splitlines()
    assert first.startswith(f"data.path: {store}: no such folder")
    assert second.startswith(f"data.eval_path: {tmp_path}: not a token store")
    store.mkdir()
    (store / MANIFEST).write_text("{}")
    parse_recipe(recipe(data={"path": str(store)})).check_files()


def test_max_predictions():
    config = parse_recipe(recipe()).config
    assert [config.max_predictions(n) for n in (128, 512, 64, 256, 8)] == [20, 80, 10, 40, 2]
    config = parse_recipe(
        recipe(data__masked_lm_prob=0.1)
    ).config  # 96 * 0.1 * 20 / 19.2 is 10 and a bit
    assert config.max_predictions(96) == 10
    config = parse_recipe(recipe(data__max_predictions_per_seq=19)).config
    assert [config.max_predictions(n) for n in (128, 512)] == [19, 76]


@given(st.integers(8, 600), st.floats(0.01, 1.0))
def test_max_predictions_hold_the_masked_share(seq_length, masked_lm_prob):
    config = parse_recipe(recipe(data__masked_lm_prob=masked_lm_prob)).config
    assert seq_length * masked_lm_prob - 1e-6 <= config.max_predictions(seq_length) <= seq_length


@pytest.mark.parametrize("name", ["run", "1e5", "on", "0x1f", "null", "12"])
def test_resolved_recipe_reads_back_equal(tmp_path, name):
    config = parse_recipe(recipe(name=name, plan__long_sequence={"share": 0.1})).config
    path = tmp_path / "recipe.yaml"
    path.write_text(config.to_yaml())
    assert load_recipe(path, []).config == config


def test_overrides_are_validated_like_the_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(RECIPE))
    config = load_recipe(path, ["optimizer.learning_rate=8.8e-4", "train.frozen_dropout=on"]).config
    assert config.optimizer.learning_rate == 8.8e-4
    assert config.train.frozen_dropout == "on"
    with pytest.raises(RecipeError, match="did you mean optimizer"):
        load_recipe(path, ["optimiser.learning_rate=8.8e-4"])


def test_a_twin_of_any_method_spends_the_same_steps(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(RECIPE))
    for method in ("mslt", "stacking", "full"):
        config = load_recipe(path, [f"plan.method={method}"]).config
        assert build_plan(config).total_steps == 1000


def test_deepspeed_json_is_checked_with_the_recipe(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(
        json.dumps({"zero_optimization": {"stage": 3}, "scheduler": {"type": "OneCycle"}})
    )
    lines = problems(deepspeed__config=str(path), plan__long_sequence={"share": 0.1})
    assert len(lines) == 2 and all(line.startswith("deepspeed.config: ") for line in lines)


@pytest.mark.parametrize(
    ("section", "key"),
    [("data", "path"), ("data", "eval_path"), ("plan", "init_from"), ("deepspeed", "config")],
)
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a\0b", "no path can hold a NUL character"),
        ("~no-such-user/store", "no such user; write ./~no-such-user/store"),
        ("stores/" + "n" * 260, "a name of 260 bytes; file systems allow 255"),
        ("stores/" + "é" * 130, "a name of 260 bytes; file systems allow 255"),
    ],
)
def test_paths_that_no_file_can_have_are_named(section, key, path, words):
    (line,) = problems(**{f"{section}__{key}": path})
    assert line.startswith(f"{section}.{key}: ") and words in line


def test_a_home_folder_is_expanded_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ds.json").write_text("{}")
    config = parse_recipe(
        recipe(
            output_dir="~/runs",
            data={"path": "~/a", "eval_path": "~/b"},
            plan__init_from="~/model",
            deepspeed__config="~/ds.json",
        )
    ).config
    assert config.run_dir == tmp_path / "runs" / "run"
    assert config.data.path == f"{tmp_path}/a" and config.data.eval_path == f"{tmp_path}/b"
    assert config.plan.init_from == f"{tmp_path}/model"
    assert config.deepspeed.config == f"{tmp_path}/ds.json"


def test_names_and_numbers_without_end_are_refused():
    assert "200 characters or fewer" in problems(name="n" * 260)[0]
    assert "a number below 9223372036854775808" in problems(plan__steps_per_stage=10**400)[0]


@pytest.mark.parametrize("project", ["team/name", "a:b", "a\\b", "50%"])
def test_a_project_that_wandb_does_not_take_is_named(project):
    (line,) = problems(telemetry={"wandb": {"project": project}})
    assert line.startswith("telemetry.wandb.project: ") and "WANDB_ENTITY" in line
    assert "mode" not in line


def keys_of(section: type, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """All keys of a section and of those inside of it."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append((*prefix, name))
        if (inner := _model_in(field.annotation)) is not None:
            keys += keys_of(inner, (*prefix, name))
    return keys


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(keys_of(RunConfig)), anything), min_size=1, max_size=3))
def test_any_value_of_any_key_is_taken_or_told_of(changes):
    changed = copy.deepcopy(RECIPE)
    for path, value in changes:
        section = changed
        for part in path[:-1]:
            if not isinstance(section.get(part), dict):
                section[part] = {}
            section = section[part]
        section[path[-1]] = value
    try:
        parse_recipe(changed)
    except RecipeError as error:
        assert str(error)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=" \n\t:-[]{}&*!|>%@`#'\"?,.a0", max_size=40) | st.text(max_size=40))
def test_any_text_is_a_recipe_or_told_of(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    "key",
    [
        "model__num_hidden_layers", "model__hidden_size", "model__vocab_size", "data__seq_length",
        "data__num_workers", "train__hang_timeout_seconds", "train__max_skipped_steps",
        "train__spike_window", "checkpoint__give_up_after",
    ],
)  # fmt: skip
def test_numbers_out_of_all_proportion_are_refused(key):
    (line,) = problems(**{key: 2**62})
    assert line.startswith(f"{key.replace('__', '.')}: {2**62}; it has to be a number of at most ")
