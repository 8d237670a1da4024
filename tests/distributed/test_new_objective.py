"""An objective that the program doesn't know goes all the way from a recipe to a model card.

`scripts/next_token.py` is all that is said about it: a class, an instance maker and an entry of `OBJECTIVES`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM

from mslt_ds.batches import Batches
from mslt_ds.data.loader import GlobalBatch
from mslt_ds.data.store import TokenStore
from mslt_ds.distributed.world import World
from mslt_ds.errors import RecipeError
from mslt_ds.model.objective import OBJECTIVES
from mslt_ds.plan.flops import instance_flops
from mslt_ds.plan.hours import Model
from mslt_ds.recipe.loading import Recipe, parse_recipe
from mslt_ds.state import TrainingState
from tests.distributed.recipes import SCRIPTS, events_of, metrics_of, recipe, write_recipes
from tests.distributed.scripts.next_token import NextToken
from tests.unit.plan.test_flops import VOCAB_SIZE, counted_by_torch, recipe_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, NextToken.input_format, NextToken())


def next_token_recipe(store: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    return recipe(
        store, folder, "next-token", data={"input_format": "next_token", "eval_path": str(store)},
        evaluation={"instances": 24}, **changes,
    )  # fmt: skip


def batches_of(parsed: Recipe, store: Path, rank: int = 0, world_size: int = 1) -> Batches:
    opened = TokenStore.open(store)
    return Batches(parsed, World(rank, world_size, rank), CPU, opened, opened)


def texts(batches: list[GlobalBatch]) -> list[list[int]]:
    """The tokens of each instance, in the order of the global batches' micro-batches."""
    return [
        ids[mask].tolist()
        for batch in batches
        for micro_batch in batch.micro_batches
        for ids, mask in zip(
            micro_batch.fields["input_ids"], micro_batch.fields["attention_mask"], strict=True
        )
    ]


def test_instances_are_the_stores_text(store: Path, tmp_path: Path):
    parsed = parse_recipe(next_token_recipe(store, tmp_path))
    (stage, *_), opened = parsed.plan.stages, TokenStore.open(store)
    ranks = [
        list(batches_of(parsed, store, rank, 2).training(stage, TrainingState(0)))
        for rank in range(2)
    ]
    corpus = opened.corpus
    stored = corpus.tokens[:].tolist()
    for parts in zip(*ranks, strict=True):
        found = [text for part in parts for text in texts([part])]
        assert len(found) == stage.global_batch_size
        for text in found:
            assert text[0] == corpus.special.cls and text[-1] == corpus.special.sep
            inner = text[1:-1]
            assert any(
                stored[low : low + len(inner)] == inner
                for low in (int(start) for start in corpus.sentences[:-1])
            )
        labels = sum(len(text) - 1 for text in found)
        assert {part.denominators for part in parts} == {(labels,)}


def test_operations_are_those_that_torch_counts():
    """Logits everywhere, so nothing of the top layer is saved either."""
    for family in ("bert", "albert"):
        parsed = recipe_of(family, input_format="next_token")
        for stage in parsed.plan.stages:
            inputs = {
                "input_ids": torch.randint(5, VOCAB_SIZE, (2, stage.seq_length)),
                "token_type_ids": torch.zeros(2, stage.seq_length, dtype=torch.int64),
                "attention_mask": torch.ones(2, stage.seq_length, dtype=torch.bool),
            }
            told = instance_flops(parsed.config, stage, VOCAB_SIZE) * 2
            counted = counted_by_torch(parsed, stage, inputs)
            assert [told.prefix, told.forward, told.backward] == pytest.approx(counted, rel=0.02)


def test_memory_holds_logits_at_every_position():
    own, masked = (recipe_of(input_format=name) for name in ("next_token", "full_sentences"))
    stage = own.plan.stages[0]
    bytes_of = [Model(r.config, VOCAB_SIZE, 0).memory(stage, gpus=1) for r in (own, masked)]
    more = stage.micro_batch_size * (stage.seq_length - own.config.max_predictions(64))
    assert bytes_of[0] - bytes_of[1] == more * VOCAB_SIZE * 2 * 4  # logits and gradients in fp32


def test_keys_of_masking_are_refused(store: Path, tmp_path: Path):
    changed = next_token_recipe(store, tmp_path)
    changed["data"] |= {"masking": "span", "masked_lm_prob": 0.3}
    changed["plan"] = {
        "method": "custom",
        "stages": [{"depth": 2, "steps": 2, "masked_lm_prob": 0.2}],
    }
    with pytest.raises(RecipeError) as caught:
        parse_recipe(changed)
    for key in (
        "data.masking: span",
        "data.masked_lm_prob: 0.3",
        "plan.stages.0.masked_lm_prob: 0.2",
    ):
        assert f"{key}, but data.input_format next_token doesn't read it" in str(caught.value)


def test_a_run_on_two_ranks(launch, store: Path, tmp_path: Path):
    raw = next_token_recipe(store, tmp_path)
    launch(SCRIPTS / "next_token.py", 2, write_recipes(tmp_path / "recipes.json", [raw]))
    run, parsed = tmp_path / "next-token", parse_recipe(raw)

    lines = metrics_of(run)
    assert len(lines) == parsed.plan.total_steps
    for line in lines:
        assert {key for key in line if key.endswith("_loss")} == {"lm_loss"}
        assert line["loss"] == line["lm_loss"]
    assert lines[-1]["lm_loss"] < 0.9 * lines[0]["lm_loss"]

    ends = [line for line in events_of(run) if line["event"] == "stage_end"]
    assert [[key for key in end if key.startswith("eval_")] for end in ends] == [
        ["eval_lm_loss"]
    ] * 3
    assert ends[-1]["eval_lm_loss"] == pytest.approx(
        held_out_loss(run / "model", parsed, store), rel=1e-5
    )

    vocab_size = TokenStore.open(store).vocab_size
    told = json.loads((run / "plan.json").read_text())["stages"]
    assert [stage["flops_per_step"] for stage in told] == [
        instance_flops(parsed.config, stage, vocab_size).total * stage.global_batch_size
        for stage in parsed.plan.stages
    ]
    card = (run / "model" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "| after stage | LM |" in card
    assert "Instances: `next_token`\n" in card


def held_out_loss(folder: Path, parsed: Recipe, store: Path) -> float:
    """By Hugging Face's model, one instance at a time without padding."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    held_out = batches_of(parsed, store).evaluation(parsed.plan.stages[-1])
    assert held_out is not None
    total, count = 0.0, 0
    for text in texts(list(held_out)):
        ids = torch.tensor([text])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += len(text) - 1
    return total / count
