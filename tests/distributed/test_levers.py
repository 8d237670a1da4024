"""What makes steps cheaper changes no bit, or rounding alone, on two ranks."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.recipes import (
    SCRIPTS,
    events_of,
    metrics_of,
    recipe,
    weights_at,
    write_recipes,
)

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_each_lever_computes_what_the_plain_run_does(launch, store, tmp_path):
    plain = {"unpadded": "off", "prefix_ahead": "off"}
    levers = {
        "plain": {},
        "unpadded": {"unpadded": "on"},
        "ahead": {"prefix_ahead": "on"},
        "at-once": {"prefix_micro_batch_size": 6},
        "at-once-auto": {"prefix_micro_batch_size": "auto"},
        "all": {"unpadded": "on", "prefix_ahead": "on", "prefix_micro_batch_size": 6},
    }
    evaluated = {"eval_path": str(store)}
    recipes = [
        recipe(store, tmp_path, name, model=NO_DROPOUT, data=evaluated,
               train=plain | lever, evaluation={"instances": 24})
        for name, lever in levers.items()
    ]  # fmt: skip
    # With dropout, which the thread of the prefix must not draw from.
    recipes += [
        recipe(store, tmp_path, f"dropout-{ahead}", train=plain | {"prefix_ahead": ahead})
        for ahead in ("off", "on")
    ]
    launch(SCRIPTS / "run_recipes.py", 2, write_recipes(tmp_path / "recipes.json", recipes))
    for one, other in (("plain", "ahead"), ("dropout-off", "dropout-on")):
        expected = weights_at(tmp_path / one, "model")
        for name, tensor in weights_at(tmp_path / other, "model").items():
            assert torch.equal(tensor, expected[name]), (other, name)
    starts = [e for e in events_of(tmp_path / "all") if e["event"] == "stage_start"]
    told = [(e.get("prefix_micro_batch_size"), e.get("prefix_ahead")) for e in starts]
    assert told == [(None, None), (6, True), (None, None)]
    losses = {name: [line["loss"] for line in metrics_of(tmp_path / name)] for name in levers}
    assert losses["ahead"] == losses["plain"]
    for name in ("unpadded", "at-once", "at-once-auto", "all"):
        assert losses[name] == pytest.approx(losses["plain"], abs=2e-5), name
