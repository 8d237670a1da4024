"""Compiled parts compute what they compute otherwise, for any count of tokens, or say why not."""

from __future__ import annotations

import logging

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mslt_ds.data.unpadding import places_to_run
from mslt_ds.model import compiled
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import OBJECTIVES, MaskedLM
from mslt_ds.model.staged import StageModel
from tests.unit.model.test_staged import small_config
from tests.unit.model.test_unpadded import losses_and_gradients, micro_batch


def model_of(family: str, frozen_layers: int) -> StageModel:
    config = small_config(family)
    return StageModel.build(
        config, OBJECTIVES["nsp"], range(frozen_layers, config.num_hidden_layers),
        fresh_weights(config, seed=1), frozen_dropout=False, dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip


def inputs_of(lengths: list[int], seed: int) -> dict[str, torch.Tensor]:
    padded = micro_batch(lengths, [5, 3, 4], seed)
    return padded | places_to_run(padded, MaskedLM.grids, sizes=1000, always=True)


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_each_part_is_compiled_once_for_all_counts_of_tokens(monkeypatch, family):
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiled, "BACKEND", counter)
    model, plain = model_of(family, 2), model_of(family, 2)
    model.compile()
    for lengths, seed in (([24, 9, 12], 1), ([24, 24, 24], 2), ([7, 11, 10], 3)):
        inputs = inputs_of(lengths, seed)
        expected = losses_and_gradients(plain, inputs)
        for found, wanted in zip(losses_and_gradients(model, inputs), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2


def test_where_compiling_fails_the_parts_run_as_they_are(monkeypatch, caplog):
    def refuse(graph, example_inputs):
        raise RuntimeError("there is no compiler here\nand more lines")

    monkeypatch.setattr(compiled, "BACKEND", refuse)
    model, inputs = model_of("bert", 2), inputs_of([24, 9, 12], 1)
    model.compile()
    with caplog.at_level(logging.WARNING):
        found = losses_and_gradients(model, inputs)
        losses_and_gradients(model, inputs)
    expected = losses_and_gradients(model_of("bert", 2), inputs)
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))
    warnings = [record.getMessage() for record in caplog.records if "train.compile" in record.msg]
    assert len(warnings) == 2  # once for each part
    assert all("there is no compiler here" in warning for warning in warnings)


def test_what_auto_takes():
    assert compiled.wanted("auto", torch.device("cuda"))[0]
    assert not compiled.wanted("auto", torch.device("cpu"))[0]
    assert compiled.wanted("on", torch.device("cpu"))[0]
    assert not compiled.wanted("off", torch.device("cuda"))[0]
