"""The split model is Hugging Face's model: same losses, same gradients, at every cut.

Both families: a BERT of 4 layers, and an ALBERT of 4 layers in 2 groups.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertConfig,
    PretrainedConfig,
)

from mslt_ds.model.families import family_of
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import OBJECTIVES
from mslt_ds.model.staged import StageModel
from mslt_ds.state import Weights

DEPTH, VOCAB, BATCH, SEQ_LENGTH, PREDICTIONS = 4, 97, 3, 24, 5


FAMILIES = ["bert", "albert"]
CUTS = [("bert", 0), ("bert", 1), ("bert", 2), ("bert", 3), ("albert", 0), ("albert", 2)]


def small_config(family: str, dropout: float = 0.0) -> PretrainedConfig:
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 32,
        "initializer_range": 0.2,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    config = (
        BertConfig(**sizes, architectures=["BertForPreTraining"])
        if family == "bert"
        else AlbertConfig(
            **sizes,
            embedding_size=20,
            num_hidden_groups=2,
            hidden_act="gelu_new",
            architectures=["AlbertForPreTraining"],
        )
    )
    config._attn_implementation = "sdpa"
    return config


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    attention_mask = torch.ones(BATCH, SEQ_LENGTH, dtype=torch.bool)
    attention_mask[1, 15:] = False
    positions = [
        torch.randperm(13, generator=generator)[:PREDICTIONS].sort().values + 1
        for _ in range(BATCH)
    ]
    weights = torch.ones(BATCH, PREDICTIONS)
    weights[2, 3:] = 0.0
    return {
        "input_ids": torch.randint(1, VOCAB, (BATCH, SEQ_LENGTH), generator=generator),
        "token_type_ids": torch.randint(0, 2, (BATCH, SEQ_LENGTH), generator=generator),
        "attention_mask": attention_mask,
        "masked_positions": torch.stack(positions),
        "masked_labels": torch.randint(0, VOCAB, (BATCH, PREDICTIONS), generator=generator),
        "masked_weights": weights,
        "pair_labels": torch.tensor([0, 1, 1]),
    }


def hugging_face_losses(family: str, weights: Weights, inputs: dict[str, torch.Tensor]):
    """The reference, from logits at all positions: summed MLM loss, summed NSP loss, gradients."""
    model = AutoModelForPreTraining.from_config(small_config(family)).eval()
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    output = model(
        input_ids=inputs["input_ids"],
        token_type_ids=inputs["token_type_ids"],
        attention_mask=inputs["attention_mask"],
    )
    labels = torch.full((BATCH, SEQ_LENGTH), -100)
    kept = torch.where(inputs["masked_weights"] > 0, inputs["masked_labels"], -100)
    # Positions of weight 0 come last here, so they don't overwrite a real label.
    labels.scatter_(1, inputs["masked_positions"], kept)
    mlm_sum = F.cross_entropy(
        output.prediction_logits.flatten(0, 1), labels.flatten(), reduction="sum"
    )
    nsp_sum = F.cross_entropy(
        output.seq_relationship_logits if family == "bert" else output.sop_logits,
        inputs["pair_labels"],
        reduction="sum",
    )
    (mlm_sum / 13 + nsp_sum / BATCH).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return mlm_sum, nsp_sum, gradients


def stage_losses(model: StageModel, inputs: dict[str, torch.Tensor]):
    if model.prefix is None:
        return model.suffix(inputs, None, None)
    return model.suffix(inputs, model.prefix(inputs), model.prefix.decoder_weight)


def build(
    family: str, weights: Weights, frozen_layers: int, *, dropout: float = 0.0, frozen_dropout=False
):
    return StageModel.build(
        small_config(family, dropout),
        OBJECTIVES["nsp"],
        frozen_layers,
        weights,
        frozen_dropout=frozen_dropout,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


@settings(max_examples=12)
@given(cut=st.sampled_from(CUTS), seed=st.integers(0, 1000))
def test_losses_and_gradients_equal_hugging_faces_at_every_cut(cut, seed):
    family, frozen_layers = cut
    weights, inputs = fresh_weights(small_config(family), seed=seed), batch(seed)
    mlm_reference, nsp_reference, gradients = hugging_face_losses(family, weights, inputs)
    model = build(family, weights, frozen_layers)
    mlm_sum, nsp_sum = stage_losses(model, inputs)
    torch.testing.assert_close(mlm_sum, mlm_reference, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(nsp_sum, nsp_reference, rtol=1e-6, atol=1e-6)
    (mlm_sum / 13 + nsp_sum / BATCH).backward()
    for name, parameter in dict(model.suffix.named_parameters()).items():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("frozen_layers", [0, 2])
def test_without_a_sentence_head_it_is_hugging_faces_masked_lm(family, frozen_layers):
    config = small_config(family)
    config.architectures = ["BertForMaskedLM" if family == "bert" else "AlbertForMaskedLM"]
    weights, inputs = fresh_weights(config, seed=2), batch(2)
    assert not any("pooler" in name or "seq" in name or "sop" in name for name in weights)
    reference = AutoModelForMaskedLM.from_config(config).eval()
    reference.load_state_dict(weights, strict=False)
    reference.tie_weights()
    logits = reference(**{
        name: inputs[name] for name in ("input_ids", "token_type_ids", "attention_mask")
    }).logits  # fmt: skip
    chosen = logits[torch.arange(BATCH)[:, None], inputs["masked_positions"]]
    losses = F.cross_entropy(
        chosen.flatten(0, 1), inputs["masked_labels"].flatten(), reduction="none"
    )
    expected = (losses * inputs["masked_weights"].flatten()).sum()
    expected.backward()
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    model = StageModel.build(
        config, OBJECTIVES["full_sentences"], frozen_layers, weights, frozen_dropout=False, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    (mlm_sum,) = stage_losses(model, inputs)
    torch.testing.assert_close(mlm_sum, expected, rtol=1e-6, atol=1e-6)
    mlm_sum.backward()
    for name, parameter in model.suffix.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("family", "frozen_layers"), CUTS)
def test_prefix_and_suffix_hold_each_parameter_once(family, frozen_layers):
    config = small_config(family)
    weights = fresh_weights(config, seed=1)
    model = build(family, weights, frozen_layers)
    below = dict(model.prefix.named_parameters()) if model.prefix else {}
    above = dict(model.suffix.named_parameters())
    assert not below.keys() & above.keys()
    assert below.keys() | above.keys() == weights.keys()
    for name, parameter in (below | above).items():
        assert torch.equal(parameter, weights[name]), name
    assert not any(p.requires_grad for p in below.values())
    assert all(p.requires_grad for p in above.values())
    assert (family_of(config).word_embeddings in above) == (frozen_layers == 0)


def test_no_cut_goes_through_a_group_of_layers_that_share():
    weights = fresh_weights(small_config("albert"), seed=1)
    for frozen_layers in (1, 3):
        with pytest.raises(ValueError, match="cut a group of 2 layers"):
            build("albert", weights, frozen_layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gradient_reaches_the_prefix_or_the_decoder_matrix(family):
    model = build(family, fresh_weights(small_config(family), seed=1), 2)
    assert model.prefix is not None
    sum(stage_losses(model, batch())).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.prefix.parameters())
    assert not model.prefix.decoder_weight.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_dropout_is_the_recipes_choice(family):
    weights, inputs = fresh_weights(small_config(family), seed=1), batch()
    off = build(family, weights, 2, dropout=0.5).prefix
    on = build(family, weights, 2, dropout=0.5, frozen_dropout=True).prefix
    assert off is not None and on is not None
    off.train()  # what a caller says makes no difference
    on.eval()
    assert torch.equal(off(inputs), off(inputs))
    assert not torch.equal(on(inputs), on(inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_the_suffix_follows_the_generator(family):
    model, inputs = (
        build(family, fresh_weights(small_config(family), seed=1), 2, dropout=0.3),
        batch(),
    )
    torch.manual_seed(5)
    first = stage_losses(model, inputs)
    torch.manual_seed(5)
    assert torch.equal(stage_losses(model, inputs)[0], first[0])
    assert not torch.equal(stage_losses(model, inputs)[0], first[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_evaluation_has_no_dropout_wherever_the_recipe_puts_it(family):
    model = build(
        family, fresh_weights(small_config(family), seed=1), 2, dropout=0.5, frozen_dropout=True
    )
    inputs = batch()
    assert model.prefix is not None
    model.suffix.eval()
    with model.prefix.without_dropout():
        first, second = stage_losses(model, inputs), stage_losses(model, inputs)
    model.suffix.train()
    assert torch.equal(first[0], second[0])
    assert not torch.equal(stage_losses(model, inputs)[0], first[0])  # and then it's back
    assert not torch.equal(model.prefix(inputs), model.prefix(inputs))
