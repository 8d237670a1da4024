"""The split model is Hugging Face's model: same losses, same gradients, at every cut.

Every family, with 4 layers; ALBERT's are in 2 groups. A new family is a line in CONFIGS.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AlbertConfig, BertConfig, ModernBertConfig, PretrainedConfig, RobertaConfig

from mslt_ds.model import families
from mslt_ds.model.families import family_of
from mslt_ds.model.initial import fresh_weights
from mslt_ds.model.objective import OBJECTIVES, Objective
from mslt_ds.model.staged import StageModel
from mslt_ds.state import Weights

DEPTH, VOCAB, BATCH, SEQ_LENGTH, PREDICTIONS = 4, 97, 3, 24, 5


CONFIGS = {
    "bert": (BertConfig, {}),
    "albert": (
        AlbertConfig,
        {"embedding_size": 20, "num_hidden_groups": 2, "hidden_act": "gelu_new"},
    ),
    "modernbert": (ModernBertConfig, {"local_attention": 8, "global_attn_every_n_layers": 2}),
    "roberta": (RobertaConfig, {"type_vocab_size": 1, "pad_token_id": 1}),
}
FAMILIES = list(families.FAMILIES)
CUTS = [
    (family, cut)
    for family in FAMILIES
    for cut in range(DEPTH)
    if family != "albert" or cut % 2 == 0
]


def small_config(
    family: str, dropout: float = 0.0, heads: frozenset[str] | None = None
) -> PretrainedConfig:
    """heads: None: the most that the family has"""
    described = families.FAMILIES[family]
    config_class, own = CONFIGS[family]
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
    sizes = {described.attribute(key): value for key, value in sizes.items()}
    architecture = described.architectures[heads or next(iter(described.architectures))]
    config = config_class(**sizes | {"pad_token_id": 0} | own, architectures=[architecture])
    config._attn_implementation = "sdpa"
    return config


def objective_of(config: PretrainedConfig) -> Objective:
    heads = family_of(config).heads_of(config)
    return next(objective for objective in OBJECTIVES.values() if objective.heads == heads)


def batch(family: str, seed: int = 0) -> dict[str, torch.Tensor]:
    config = small_config(family)
    generator = torch.Generator().manual_seed(seed)
    attention_mask = torch.ones(BATCH, SEQ_LENGTH, dtype=torch.bool)
    attention_mask[1, 15:] = False
    positions = [
        torch.randperm(13, generator=generator)[:PREDICTIONS].sort().values + 1
        for _ in range(BATCH)
    ]
    weights = torch.ones(BATCH, PREDICTIONS)
    weights[2, 3:] = 0.0
    input_ids = torch.randint(2, VOCAB, (BATCH, SEQ_LENGTH), generator=generator)
    segments = getattr(config, "type_vocab_size", 1)
    return {
        "input_ids": input_ids.where(attention_mask, config.pad_token_id),
        "token_type_ids": torch.randint(0, segments, (BATCH, SEQ_LENGTH), generator=generator),
        "attention_mask": attention_mask,
        "masked_positions": torch.stack(positions),
        "masked_labels": torch.randint(0, VOCAB, (BATCH, PREDICTIONS), generator=generator),
        "masked_weights": weights,
        "pair_labels": torch.tensor([0, 1, 1]),
    }


def hugging_face_losses(
    config: PretrainedConfig, weights: Weights, inputs: dict[str, torch.Tensor]
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The reference, from logits at all positions: each loss, summed, and the gradients."""
    model = family_of(config).model_class(config)(config).eval()
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    model.tie_weights()
    taken = inspect.signature(model.forward).parameters.keys()
    output = model(**{name: inputs[name] for name in inputs.keys() & taken})
    labels = torch.full((BATCH, SEQ_LENGTH), -100)
    kept = torch.where(inputs["masked_weights"] > 0, inputs["masked_labels"], -100)
    # Positions of weight 0 come last here, so they don't overwrite a real label.
    labels.scatter_(1, inputs["masked_positions"], kept)
    token_logits, *pair_logits = (
        output[name]
        for name in ("logits", "prediction_logits", "seq_relationship_logits", "sop_logits")
        if name in output
    )
    losses = [F.cross_entropy(token_logits.flatten(0, 1), labels.flatten(), reduction="sum")]
    losses += [
        F.cross_entropy(logits, inputs["pair_labels"], reduction="sum") for logits in pair_logits
    ]
    weighted(losses).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients


def weighted(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum((loss / n for loss, n in zip(losses, (13, BATCH), strict=False)), torch.zeros(()))


def stage_losses(model: StageModel, inputs: dict[str, torch.Tensor]):
    if model.prefix is None:
        return model.suffix(inputs, None, None)
    return model.suffix(inputs, model.prefix(inputs), model.prefix.decoder_weight)


def build(
    family: str,
    weights: Weights,
    frozen_layers: int,
    *,
    trained: range | None = None,
    dropout: float = 0.0,
    frozen_dropout: bool = False,
    heads: frozenset[str] | None = None,
    train_embeddings: bool | None = None,
) -> StageModel:
    return StageModel.build(
        config := small_config(family, dropout, heads),
        objective_of(config),
        trained or range(frozen_layers, DEPTH),
        weights,
        frozen_dropout=frozen_dropout,
        dtype=torch.float32,
        device=torch.device("cpu"),
        train_embeddings=train_embeddings,
    )


ALL_HEADS = [
    (name, heads) for name, family in families.FAMILIES.items() for heads in family.architectures
]


@pytest.mark.parametrize(("family", "heads"), ALL_HEADS)
@settings(max_examples=2)
@given(seed=st.integers(0, 1000))
def test_losses_and_gradients_equal_hugging_faces_at_every_cut(family, heads, seed):
    config = small_config(family, heads=heads)
    weights, inputs = fresh_weights(config, seed=seed), batch(family, seed)
    expected, gradients = hugging_face_losses(config, weights, inputs)
    assert len(expected) == len(heads)
    for frozen_layers in (cut for name, cut in CUTS if name == family):
        model = build(family, weights, frozen_layers, heads=heads)
        losses = stage_losses(model, inputs)
        torch.testing.assert_close(losses, tuple(expected), rtol=1e-6, atol=1e-6)
        weighted(losses).backward()
        for name, parameter in model.suffix.named_parameters():
            torch.testing.assert_close(
                parameter.grad, gradients[name], rtol=1e-4, atol=1e-6,
                msg=lambda m, n=name: f"{n}: {m}",
            )  # fmt: skip


def test_modernberts_loss_equals_hugging_faces_at_its_full_length():
    """Far above the lengths of the other tests: positions, window and global attention of 8,192 tokens."""
    length, predictions, depth = 8192, 300, 3
    config = ModernBertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=depth, num_attention_heads=1,
        intermediate_size=24, initializer_range=0.2, pad_token_id=0,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        architectures=["ModernBertForMaskedLM"],
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    weights = fresh_weights(config, seed=1)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(2, VOCAB, (1, length), generator=generator)
    positions = torch.randperm(length, generator=generator)[:predictions].sort().values
    labels = torch.randint(0, VOCAB, (1, predictions), generator=generator)
    inputs = {
        "input_ids": input_ids,
        "token_type_ids": torch.zeros_like(input_ids),
        "attention_mask": torch.ones(1, length, dtype=torch.bool),
        "masked_positions": positions[None],
        "masked_labels": labels,
        "masked_weights": torch.ones(1, predictions),
    }
    model = family_of(config).model_class(config)(config).eval()
    assert not model.load_state_dict(weights, strict=False).unexpected_keys
    model.tie_weights()
    with torch.no_grad():
        logits = model(input_ids, attention_mask=inputs["attention_mask"].long()).logits
        expected = F.cross_entropy(logits[0, positions], labels[0], reduction="sum")
        stage = StageModel.build(
            config, objective_of(config), range(2, depth), weights,
            frozen_dropout=False, dtype=torch.float32, device=torch.device("cpu"),
        )  # fmt: skip
        losses = stage_losses(stage, inputs)
    torch.testing.assert_close(losses, (expected,), rtol=1e-6, atol=1e-6)


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("frozen_layers", "embeddings"), [(0, False), (2, True), (DEPTH, True)])
def test_embeddings_train_or_freeze_apart_from_the_layers(family, frozen_layers, embeddings):
    """Alone below a frozen body, with the upper layers, or all but them."""
    config = small_config(family)
    weights, inputs = fresh_weights(config, seed=2), batch(family, 2)
    expected, gradients = hugging_face_losses(config, weights, inputs)
    model = build(family, weights, frozen_layers, train_embeddings=embeddings)
    losses = stage_losses(model, inputs)
    torch.testing.assert_close(losses, tuple(expected), rtol=1e-6, atol=1e-6)
    weighted(losses).backward()
    above = dict(model.suffix.named_parameters())
    kept = family_of(config)
    trained_layers = {name for name in above if name.startswith(kept.block_prefix)}
    assert bool(trained_layers) == (frozen_layers < DEPTH)
    assert (kept.word_embeddings in above) == embeddings
    assert (model.prefix is None) == embeddings
    for name, parameter in above.items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("trained", [range(2), range(2, 4)], ids=["lower", "middle"])
def test_the_gradient_passes_frozen_layers_on_top(family, trained, embeddings):
    config = small_config(family)
    weights, inputs = fresh_weights(config, seed=2), batch(family, 2)
    expected, gradients = hugging_face_losses(config, weights, inputs)
    model = build(family, weights, 0, trained=trained, train_embeddings=embeddings)
    losses = stage_losses(model, inputs)
    torch.testing.assert_close(losses, tuple(expected), rtol=1e-6, atol=1e-6)
    weighted(losses).backward()
    above = dict(model.suffix.named_parameters())
    kept = family_of(config)
    each = DEPTH // getattr(config, "num_hidden_groups", DEPTH)
    blocks = {
        int(name[len(kept.block_prefix) :].partition(".")[0])
        for name in above
        if name.startswith(kept.block_prefix)
    }
    assert blocks == {layer // each for layer in trained}
    assert (kept.word_embeddings in above) == embeddings
    for name, parameter in above.items():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6)
    for body in model.suffix._bodies:
        assert all(parameter.grad is None for parameter in body.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_a_frozen_body_is_the_recipes_choice(family):
    weights, inputs = fresh_weights(small_config(family), seed=1), batch(family)
    for frozen_dropout in (False, True):
        model = build(
            family,
            weights,
            DEPTH,
            dropout=0.5,
            frozen_dropout=frozen_dropout,
            train_embeddings=True,
        )
        for mode in (True, False):
            model.suffix.train(mode)
            (body,) = model.suffix._bodies
            assert body.training == (mode and frozen_dropout)
        first, second = stage_losses(model, inputs), stage_losses(model, inputs)
        assert torch.equal(first[0], second[0])  # in evaluation


def test_no_cut_goes_through_a_group_of_layers_that_share():
    weights = fresh_weights(small_config("albert"), seed=1)
    for frozen_layers in (1, 3):
        with pytest.raises(ValueError, match="cut a group of 2 layers"):
            build("albert", weights, frozen_layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gradient_reaches_the_prefix_or_the_decoder_matrix(family):
    model = build(family, fresh_weights(small_config(family), seed=1), 2)
    assert model.prefix is not None
    sum(stage_losses(model, batch(family))).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.prefix.parameters())
    assert not model.prefix.decoder_weight.requires_grad


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_dropout_is_the_recipes_choice(family):
    weights, inputs = fresh_weights(small_config(family), seed=1), batch(family)
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
        batch(family),
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
    inputs = batch(family)
    assert model.prefix is not None
    model.suffix.eval()
    with model.prefix.without_dropout():
        first, second = stage_losses(model, inputs), stage_losses(model, inputs)
    model.suffix.train()
    assert torch.equal(first[0], second[0])
    assert not torch.equal(stage_losses(model, inputs)[0], first[0])  # and then it's back
    assert not torch.equal(model.prefix(inputs), model.prefix(inputs))
