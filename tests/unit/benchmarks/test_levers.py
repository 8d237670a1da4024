"""The 8-bit layers that `benchmarks.levers` times."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.levers import Int8Linear, in_int8


def test_8_bit_layers_compute_nearly_the_same():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).requires_grad_(False)
    states = torch.randn(1, 100, 64)
    expected = plain(states)
    in_int8(plain)
    assert [type(layer) for layer in plain] == [Int8Linear, nn.GELU, Int8Linear]
    difference = float((plain(states) - expected).norm() / expected.norm())
    assert 0 < difference < 0.03
