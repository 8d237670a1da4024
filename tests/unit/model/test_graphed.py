"""The frozen layers as CUDA graphs give what they give as they are."""

from __future__ import annotations

import pytest
import torch

from mslt_ds.data.unpadding import places_to_run
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import OBJECTIVES, MaskedLM
from mslt_ds.model.rows import PREFIX_FIELDS
from mslt_ds.model.staged import StageModel
from tests.unit.model.test_staged import small_config
from tests.unit.model.test_unpadded import PREDICTIONS, micro_batch

LENGTHS = ([24, 9], [24, 24], [7, 20], [24, 9], [11, 12])


def model_on(device: torch.device) -> StageModel:
    config = small_config("bert", dropout=0.3)
    return StageModel.build(
        config, OBJECTIVES["nsp"], range(2, config.num_hidden_layers), fresh_weights(config, seed=1),
        frozen_dropout=False, dtype=torch.float32, device=device,
    )  # fmt: skip


def inputs_on(device: torch.device) -> list[dict[str, torch.Tensor]]:
    """Micro-batches of several shapes, some of them twice."""
    found = []
    for index, lengths in enumerate(LENGTHS):
        fields = micro_batch(lengths, [PREDICTIONS, 2], seed=index)
        fields |= places_to_run(fields, MaskedLM.grids, sizes=8)
        found.append({name: tensor.to(device) for name, tensor in fields.items()})
    return found


def test_the_prefix_reads_no_other_fields():
    """A graph has no place for any other."""
    prefix = model_on(torch.device("cpu")).prefix
    assert prefix is not None
    for inputs in inputs_on(torch.device("cpu")):
        own = {name: inputs[name] for name in PREFIX_FIELDS if name in inputs}
        assert torch.equal(prefix(own), prefix(inputs))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
def test_graphs_of_several_shapes(compiled: bool):
    device = torch.device("cuda", torch.cuda.current_device())
    model = model_on(device)
    prefix = model.prefix
    assert prefix is not None
    expected = [prefix(inputs) for inputs in inputs_on(device)]
    if compiled:
        model.compile()
    model.graph()
    for _ in range(2):  # recorded, then replayed
        found = [prefix(inputs) for inputs in inputs_on(device)]
        # All are kept until here: no replay may write to what an earlier one gave.
        for mine, other in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
