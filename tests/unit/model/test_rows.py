"""Attention by the kernel for sequences of different lengths, with a plain loop in its place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen

from mslt_ds.data.unpadding import places_to_run
from mslt_ds.model import rows
from mslt_ds.model.objective import MaskedLM
from mslt_ds.model.rows import PREDICTION_PLACES, Rows, join
from tests.unit.model.test_unpadded import micro_batch

HEADS, SIZE = 2, 8


def kernel(query, key, value, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    """varlen_attn, one sequence after the other. What no sequence holds is undefined: NaN here."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and len(cu_q) == len(cu_k)
    out = torch.full_like(query, float("nan"))
    for q0, q1, k0, k1 in zip(*(c for cu in (cu_q, cu_k) for c in (cu[:-1], cu[1:])), strict=True):
        assert q1 - q0 <= max_q and k1 - k0 <= max_k
        if q0 == q1:
            continue
        mask = None
        if window_size[0] >= 0:
            place = torch.arange(int(k1 - k0))
            mask = (place[:, None] - place).abs() <= window_size[0]
        parts = (
            t[a:b].transpose(0, 1) for t, a, b in ((query, q0, q1), (key, k0, k1), (value, k0, k1))
        )
        attended = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale)
        out[q0:q1] = attended.transpose(0, 1)
    return out


@pytest.fixture
def with_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "has_varlen_kernel", lambda device: True)
    monkeypatch.setattr(varlen, "varlen_attn", kernel)


def states(seed: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, HEADS, SIZE, generator=generator).bfloat16() for _ in range(3)]


LENGTHS = [[24, 9, 12], [7, 24, 11]]


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("sizes", [1000, 5])
def test_the_kernel_attends_like_padded_rows(with_kernel, sizes: int, window: int | None):
    parts = [micro_batch(lengths, [5, 3, 4], seed=1) for lengths in LENGTHS]
    inputs, _ = join([part | places_to_run(part, MaskedLM.grids, sizes) for part in parts])
    found, padded = Rows.of(inputs), Rows.of({"attention_mask": inputs["attention_mask"]})
    assert found.cu_seqlens is not None and padded.cu_seqlens is None
    if window is not None:
        found, padded = found.within(window), padded.within(window)
    query, key, value = states(1, 1, len(found.position_ids[0]))
    ours = found.attend(query, key, value, dropout=0.0, scale=None)
    assert ours.isfinite().all()
    grids = [found.tokens.spread(tensor) for tensor in (query, key, value)]
    theirs = padded.attend(*grids, dropout=0.0, scale=None)
    real = found.tokens.take(inputs["attention_mask"])
    torch.testing.assert_close(ours[real], found.tokens.take(theirs)[real], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("predictions", [[5, 3, 4], [5, 5, 5]])
def test_the_kernel_attends_like_padded_rows_at_positions(with_kernel, predictions: list[int]):
    inputs = micro_batch(LENGTHS[0], predictions, seed=1)
    inputs |= places_to_run(inputs, MaskedLM.grids, 1000)
    found = Rows.of(inputs)
    at = found.at(inputs["masked_positions"], inputs.get(PREDICTION_PLACES))
    assert (PREDICTION_PLACES in inputs) == (predictions != [5, 5, 5])
    query, key, value = states(1, 1, len(found.position_ids[0]))
    chosen = at.gather(query)
    ours = found.attend(chosen, key, value, dropout=0.0, scale=None, positions=at)
    whole = found.attend(query, key, value, dropout=0.0, scale=None)
    torch.testing.assert_close(ours, at.gather(whole), rtol=0.02, atol=0.02)


def test_dropout_and_fp32_take_the_padded_rows(with_kernel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(varlen, "varlen_attn", None)
    inputs = micro_batch(LENGTHS[0], [5, 3, 4], seed=1)
    found = Rows.of(inputs | places_to_run(inputs, MaskedLM.grids, 1000))
    query, key, value = states(1, 1, len(found.position_ids[0]))
    found.attend(query, key, value, dropout=0.1, scale=None)
    found.attend(query.float(), key.float(), value.float(), dropout=0.0, scale=None)
