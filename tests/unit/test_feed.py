"""How often and when the prefix runs changes nothing of what it computes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from mslt_ds.data.loader import GlobalBatch, MicroBatch
from mslt_ds.data.unpadding import places_to_run
from mslt_ds.feed import Fed, Feed
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import OBJECTIVES, MaskedLM
from mslt_ds.model.staged import FrozenPrefix, StageModel
from tests.unit.model.test_staged import small_config
from tests.unit.model.test_unpadded import PREDICTIONS, SEQ_LENGTH, micro_batch

CPU = torch.device("cpu")
LENGTHS = ([24, 9], [24, 24], [7, 20], [24, 24], [11, 12])  # some micro-batches have no padding


def prefix_of(*, dropout: bool = False, prefix_dtype: torch.dtype | None = None) -> FrozenPrefix:
    config = small_config("bert", dropout=0.3)
    weights = fresh_weights(config, seed=1)
    prefix = StageModel.build(
        config, OBJECTIVES["nsp"], range(2, config.num_hidden_layers), weights, frozen_dropout=dropout, dtype=torch.float32,
        device=CPU, prefix_dtype=prefix_dtype,
    ).prefix  # fmt: skip
    assert prefix is not None
    return prefix


def batches(steps: int, *, unpadded: bool) -> Iterator[GlobalBatch]:
    for step in range(steps):
        micro_batches = []
        for index, lengths in enumerate(LENGTHS):
            fields = micro_batch(lengths, [PREDICTIONS, 2], seed=10 * step + index)
            places = places_to_run(fields, MaskedLM.grids, sizes=8) if unpadded else {}
            micro_batches.append(MicroBatch(index, fields | places))
        yield GlobalBatch(micro_batches, (1, 1), 10, (10 * step, 10 * step + 10))


def fed_by(feed: Feed, *, unpadded: bool = True) -> list[Fed]:
    made = []
    for fed in feed.training(batches(3, unpadded=unpadded), first_step=5):
        torch.manual_seed(fed.dropout_seed)  # as the loop does
        made.append(fed)
    return made


@pytest.mark.parametrize("unpadded", [True, False])
@pytest.mark.parametrize(("at_once", "ahead"), [(1, True), (2, False), (3, True), (9, True)])
def test_passes_of_any_size_ahead_or_not_give_the_same(at_once: int, ahead: bool, unpadded: bool):
    prefix = prefix_of()
    expected = fed_by(Feed(prefix, CPU, seed=1), unpadded=unpadded)
    found = fed_by(Feed(prefix, CPU, seed=1, at_once=at_once, ahead=ahead), unpadded=unpadded)
    assert [f.step for f in found] == [5] * 5 + [6] * 5 + [7] * 5
    assert [f.begins_step for f in found] == [True, False, False, False, False] * 3
    assert [f.ends_step for f in found] == [False, False, False, False, True] * 3
    for mine, other in zip(found, expected, strict=True):
        assert (
            mine.dropout_seed == other.dropout_seed
            and mine.batch.instances == other.batch.instances
        )
        states, wanted = mine.inputs.hidden_states, other.inputs.hidden_states
        assert states is not None and wanted is not None and states.shape == wanted.shape
        torch.testing.assert_close(states, wanted, rtol=1e-5, atol=1e-5)
        if at_once == 1:
            assert torch.equal(states, wanted)


def test_full_micro_batches_keep_their_grid():
    shapes = [f.inputs.hidden_states.shape for f in fed_by(Feed(prefix_of(), CPU, 1, at_once=5))]  # type: ignore[union-attr]
    assert shapes[1] == (2, SEQ_LENGTH, 32) and shapes[0][0] == 1


def test_the_next_pass_runs_while_this_one_is_used(monkeypatch: pytest.MonkeyPatch):
    began = [threading.Event() for _ in range(15)]
    run = Feed._run
    monkeypatch.setattr(
        Feed, "_run", lambda self, one: (began[one.step * 5 + one.micro_batches[0].index - 25].set(), run(self, one))[1]
    )  # fmt: skip
    for number, _ in enumerate(
        Feed(prefix_of(), CPU, 1, ahead=True).training(batches(3, unpadded=True), 5)
    ):
        assert began[min(number + 1, 14)].wait(300)  # across the end of a step as well
        assert not any(event.is_set() for event in began[number + 2 :])


def test_an_early_end_leaves_no_thread_and_an_error_comes_in_its_turn(
    monkeypatch: pytest.MonkeyPatch,
):
    feed = Feed(prefix_of(), CPU, 1, ahead=True).training(batches(3, unpadded=True), 5)
    next(feed)
    feed.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mslt-prefix")]
    run = Feed._run

    def failing(self: Feed, one):
        if one.step == 6:
            raise RuntimeError("out of memory")
        return run(self, one)

    monkeypatch.setattr(Feed, "_run", failing)
    seen = []
    with pytest.raises(RuntimeError, match="out of memory"):
        for fed in Feed(prefix_of(), CPU, 1, ahead=True).training(batches(3, unpadded=True), 5):
            seen.append(fed.step)
    assert seen == [5] * 5


def test_a_prefix_in_bf16_gives_states_in_fp32_and_a_decoder_that_was_not_rounded():
    exact, rough = prefix_of(), prefix_of(prefix_dtype=torch.bfloat16)
    assert {p.dtype for p in rough.parameters()} == {torch.bfloat16}
    assert torch.equal(rough.decoder_weight, exact.decoder_weight)
    inputs = micro_batch([24, 9], [5, 2], seed=1)
    states, wanted = rough(inputs), exact(inputs)
    assert states.dtype == torch.float32
    assert 0 < float((states - wanted).norm() / wanted.norm()) < 0.02
