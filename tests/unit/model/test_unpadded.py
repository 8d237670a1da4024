"""Without padding, a model computes the losses and gradients that it computes with padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mslt_ds.data.unpadding import places_to_run
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import MaskedLM
from mslt_ds.model.rows import PREDICTION_PLACES, TOKEN_PLACES, Places
from mslt_ds.model.staged import StageModel
from tests.unit.model.test_staged import CUTS, VOCAB, build, small_config, stage_losses, weighted

SEQ_LENGTH, PREDICTIONS = 24, 5


def micro_batch(lengths: list[int], predictions: list[int], seed: int) -> dict[str, Tensor]:
    """Instances of these lengths with as many predictions, as the loader gives them."""
    generator = torch.Generator().manual_seed(seed)
    shape, batch = (len(lengths), SEQ_LENGTH), len(lengths)
    attention_mask = torch.arange(SEQ_LENGTH) < torch.tensor(lengths)[:, None]
    weights = (torch.arange(PREDICTIONS) < torch.tensor(predictions)[:, None]).float()
    positions = torch.zeros(batch, PREDICTIONS, dtype=torch.long)
    for row, (length, count) in enumerate(zip(lengths, predictions, strict=True)):
        drawn = torch.randperm(length - 1, generator=generator)[:count] + 1
        positions[row, :count] = drawn.sort().values
    draw = {"low": 1, "high": VOCAB, "generator": generator}
    return {
        "input_ids": torch.randint(size=shape, **draw) * attention_mask,
        "token_type_ids": torch.randint(0, 2, shape, generator=generator) * attention_mask,
        "attention_mask": attention_mask,
        "masked_positions": positions,
        "masked_labels": torch.randint(size=positions.shape, **draw) * (weights > 0),
        "masked_weights": weights,
        "pair_labels": torch.randint(0, 2, (batch,), generator=generator),
    }


def losses_and_gradients(model: StageModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    losses = stage_losses(model, inputs)
    model.suffix.zero_grad()
    weighted(losses).backward()
    gradients = [p.grad for p in model.suffix.parameters() if p.grad is not None]
    return [loss.detach() for loss in losses] + gradients


@st.composite
def micro_batches(draw: Any) -> tuple[dict[str, Tensor], int]:
    """A micro-batch, and how many sizes its counts may have."""
    lengths = draw(st.lists(st.integers(PREDICTIONS + 1, SEQ_LENGTH), min_size=1, max_size=4))
    counts = st.integers(0, PREDICTIONS)
    predictions = draw(st.lists(counts, min_size=len(lengths), max_size=len(lengths)))
    sizes = draw(st.sampled_from([1, 3, 8, 64, 1000]))
    return micro_batch(lengths, predictions, draw(st.integers(0, 99))), sizes


@pytest.mark.parametrize(("family", "frozen_layers"), CUTS)
@settings(max_examples=12)
@given(given_batch=micro_batches())
def test_losses_and_gradients_are_those_of_the_padded_micro_batch(
    family: str, frozen_layers: int, given_batch: tuple[dict[str, Tensor], int]
):
    padded, sizes = given_batch
    if family in ("roberta", "modernbert"):  # one segment
        padded = padded | {"token_type_ids": torch.zeros_like(padded["token_type_ids"])}
    model = build(family, fresh_weights(small_config(family), seed=1), frozen_layers)
    unpadded = padded | places_to_run(padded, MaskedLM.grids, sizes)
    expected = losses_and_gradients(model, padded)
    for found, wanted in zip(losses_and_gradients(model, unpadded), expected, strict=True):
        scale = max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(found / scale, wanted / scale, rtol=1e-6, atol=1e-6)


@given(given_batch=micro_batches())
def test_everything_that_counts_runs_and_little_else(given_batch: tuple[dict[str, Tensor], int]):
    inputs, sizes = given_batch
    used = {
        TOKEN_PLACES: inputs["attention_mask"].flatten(),
        PREDICTION_PLACES: inputs["masked_weights"].flatten() > 0,
    }
    found = places_to_run(inputs, MaskedLM.grids, sizes)
    for name, grid in used.items():
        places = found.get(name, torch.arange(len(grid)))
        assert len(places.unique()) == len(places)
        assert set(grid.nonzero().flatten().tolist()) <= set(places.tolist())
        assert len(places) < max(1, int(grid.sum())) + len(grid) / sizes + 1
        if name in found:
            assert len(places) < len(grid)
            assert torch.equal(places[: grid.sum()], grid.nonzero().flatten())
    always = places_to_run(inputs, MaskedLM.grids, sizes, always=True)
    for name, grid in used.items():
        assert len(always[name].unique()) == len(found.get(name, grid))
        assert torch.equal(always[name][: grid.sum()], grid.nonzero().flatten())


def test_what_is_spread_is_taken_back_and_gradients_go_the_same_way():
    places = Places(2, 3, torch.tensor([0, 1, 4, 2]))
    taken = torch.randn(1, 4, 5, requires_grad=True)
    grid = places.spread(taken)
    assert grid.shape == (2, 3, 5) and grid[1, 0].abs().sum() == 0
    assert torch.equal(places.take(grid), taken)
    weights = torch.randn(1, 4, 5)
    (places.take(grid) * weights).sum().backward()
    assert torch.equal(taken.grad, weights)  # type: ignore[arg-type]
