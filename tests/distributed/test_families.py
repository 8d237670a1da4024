"""Families beside BERT in stages, seen from outside: ALBERT's groups of layers that share their
parameters, and layers of several kinds, are frozen, copied, trained and exported as they should be."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    pipeline,
)

from mslt_ds.batches import Batches
from mslt_ds.data.store import TokenStore
from mslt_ds.distributed.world import World
from mslt_ds.evaluation.encoder import Encoder
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.growth import sources
from mslt_ds.model.initial import fresh_parameter
from mslt_ds.recipe.loading import parse_recipe
from tests.distributed.recipes import (
    LAYERS,
    SCRIPTS,
    events_of,
    merged,
    metrics_of,
    moved_in,
    recipe,
    weights_at,
    write_recipes,
    zero_config,
)

CASES: dict[str, dict[str, Any]] = {
    "albert": {
        "model": {"embedding_size": 16, "num_hidden_groups": 2},
        "data": {"input_format": "sop", "masking": "ngram"},
    },
    # Weights and a window with which it shows in the loss where layers attend.
    "modernbert": {"model": {"initializer_range": 0.2, "local_attention": 8}},
    "roberta": {},
}
BLOCKS = {"albert": 2}  # else one for each layer
KINDS = {"modernbert": ["global", "local", "local", "global"]}
ZERO_STAGES = (0, 1, 2)
STEP = "checkpoints/step_0000000007"


@pytest.fixture(scope="module")
def runs(module_launch, store, tmp_path_factory) -> Path:
    """Two stages and a joint one on two ranks: each family at each ZeRO stage, and a run that goes on
    from the middle of stage 2; ALBERT also with a new group that is fresh."""
    folder = tmp_path_factory.mktemp("runs")

    def of(family: str, name: str, zero: int, **changes: Any) -> dict[str, Any]:
        return merged(
            recipe(
                store, folder, f"{family}-{name}",
                model={"family": family},
                optimizer={"name": "lamb", "state": "copy"},
                checkpoint={"every_steps": 7, "keep": 9},
                data={"eval_path": str(store)},
                evaluation={"instances": 24},
                deepspeed=zero_config(folder, zero),
                **changes,
            ),
            CASES[family],
        )  # fmt: skip

    def train(recipes: list[dict[str, Any]]) -> None:
        path = write_recipes(folder / "recipes.json", recipes)
        module_launch(SCRIPTS / "run_recipes.py", 2, path, launcher="deepspeed")

    whole = [of(family, f"zero-{zero}", zero) for family in CASES for zero in ZERO_STAGES]
    train([*whole, of("albert", "random", 0, plan={"init": "random"})])
    for family in CASES:
        shutil.copytree(folder / f"{family}-zero-1" / STEP, folder / f"{family}-resumed" / STEP)
    train([of(family, "resumed", 1) for family in CASES])
    return folder


def block_of(family: str, name: str) -> int | None:
    blocks = FAMILIES[family].block_prefix
    return int(name[len(blocks) :].split(".")[0]) if name.startswith(blocks) else None


def by_place(family: str, names: set[str]) -> tuple[set[str], set[str], set[str]]:
    """Names of the embeddings, of the upper half of the blocks, and of what lies above the blocks."""
    half = BLOCKS.get(family, LAYERS) // 2
    embeddings = {name for name in names if FAMILIES[family].part_of(name) == "embeddings"}
    upper = {name for name in names if (block_of(family, name) or 0) >= half}
    heads = {name for name in names - embeddings if block_of(family, name) is None}
    return embeddings, upper, heads


@pytest.mark.parametrize("zero", ZERO_STAGES)
@pytest.mark.parametrize("family", CASES)
def test_each_stage_trains_its_blocks_and_the_heads(runs: Path, family: str, zero: int):
    run = runs / f"{family}-zero-{zero}"
    everything = set(weights_at(run, "stages/3/end"))
    blocks = {block_of(family, name) for name in everything}
    assert blocks == {None, *range(BLOCKS.get(family, LAYERS))}
    embeddings, upper, heads = by_place(family, everything)
    assert embeddings and upper and heads
    assert moved_in(run, 1) == everything - upper
    assert moved_in(run, 2) == upper | heads
    assert moved_in(run, 3) == everything


@pytest.mark.parametrize("zero", ZERO_STAGES)
@pytest.mark.parametrize("family", CASES)
def test_new_blocks_are_copies(runs: Path, family: str, zero: int):
    run = runs / f"{family}-zero-{zero}"
    before, start = weights_at(run, "stages/1/end"), weights_at(run, "stages/2/start")
    assert set(before) < set(start)
    count, prefix = BLOCKS.get(family, LAYERS), FAMILIES[family].block_prefix
    kinds = KINDS.get(family, ())
    plan = sources(count // 2, count, "copy_top", kinds=kinds)
    for name, tensor in start.items():
        place = block_of(family, name)
        source = name
        if place is not None:
            source = name.replace(f"{prefix}{place}.", f"{prefix}{plan[place]}.")
        if source == "model.layers.0.attn_norm.weight":  # there is none, so its copy's is fresh
            assert plan[3] == 0 and bool((tensor == 1).all())
        else:
            assert torch.equal(tensor, before[source]), name


def test_a_random_group_is_fresh_and_the_others_stay(runs: Path):
    before = weights_at(runs / "albert-random", "stages/1/end")
    start = weights_at(runs / "albert-random", "stages/2/start")
    config = AutoConfig.from_pretrained(runs / "albert-random" / "model")
    for name, tensor in start.items():
        if block_of("albert", name) != 1:
            assert torch.equal(tensor, before[name]), name
        else:
            fresh = fresh_parameter(name, tuple(tensor.shape), seed=7, final=config)
            assert torch.equal(tensor, fresh), name


@pytest.mark.parametrize("family", CASES)
def test_a_run_that_goes_on_ends_in_the_same_bits(runs: Path, family: str):
    resumed_run = runs / f"{family}-resumed"
    assert [line["step"] for line in metrics_of(resumed_run)] == list(range(7, 14))
    whole, resumed = (
        weights_at(runs / f"{family}-zero-1", "model"),
        weights_at(resumed_run, "model"),
    )
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.parametrize("zero", ZERO_STAGES)
@pytest.mark.parametrize("family", CASES)
def test_each_gradient_is_reduced_once(runs: Path, family: str, zero: int):
    run = runs / f"{family}-zero-{zero}"
    plan = json.loads((run / "plan.json").read_text())
    expected = {s["stage"]: s["elements_reduced_per_step"] for s in plan["stages"]}
    lines = metrics_of(run)
    assert [line["step"] for line in lines] == list(range(plan["total_steps"]))
    for line in lines:
        assert line["elements_reduced"] == expected[line["stage"]]
    weights = weights_at(run, "stages/2/end")
    _, upper, heads = by_place(family, set(weights))
    assert plan["stages"][1]["trainable_parameters"] == sum(
        weights[name].numel() for name in upper | heads
    )


@pytest.mark.parametrize("family", CASES)
def test_every_zero_stage_ends_in_the_same_weights(runs: Path, family: str):
    reference = weights_at(runs / f"{family}-zero-0", "model")
    for zero in ZERO_STAGES[1:]:
        for name, tensor in weights_at(runs / f"{family}-zero-{zero}", "model").items():
            torch.testing.assert_close(
                tensor, reference[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("family", CASES)
def test_trust_ratios_are_told_by_block(runs: Path, family: str):
    label = FAMILIES[family].block_label
    by_part = metrics_of(runs / f"{family}-zero-1")[-1]["trust_ratio"]
    assert {f"{label}_0", f"{label}_1", "embeddings"} <= by_part.keys()


def auto_class_of(family: str) -> Any:
    return AutoModelForPreTraining if family == "albert" else AutoModelForMaskedLM


@pytest.mark.parametrize("family", CASES)
def test_hugging_face_loads_what_was_trained(runs: Path, family: str):
    folder = runs / f"{family}-zero-0" / "model"
    auto_class = auto_class_of(family)
    model, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == next(iter(FAMILIES[family].architectures.values()))
    assert not info["missing_keys"] and not info["unexpected_keys"]
    config, blocks = model.config, BLOCKS.get(family, LAYERS)
    assert config.num_hidden_layers == LAYERS
    assert getattr(config, FAMILIES[family].block_key) == blocks
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("abc").input_ids)[0] == "[CLS]"
    assert tokenizer.unk_token_id not in tokenizer("abc").input_ids
    assert config.pad_token_id == tokenizer.pad_token_id
    assert Encoder.open(folder).tokenizer.vocab_size == tokenizer.vocab_size
    longest = tokenizer.model_max_length
    assert longest == config.max_position_embeddings - (1 if family == "roberta" else 0)
    assert pipeline("fill-mask", model=str(folder))("abc [MASK] abc.")
    model(**tokenizer("a " * 2 * longest, truncation=True, return_tensors="pt"))
    end = runs / f"{family}-zero-0" / "stages" / "1" / "end"
    shallow = auto_class.from_pretrained(end).config
    assert shallow.num_hidden_layers == LAYERS // 2
    assert getattr(shallow, FAMILIES[family].block_key) == blocks // 2


@pytest.mark.parametrize("family", CASES)
def test_the_exported_models_losses_are_those_of_the_training(runs: Path, store: Path, family: str):
    """Hugging Face's model of each stage's end, on the held-out batches that were measured there."""
    run = runs / f"{family}-zero-0"
    parsed = parse_recipe(yaml.safe_load((run / "recipe.yaml").read_text()))
    opened = TokenStore.open(store)
    batches = Batches(parsed, World(0, 1, 0), torch.device("cpu"), opened, opened)
    ends = [event for event in events_of(run) if event["event"] == "stage_end"]
    assert len(ends) == len(parsed.plan.stages) == 3
    for stage, end in zip(parsed.plan.stages, ends, strict=True):
        model = auto_class_of(family).from_pretrained(run / "stages" / str(stage.index) / "end")
        taken = inspect.signature(model.forward).parameters.keys()
        sums, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for batch in batches.evaluation(stage) or ():
            for fields in (micro_batch.fields for micro_batch in batch.micro_batches):
                with torch.no_grad():
                    output = model(**{name: fields[name] for name in fields.keys() & taken})
                is_used = fields["masked_weights"] > 0
                rows = torch.arange(len(is_used))[:, None].expand_as(is_used)[is_used]
                places = rows, fields["masked_positions"][is_used]
                logits = output["prediction_logits" if family == "albert" else "logits"][places]
                labels = fields["masked_labels"][is_used]
                sums[0] += F.cross_entropy(logits, labels, reduction="sum")
                counts[0] += len(labels)
                if family == "albert":
                    pairs = output.sop_logits, fields["pair_labels"]
                    sums[1] += F.cross_entropy(*pairs, reduction="sum")
                    counts[1] += len(pairs[1])
        assert counts[0] > 0
        names: list[str] = ["eval_mlm_loss", "eval_sop_loss"]
        found = dict(zip(names, (sums / counts).tolist(), strict=True))
        expected = {name: value for name, value in end.items() if name.startswith("eval_")}
        assert len(expected) == (2 if family == "albert" else 1)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-6), (stage.index, name)
