"""Growth copies bit for bit, touches nothing else, and asks for fresh numbers only for `random`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForPreTraining

from mslt_ds.model.growth import grow, grow_optimizer_state, sources

PREFIX = "bert.encoder.layer."
TIED_ALIASES = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
OPERATORS = ("copy_top", "copy_all", "interpolate", "copy_middle", "random")


def weights_of(depth: int) -> dict[str, torch.Tensor]:
    names = {"bert.embeddings.word_embeddings.weight": (7, 3), "cls.predictions.bias": (7,)}
    for layer in range(depth):
        names[f"{PREFIX}{layer}.attention.self.query.weight"] = (3, 3)
        names[f"{PREFIX}{layer}.output.LayerNorm.bias"] = (3,)
    return {name: torch.randn(shape) for name, shape in names.items()}


def shapes_of(depth: int) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights_of(depth).items()}


def marked(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A fresh tensor that tells its name."""
    return torch.full(shape, float(sum(name.encode())))


def refuse(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    raise AssertionError(f"{name} is a copy; it isn't drawn")


@pytest.mark.parametrize(
    ("operator", "depth_from", "depth_to", "expected"),
    [
        ("copy_top", 3, 6, [0, 1, 2, 0, 1, 2]),
        ("copy_top", 4, 6, [0, 1, 2, 3, 2, 3]),
        ("copy_top", 6, 9, [0, 1, 2, 3, 4, 5, 3, 4, 5]),
        ("copy_top", 2, 7, [0, 1, 0, 1, 0, 1, 0]),
        ("copy_all", 3, 6, [0, 1, 2, 0, 1, 2]),
        ("copy_all", 4, 6, [0, 1, 2, 3, 0, 1]),
        ("interpolate", 3, 6, [0, 0, 1, 1, 2, 2]),
        ("interpolate", 2, 3, [0, 0, 1]),
        ("copy_middle", 2, 4, [0, 1, 0, 1]),
        ("copy_middle", 4, 6, [0, 1, 0, 1, 2, 3]),
        ("copy_middle", 6, 8, [0, 1, 2, 3, 2, 3, 4, 5]),
        ("copy_middle", 3, 4, [0, 1, 1, 2]),
        ("random", 2, 4, [0, 1, None, None]),
        *((operator, 2, 2, [0, 1]) for operator in OPERATORS),
    ],
)
def test_sources(operator, depth_from, depth_to, expected):
    assert sources(depth_from, depth_to, operator) == expected


@given(st.sampled_from(OPERATORS), st.integers(1, 5), st.integers(0, 7), st.booleans())
def test_copies_are_new_and_bitwise_equal_and_all_else_is_untouched(operator, old, added, nan):
    weights = weights_of(old)
    if nan:  # bitwise, even where equality doesn't hold
        weights[f"{PREFIX}0.output.LayerNorm.bias"][0] = float("nan")
    before = {name: tensor.clone() for name, tensor in weights.items()}
    grown = grow(
        weights,
        old,
        old + added,
        operator,
        shapes=shapes_of(old + added),
        fresh=marked if operator == "random" else refuse,
        block_prefix=PREFIX,
    )

    def same(one: torch.Tensor, other: torch.Tensor) -> bool:
        return torch.equal(one.view(torch.int32), other.view(torch.int32))

    assert grown.keys() == weights_of(old + added).keys()
    assert weights.keys() == before.keys()
    assert all(same(weights[name], before[name]) for name in before)
    for name in grown:
        if not name.startswith(PREFIX):
            assert grown[name] is weights[name]
    for layer, source in enumerate(sources(old, old + added, operator)):
        for suffix in ("attention.self.query.weight", "output.LayerNorm.bias"):
            name = f"{PREFIX}{layer}.{suffix}"
            if source is None:
                assert torch.equal(grown[name], marked(name, tuple(grown[name].shape)))
            else:
                assert same(grown[name], before[f"{PREFIX}{source}.{suffix}"])
    # No two names share memory: training one layer must not train its copy.
    assert len({tensor.data_ptr() for tensor in grown.values()}) == len(grown)


@given(st.sampled_from(["copy_top", "random"]), st.integers(1, 6), st.integers(0, 6))
def test_operators_for_frozen_stages_leave_the_lower_layers_in_place(operator, old, added):
    assert sources(old, old + added, operator)[:old] == list(range(old))


@given(st.integers(1, 6))
def test_doubling_by_copy_top_is_stacking(depth):
    assert sources(depth, 2 * depth, "copy_top") == sources(depth, 2 * depth, "copy_all")


KINDS = st.tuples(
    st.sampled_from(OPERATORS), st.integers(1, 9), st.integers(0, 9), st.integers(1, 4)
)


def kinds_of(depth: int, period: int) -> list[str]:
    """As ModernBERT's: one of `period` layers is of another kind than the rest."""
    return ["local" if index % period else "global" for index in range(depth)]


@given(KINDS)
def test_a_copy_lands_on_a_place_of_its_kind_or_is_refused(case):
    operator, old, added, period = case
    kinds = kinds_of(old + added, period)
    try:
        found = sources(old, old + added, operator, kinds=kinds)
    except ValueError as error:
        # Said only where no list of this operator could keep the kinds.
        assert "would put a copy of layer" in str(error) and operator != "random" and added
        assert not (operator == "copy_top" and set(kinds) == set(kinds[:old]))
        assert not (operator == "copy_all" and old % period == 0)
        return
    assert len(found) == old + added
    for index, source in enumerate(found):
        assert source is None or kinds[source] == kinds[index]
    if operator in ("copy_top", "random"):
        assert found[:old] == list(range(old))
    if period == 1:
        assert found == sources(old, old + added, operator)


@given(KINDS, st.integers(0, 9), st.sets(st.sampled_from("abc"), max_size=2))
def test_what_a_target_has_and_its_source_lacks_begins_fresh(case, special, absent):
    """One layer lacks some parameters that all others have, as ModernBERT's first; a copy that
    lands there leaves them out."""
    operator, old, added, period = case

    def shapes_at(depth: int) -> dict[str, tuple[int, ...]]:
        names = [(i, s) for i in range(depth) for s in "abcd" if i != special or s not in absent]
        return {f"{PREFIX}{i}.{s}": (2,) for i, s in names} | {"head": ()}

    weights = {name: torch.randn(shape) for name, shape in shapes_at(old).items()}
    state = {name: {"of": name} for name in weights}
    drawn: dict[str, tuple[int, ...]] = {}

    def fresh(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        drawn[name] = shape
        return torch.zeros(shape)

    kinds = kinds_of(old + added, period)
    try:
        plan = sources(old, old + added, operator, kinds=kinds)
    except ValueError:
        return
    target = shapes_at(old + added)
    where = {"shapes": target, "block_prefix": PREFIX, "kinds": kinds}
    grown = grow(weights, old, old + added, operator, fresh=fresh, **where)
    assert grown.keys() == target.keys()
    for index, source in enumerate(plan):
        for suffix in "abcd":
            name = f"{PREFIX}{index}.{suffix}"
            if name not in target:
                continue
            held = source is not None and (source != special or suffix not in absent)
            assert (name in drawn) != held
            if held:
                assert torch.equal(grown[name], weights[f"{PREFIX}{source}.{suffix}"])
    assert all(drawn[name] == target[name] for name in drawn)
    carried = grow_optimizer_state(state, old, old + added, operator, copy=True, **where)
    assert carried.keys() == grown.keys() - drawn.keys()


@pytest.mark.parametrize(
    ("depth_from", "depth_to", "expected"),
    [
        (11, 22, [2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 3]),  # ModernBERT-base
        (4, 5, [1]),
        (2, 4, [1, 0]),  # less than a period: by kind alone
        (2, 6, [1, 0, 1, 1]),
    ],
)
def test_copy_top_takes_whole_periods_where_there_are(depth_from, depth_to, expected):
    found = sources(depth_from, depth_to, "copy_top", kinds=kinds_of(depth_to, 3))
    assert found == [*range(depth_from), *expected]


def test_refused():
    weights = weights_of(3)
    with pytest.raises(ValueError, match="3 layers can't grow to 2"):
        grow(weights, 3, 2, "copy_top", shapes=shapes_of(2), fresh=refuse, block_prefix=PREFIX)
    with pytest.raises(ValueError, match="unknown growth operator"):
        grow(weights, 3, 4, "copy_bottom", shapes=shapes_of(4), fresh=refuse, block_prefix=PREFIX)
    with pytest.raises(ValueError, match="isn't a name of a model of 2 layers"):
        grow(weights, 2, 4, "copy_top", shapes=shapes_of(4), fresh=refuse, block_prefix=PREFIX)
    with pytest.raises(ValueError, match="layer 3 lacks"):
        grow(weights, 4, 5, "copy_top", shapes=shapes_of(5), fresh=refuse, block_prefix=PREFIX)


@pytest.mark.parametrize("operator", OPERATORS[:-1])
def test_hugging_face_loads_it_and_the_decoder_stays_tied(operator):
    def model_of(depth: int) -> BertForPreTraining:
        return BertForPreTraining(
            BertConfig(
                vocab_size=30,
                hidden_size=8,
                num_hidden_layers=depth,
                num_attention_heads=2,
                intermediate_size=16,
                max_position_embeddings=8,
            )
        )

    weights = {name: tensor.detach() for name, tensor in model_of(2).named_parameters()}
    assert not set(TIED_ALIASES) & weights.keys()
    deep = model_of(4)
    shapes = {name: tuple(parameter.shape) for name, parameter in deep.named_parameters()}
    grown = grow(weights, 2, 4, operator, shapes=shapes, fresh=refuse, block_prefix=PREFIX)
    missing, unexpected = deep.load_state_dict(grown, strict=False)
    assert not unexpected and set(missing) <= set(TIED_ALIASES)
    decoder = deep.cls.predictions.decoder
    assert decoder.weight is deep.bert.embeddings.word_embeddings.weight
    assert torch.equal(decoder.weight, weights["bert.embeddings.word_embeddings.weight"])
    if operator == "copy_top":
        top = deep.bert.encoder.layer[3].state_dict()
        for name, tensor in deep.bert.encoder.layer[1].state_dict().items():
            assert torch.equal(top[name], tensor)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("operator", OPERATORS)
def test_optimizer_state_goes_where_its_layer_goes(operator, copy):
    """Each entry says which layer it's of, so a layer with another's moments can't go unseen."""
    state = {f"bert.encoder.layer.{i}.w": {"step": i} for i in range(4)} | {"cls.w": {"step": 9}}
    shapes = {f"bert.encoder.layer.{i}.w": () for i in range(6)}
    grown = grow_optimizer_state(
        state, 4, 6, operator, copy=copy, shapes=shapes, block_prefix=PREFIX
    )
    assert grown["cls.w"] is state["cls.w"]
    for index, source in enumerate(sources(4, 6, operator)):
        entry = grown.get(f"bert.encoder.layer.{index}.w")
        if source is not None and (copy or source == index):
            assert entry == {"step": source}
        else:
            assert entry is None
