"""A family that the program doesn't have is added here, in this file alone, and trains.

It is ModernBERT: pre-norm with a final norm, rotary positions, global attention in every second
layer and local attention in the others, and a first layer without `attn_norm`. It is compared with
Hugging Face's own model, and goes through recipe, plan, costs, growth and the stage model.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM
from transformers.models.modernbert import modeling_modernbert as modules

from mslt_ds.data.unpadding import places_to_run
from mslt_ds.errors import RecipeError
from mslt_ds.model import parts
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.family import Family, Heads, ModelSection, Normal
from mslt_ds.model.growth import grow, grow_optimizer_state
from mslt_ds.model.initial import fresh_parameter, fresh_weights
from mslt_ds.model.rows import Rows
from mslt_ds.model.staged import StageModel
from mslt_ds.plan import cost
from mslt_ds.recipe.loading import Recipe, parse_recipe

PERIOD, VOCAB, BATCH, SEQ_LENGTH, PREDICTIONS = 2, 83, 3, 24, 5


class ModernBert(Family):
    name = "modernbert"
    base = "model"
    architectures: ClassVar = {frozenset({"masked_lm"}): "ModernBertForMaskedLM"}
    word_embeddings = "model.embeddings.tok_embeddings.weight"
    tied: ClassVar = {"decoder.weight": word_embeddings}
    blocks = "model.layers."
    unread = frozenset({"type_vocab_size"})
    renamed: ClassVar = {
        "hidden_act": "hidden_activation",
        "layer_norm_eps": "norm_eps",
        "hidden_dropout_prob": "mlp_dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    }
    fixed: ClassVar = {
        "pad_token_id": 0, "global_attn_every_n_layers": PERIOD, "local_attention": 8,
    }  # fmt: skip
    depth_attributes = ("num_hidden_layers", "layer_types")

    def period(self, model: ModelSection) -> int:
        return PERIOD

    def embedding_parameters(self, model: ModelSection, vocab_size: int) -> int:
        return (vocab_size + 1) * model.hidden_size  # no norm has a bias

    def block_parameters(self, model: ModelSection, block: int) -> int:
        hidden = model.hidden_size
        norms = (1 if block == 0 else 2) * hidden
        return 4 * hidden * hidden + 3 * hidden * model.intermediate_size + norms

    def head_parameters(self, model: ModelSection, vocab_size: int, heads: Heads) -> int:
        hidden = model.hidden_size
        return hidden + (hidden * hidden + hidden) + vocab_size  # final norm, head, decoder.bias

    norms = frozenset({"norm", "attn_norm", "mlp_norm", "final_norm"})
    matrices = frozenset({"tok_embeddings", "Wqkv", "Wi", "Wo", "dense"})
    bias_owners = frozenset({"decoder"})

    def initial(self, name: str, final: Any) -> float | Normal:
        if name.endswith((".Wo.weight", ".dense.weight")):
            return Normal(final.initializer_range / math.sqrt(2.0 * final.num_hidden_layers))
        return super().initial(name, final)

    def add_encoder(self, root: nn.Module, config: Any, layers: range, *, embeddings: bool) -> None:
        if embeddings:
            parts.place(root, "model.embeddings", lambda: modules.ModernBertEmbeddings(config))
        parts.place(
            root,
            "model.layers",
            lambda: nn.ModuleDict(
                {str(i): modules.ModernBertEncoderLayer(config, layer_idx=i) for i in layers}
            ),
        )

    def add_heads(self, root: nn.Module, config: Any) -> None:
        def decoder() -> nn.Module:
            made = nn.Linear(config.hidden_size, config.vocab_size)
            del made.weight  # tied
            return made

        norm = {"eps": config.norm_eps, "bias": config.norm_bias}
        parts.place(root, "model.final_norm", lambda: nn.LayerNorm(config.hidden_size, **norm))
        parts.place(root, "head", lambda: modules.ModernBertPredictionHead(config))
        parts.place(root, "decoder", decoder)

    def layers_of(self, root: nn.Module, config: Any) -> list[nn.Module]:
        return list(root.get_submodule("model.layers").values())  # type: ignore[operator]

    def context(self, root: nn.Module, config: Any, rows: Rows) -> Any:
        """Kind of layer -> (rows, (cos, sin))."""
        rotary = modules.ModernBertRotaryEmbedding(config, device=rows.position_ids.device)
        states = next(root.parameters())  # for its type
        return {
            kind: (seen, rotary(states, rows.position_ids, kind))
            for kind, seen in (
                ("full_attention", rows), ("sliding_attention", rows.within(config.sliding_window))
            )
        }  # fmt: skip

    def embed(self, root: nn.Module, tokens: dict[str, Tensor], context: Any) -> Tensor:
        return root.get_submodule("model.embeddings")(tokens["input_ids"])

    def run_layer(self, layer: Any, hidden_states: Tensor, context: Any, index: int) -> Tensor:
        rows, tables = context["sliding_attention" if index % PERIOD else "full_attention"]
        return layer(hidden_states, attention_mask=rows, position_embeddings=tables)

    def final_norm(self, root: nn.Module, hidden_states: Tensor) -> Tensor:
        return root.get_submodule("model.final_norm")(hidden_states)

    def token_logits(
        self, root: nn.Module, hidden_states: Tensor, decoder_weight: Tensor
    ) -> Tensor:
        bias = root.get_parameter("decoder.bias")
        return F.linear(root.get_submodule("head")(hidden_states), decoder_weight, bias)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, ModernBert.name, ModernBert())


def recipe_of(**changes: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "third",
            "model": {
                "family": "modernbert", "num_hidden_layers": 6, "hidden_size": 32,
                "num_attention_heads": 4, "intermediate_size": 48, "layer_norm_eps": 1e-5,
                "max_position_embeddings": 64, "initializer_range": 0.2,
                "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
            },
            "plan": {"method": "mslt", "num_stages": 3, "steps_per_stage": 4, "joint_steps": 4},
            "data": {"path": "store", "seq_length": SEQ_LENGTH, "input_format": "full_sentences"},
            "train": {"global_batch_size": 4, "micro_batch_size": 4},
            "optimizer": {"learning_rate": 1e-3},
        }
        | changes
    )  # fmt: skip


def config_of(recipe: Recipe, depth: int) -> ModernBertConfig:
    model, heads = recipe.config.model, recipe.config.data.objective.heads
    return FAMILIES["modernbert"].hf_config(model, depth, VOCAB, heads)


def batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    attention_mask = torch.ones(BATCH, SEQ_LENGTH, dtype=torch.bool)
    attention_mask[1, 15:] = False
    positions = torch.rand(BATCH, 13, generator=generator).argsort(dim=1)[:, :PREDICTIONS] + 1
    return {
        "input_ids": torch.randint(1, VOCAB, (BATCH, SEQ_LENGTH), generator=generator),
        "token_type_ids": torch.zeros(BATCH, SEQ_LENGTH, dtype=torch.long),
        "attention_mask": attention_mask,
        "masked_positions": positions,
        "masked_labels": torch.randint(0, VOCAB, (BATCH, PREDICTIONS), generator=generator),
        "masked_weights": torch.ones(BATCH, PREDICTIONS),
    }


def build(recipe: Recipe, depth: int, frozen_layers: int, weights: dict[str, Tensor]) -> StageModel:
    return StageModel.build(
        config_of(recipe, depth),
        recipe.config.data.objective,
        frozen_layers,
        weights,
        frozen_dropout=False,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def loss_of(model: StageModel, inputs: dict[str, Tensor]) -> Tensor:
    if model.prefix is None:
        (loss,) = model.suffix(inputs, None, None)
    else:
        (loss,) = model.suffix(inputs, model.prefix(inputs), model.prefix.decoder_weight)
    return loss


@pytest.mark.parametrize("frozen_layers", [0, 1, 2, 3])
def test_losses_and_gradients_are_hugging_faces_at_every_cut(frozen_layers: int):
    recipe, inputs = recipe_of(), batch()
    weights = fresh_weights(config_of(recipe, 4), seed=1)
    reference = ModernBertForMaskedLM(config_of(recipe, 4)).eval()
    assert not reference.load_state_dict(weights, strict=False).unexpected_keys
    reference.tie_weights()
    logits = reference(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    chosen = logits[torch.arange(BATCH)[:, None], inputs["masked_positions"]]
    expected = F.cross_entropy(
        chosen.flatten(0, 1), inputs["masked_labels"].flatten(), reduction="sum"
    )
    expected.backward()
    gradients = {name: p.grad for name, p in reference.named_parameters()}
    model = build(recipe, 4, frozen_layers, weights)
    loss = loss_of(model, inputs)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    for name, parameter in model.suffix.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen_layers", [0, 2])
def test_without_padding_the_loss_is_the_same(frozen_layers: int):
    recipe, inputs = recipe_of(), batch()
    weights = fresh_weights(config_of(recipe, 4), seed=1)
    model = build(recipe, 4, frozen_layers, weights)
    unpadded = inputs | places_to_run(inputs, 64)
    assert "token_places" in unpadded
    torch.testing.assert_close(loss_of(model, unpadded), loss_of(model, inputs))


def test_costs_are_those_of_the_modules():
    recipe = recipe_of()
    assert [stage.depth for stage in recipe.plan.stages] == [2, 4, 6, 6]
    for stage in recipe.plan.stages:
        weights = fresh_weights(config_of(recipe, stage.depth), seed=1)
        model = build(recipe, stage.depth, stage.frozen_layers, weights)
        trainable = sum(p.numel() for p in model.suffix.parameters())
        assert cost.trainable_parameters(recipe.config, stage, VOCAB) == trainable
        whole = sum(tensor.numel() for tensor in weights.values())
        assert cost.total_parameters(recipe.config, stage, VOCAB) == whole


def test_initial_values_depend_on_the_final_depth():
    recipe = recipe_of()
    final = config_of(recipe, 6)
    shallow = fresh_weights(config_of(recipe, 2), seed=1, final=final)
    deep = fresh_weights(final, seed=1)
    assert all(torch.equal(tensor, deep[name]) for name, tensor in shallow.items())
    for name, std in (("Wqkv", 0.2), ("Wo", 0.2 / math.sqrt(12))):
        assert abs(float(deep[f"model.layers.1.attn.{name}.weight"].std()) / std - 1) < 0.1


def test_a_run_of_stages_grows_and_learns():
    """Each stage trains its suffix on one batch; what lies below stays as it was."""
    recipe, inputs = recipe_of(), batch()
    family, final = FAMILIES["modernbert"], config_of(recipe, 6)
    weights = fresh_weights(config_of(recipe, 2), seed=1, final=final)
    state: dict[str, Any] = {}
    drawn: list[str] = []

    def fresh(name: str, shape: tuple[int, ...]) -> Tensor:
        drawn.append(name)
        return fresh_parameter(name, shape, seed=1, final=final)

    depth = 2
    for stage in recipe.plan.stages:
        if stage.init == "copy_top":
            arguments: dict[str, Any] = {
                "shapes": family.parameter_shapes(config_of(recipe, stage.depth)),
                "layer_prefix": family.blocks,
                "period": family.period(recipe.config.model),
            }
            state = grow_optimizer_state(
                state, depth, stage.depth, "copy_top", copy=True, **arguments
            )
            weights = grow(weights, depth, stage.depth, "copy_top", fresh=fresh, **arguments)
        depth = stage.depth
        assert state.keys() <= weights.keys()
        model = build(recipe, depth, stage.frozen_layers, weights)
        optimizer = torch.optim.AdamW(model.suffix.parameters(), lr=3e-3)
        losses = []
        for _ in range(stage.steps):
            loss = loss_of(model, inputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        after = {name: p.detach().clone() for name, p in model.suffix.named_parameters()}
        below = {name for name in weights if name not in after}
        assert {family.part_of(name) for name in below} == (
            {f"layer_{i}" for i in range(stage.frozen_layers)} | {"embeddings"} if below else set()
        )
        assert not any(torch.equal(tensor, weights[name]) for name, tensor in after.items())
        weights |= after
        state |= {name: {"step": stage.end_step} for name in after}
    # Layer 2 is a copy of layer 0, which has no attn_norm: that alone began fresh.
    assert drawn == ["model.layers.2.attn_norm.weight"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"path": "store", "input_format": "nsp"}},
            "data.input_format: nsp, but model.family modernbert has no head for it; choose "
            "full_sentences or doc_sentences",
        ),
        (
            {"model": {"family": "modernbert", "type_vocab_size": 3}, "data": None},
            "model.type_vocab_size: 3, but only model.family bert or albert reads it, not modernbert",
        ),
        (
            {"model": {"family": "modernbert", "num_hidden_groups": 2}, "data": None},
            "model.num_hidden_groups: 2, but only model.family albert reads it, not modernbert",
        ),
        (
            {
                "plan": {
                    "method": "custom",
                    "init": "copy_all",
                    "stages": [{"depth": 3, "steps": 4}, {"depth": 6, "steps": 4}],
                }
            },
            "plan.init: stage 2: copy_all from 3 to 6 layers would put a copy of layer 0 at place 3",
        ),
    ],
)
def test_a_recipe_that_the_family_cant_serve_is_refused(changes: dict[str, Any], message: str):
    if "data" in changes and changes["data"] is None:
        changes = changes | {"data": {"path": "store", "input_format": "full_sentences"}}
    with pytest.raises(RecipeError) as error:
        recipe_of(**changes)
    assert message in str(error.value)
