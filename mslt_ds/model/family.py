"""What the program needs of a model family: `Family`, which the files of the families fill in.

A family is one object. Nothing else in the program knows a family by name, except the table in
families.py. docs/families.md shows how to add one.

The first half of the class describes the family and imports no torch: `mslt-ds plan` and the
checks of a recipe use it. The second half builds Hugging Face's modules and runs them; torch and
transformers are imported inside these methods. Modules stand under the attribute path that they
have in Hugging Face's pretraining model, so a parameter's name here is its name in a checkpoint.

Terms: a *block* is a set of layer parameters, one for each layer or, in ALBERT, one for each group
of layers. Growth copies blocks. Layers and blocks count from the bottom, from 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig, PreTrainedModel

    from mslt_ds.model.rows import Positions, Rows

Heads = frozenset[str]
"""Heads that an objective reads: `masked_lm`, `pair` (two classes for a pair of segments)."""


class ModelSection(Protocol):
    """The `model` section of a recipe, as far as families read it (`config.sections.ModelConfig`)."""

    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def layers_per_block(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def embedding_size(self) -> int | None: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def type_vocab_size(self) -> int: ...
    @property
    def global_attn_every_n_layers(self) -> int | None: ...
    @property
    def local_attention(self) -> int | None: ...
    def model_dump(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Normal:
    """Fresh values drawn from N(0, std); `zero_row` of them, the padding token's, is 0. With `cutoff`,
    only those up to so many standard deviations are drawn."""

    std: float
    zero_row: int | None = None
    cutoff: float | None = None


class Family(ABC):
    """A model family. One instance stands for it; it has no state."""

    # ---- what it is called -------------------------------------------------------------------

    name: str
    """The recipe's `model.family`, and Hugging Face's `model_type`."""
    base: str
    """The attribute of Hugging Face's pretraining model that holds the encoder."""
    architectures: ClassVar[Mapping[Heads, str]]
    """Heads -> Hugging Face's class that has exactly these. The first one has the most."""
    auto_classes: ClassVar[Mapping[Heads, str]] = {
        frozenset({"masked_lm", "pair"}): "AutoModelForPreTraining",
        frozenset({"masked_lm"}): "AutoModelForMaskedLM",
    }
    """Heads -> the class of transformers that finds and loads these architectures by a name alone."""
    word_embeddings: str
    """The parameter that the decoder over the vocabulary is tied to."""
    tied: ClassVar[Mapping[str, str]]
    """Second names under which Hugging Face's model shows tied parameters -> their own names."""
    block_prefix: str
    """What the names of a block's parameters begin with; its number and a dot follow."""
    block_label = "layer"
    """What a block is called in metrics, with its number: `layer_3`."""

    # ---- what it reads of a recipe -----------------------------------------------------------

    defaults: ClassVar[Mapping[str, Any]] = {}
    """Keys of the `model` section -> values that this family gives them where the recipe gives
    none. A key whose default is null in `ModelConfig` is read by the families that name it here."""
    unread: frozenset[str] = frozenset()
    """Keys of every family that this one doesn't read."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Key of the `model` section -> its attribute in Hugging Face's configuration, where they differ."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Attributes of Hugging Face's configuration that no key decides -> their values."""
    sizes: tuple[str, ...] = (
        "vocab_size", "embedding_size", "hidden_size", "num_attention_heads", "intermediate_size",
        "hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
    )  # fmt: skip
    """Keys that two models must agree in for one to take the other's weights, beside the depth."""
    token_ids: ClassVar[Mapping[str, str]] = {"pad_token_id": "pad"}
    """Attributes of Hugging Face's configuration that hold a token's id -> the token's role in the
    tokenizer: `pad`, `cls`, `sep` or `mask`."""
    depth_attributes: tuple[str, ...] = ("num_hidden_layers",)
    """Attributes of Hugging Face's configuration that say which layers there are."""
    block_key = "num_hidden_layers"
    """The key that says how many blocks the final model has."""

    def kinds(self, model: ModelSection, blocks: int) -> list[str]:
        """The kind of each of the lower `blocks`, such as global attention in every third. A copy
        takes the place of a block of its kind."""
        return [self.block_label] * blocks

    position_table: str | None = None
    """The parameter whose rows are the positions, which train with the embeddings; None: they are computed."""

    def first_position(self, pad_token_id: int) -> int:
        """The position of a sequence's first token."""
        return 0

    def longest_sequence(self, positions: int, pad_token_id: int) -> int:
        """Tokens of the longest sequence for which `positions` (max_position_embeddings) are enough."""
        return positions - self.first_position(pad_token_id)

    # ---- parameter counts --------------------------------------------------------------------

    @abstractmethod
    def embedding_parameters(self, model: ModelSection, vocab_size: int) -> int:
        """Elements of what lies below the layers; the decoder's tied matrix is among them."""

    @abstractmethod
    def block_parameters(self, model: ModelSection, block: int) -> int:
        """Elements of block number `block`."""

    @abstractmethod
    def head_parameters(self, model: ModelSection, vocab_size: int, heads: Heads) -> int:
        """Elements of what lies above the layers, which trains in every stage: final norm, heads."""

    # ---- arithmetic, see plan/flops.py ----------------------------------------------------------

    norm_before_attention = False
    """Whether queries, keys and values of a layer take in what a norm of that layer gives; the lowest one's
    take in the embeddings."""
    top_layer_at_positions = False
    """Whether `run_layer_at` computes only keys and values everywhere."""

    def attended(self, model: ModelSection, block: int, seq_length: int) -> int:
        """Tokens that each token of a block's layers attends to."""
        return seq_length

    # ---- initial values and names ------------------------------------------------------------

    matrices: frozenset[str]
    """Modules, by the last part of their name, whose weight is drawn from N(0, initializer_range)."""
    norms: frozenset[str] = frozenset()
    """Modules, by the last part of their name, whose weight begins as 1."""
    bias_owners: frozenset[str] = frozenset()
    """Modules, by the last part of their name, that have a bias and are neither of the two."""

    def initial(self, name: str, final: PretrainedConfig) -> float | Normal:
        """What a fresh parameter holds: one value throughout, or draws. ValueError if it's unknown.

        final: the configuration of the final model, so that a rule may depend on its depth and
            all depths still begin with the same numbers
        """
        owner, _, kind = name.rpartition(".")
        module = owner.rpartition(".")[2]
        if kind == "weight" and module in self.norms:
            return 1.0
        if kind == "weight" and module in self.matrices:
            padding = final.pad_token_id if name == self.word_embeddings else None
            return Normal(final.initializer_range, zero_row=padding)
        if kind == "bias" and module in self.norms | self.matrices | self.bias_owners:
            return 0.0
        raise ValueError(
            f"{name}: model family {self.name} has no initial value for this parameter; name its "
            "module in `norms`, `matrices` or `bias_owners` of the family, or override `initial`"
        )

    def part_of(self, name: str) -> str:
        """The part of the model that a parameter is counted with in metrics: `layer_3`, `cls`."""
        if name.startswith(self.block_prefix):
            return f"{self.block_label}_{name[len(self.block_prefix) :].partition('.')[0]}"
        first, _, rest = name.partition(".")
        return rest.partition(".")[0] if first == self.base else first

    def in_encoder(self, name: str) -> bool:
        """Whether a parameter belongs to what every model of the family has: no pooler, no head."""
        # An encoder that was saved alone has names without the first part.
        inside = name.startswith((f"{self.base}.", self.block_prefix.partition(".")[2]))
        return inside and ".pooler." not in name

    # ---- Hugging Face's configuration and model ----------------------------------------------

    def attribute(self, key: str) -> str:
        """The attribute of Hugging Face's configuration that holds a key of the `model` section."""
        return self.renamed.get(key, key)

    def hf_config(
        self,
        model: ModelSection,
        depth: int,
        vocab_size: int,
        heads: Heads,
        special: Mapping[str, int] | None = None,
    ) -> Any:
        """Hugging Face's configuration of a model with a recipe's sizes.

        depth: layers, in whole blocks of the final model
        heads: one of the keys of `architectures`
        special: role -> id of the tokenizer's special tokens; None: those of the family's own
            tokenizer
        """
        import transformers

        sizes = {self.block_key: depth // model.layers_per_block}
        sizes |= {"num_hidden_layers": depth, "vocab_size": vocab_size}
        settings = {
            self.attribute(key): value
            for key, value in (model.model_dump() | sizes).items()
            if value is not None and key not in {"family", *self.unread}
        }
        if special is not None:
            settings |= {name: special[role] for name, role in self.token_ids.items()}
        architecture = self.architectures[heads]
        config_class = getattr(transformers, architecture).config_class
        config = config_class(**settings, **self.fixed, architectures=[architecture])
        config._attn_implementation = "sdpa"
        return config

    def heads_of(self, config: PretrainedConfig) -> Heads:
        """The heads of a configuration's model; the most there are if `architectures` doesn't say."""
        for heads, architecture in self.architectures.items():
            if architecture in (config.architectures or ()):
                return heads
        return next(iter(self.architectures))

    def model_class(self, config: PretrainedConfig) -> type[PreTrainedModel]:
        """Hugging Face's class of a configuration's pretraining model."""
        import transformers

        return getattr(transformers, self.architectures[self.heads_of(config)])

    def parameter_shapes(self, config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter of the configuration's model, tied aliases left out."""
        import torch

        with torch.device("meta"):
            model = self.model_class(config)(config)
        return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    # ---- modules, put into a tree with uninitialised weights -----------------------------------

    @abstractmethod
    def add_encoder(self, root: nn.Module, config: Any, layers: range, *, embeddings: bool) -> None:
        """Put the encoder's `layers`, and the embeddings if asked for, into `root`.

        ValueError if `layers` begin or end inside of a block.
        """

    @abstractmethod
    def add_heads(self, root: nn.Module, config: Any) -> None:
        """Put what lies above the layers into `root`: the final norm, and the heads of
        `heads_of(config)` without the decoder's tied matrix."""

    @abstractmethod
    def layers_of(self, root: nn.Module, config: Any) -> list[nn.Module]:
        """The layers that `root` holds, from the bottom up; a shared one as often as it runs."""

    # ---- the forward pass --------------------------------------------------------------------

    # Padding may be left out: hidden states are (1, tokens, hidden), the tokens of all instances one
    # after the other, or (batch, seq_length, hidden). `Rows` knows which, and does what mixes tokens.

    def context(self, root: nn.Module, config: Any, rows: Rows) -> Any:
        """What the layers of one micro-batch share: `rows`, and for example rotary tables.

        It is computed once below the cut and once above it, and handed to `embed` and each layer.
        """
        return rows

    @abstractmethod
    def embed(self, root: nn.Module, tokens: dict[str, Tensor], context: Any) -> Tensor:
        """-> hidden_states.

        tokens: `input_ids`, `token_type_ids`, int64 as hidden states have them: (1, tokens) or (batch,
            seq_length); `position_ids`, (1, tokens) or (1, seq_length), which count from 0 in each row
        """

    @abstractmethod
    def run_layer(self, layer: Any, hidden_states: Tensor, context: Any, index: int) -> Tensor:
        """hidden_states through layer number `index` -> the same shape.

        Hugging Face's layers take the `Rows` as their argument `attention_mask`: the attention that
        they are configured with here is `rows.hugging_face_attention`.
        """

    def run_layer_at(
        self, layer: Any, hidden_states: Tensor, context: Any, index: int, positions: Positions
    ) -> Tensor:
        """The layer's output at `positions` alone -> as `positions.gather` has it.

        A family may override this with a pass that computes nothing else.
        """
        return positions.gather(self.run_layer(layer, hidden_states, context, index))

    def final_norm(self, root: nn.Module, hidden_states: Tensor) -> Tensor:
        """The norm above the top layer, where there is one. Any shape that ends in hidden."""
        return hidden_states

    @abstractmethod
    def token_logits(
        self, root: nn.Module, hidden_states: Tensor, decoder_weight: Tensor
    ) -> Tensor:
        """The head over the vocabulary. (..., hidden) -> (..., vocab).

        decoder_weight: the word embeddings
        """

    def pair_logits(self, root: nn.Module, cls_states: Tensor) -> Tensor:
        """The head for pairs. cls_states: (batch, 1, hidden), the top layer at [CLS] -> (batch, 2).

        Only families whose `architectures` have the head `pair` are asked.
        """
        raise NotImplementedError
