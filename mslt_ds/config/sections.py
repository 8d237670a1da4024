"""The keys of a recipe, their types and defaults: one frozen class for each section.

Types are strict: no value is converted silently, except that a whole number may be written as
`2e5`. An unknown key is an error. An empty section means its defaults. Relative paths are relative
to the current directory, and `~` is the home folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticKnownError

from mslt_ds import paths
from mslt_ds.config import strict_yaml
from mslt_ds.model.families import FAMILIES
from mslt_ds.model.family import Family
from mslt_ds.model.objective import OBJECTIVES, Objective

_DEFAULT_FAMILY = "bert"


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _family(value: str) -> str:
    if value not in FAMILIES:
        raise PydanticKnownError("literal_error", {"expected": " or ".join(FAMILIES)})
    return value


def _named_family(model: Any) -> Family | None:
    """The family that a `model` section names, before its keys are checked; None if there is none."""
    name = model.get("family", _DEFAULT_FAMILY) if isinstance(model, Mapping) else _DEFAULT_FAMILY
    return FAMILIES.get(name) if isinstance(name, str) else None


def _input_format(value: str) -> str:
    if value not in OBJECTIVES:
        raise PydanticKnownError("literal_error", {"expected": " or ".join(OBJECTIVES)})
    return value


# What fits 64 bits, as torch and numpy need it.
Whole = Annotated[int, BeforeValidator(_whole), Field(lt=2**63)]
Positive = Annotated[Whole, Field(ge=1)]
NotNegative = Annotated[Whole, Field(ge=0)]
# Numbers of what is made so many times, or has so much memory.
Size = Annotated[Positive, Field(le=2**24)]
Count = Annotated[Positive, Field(le=10_000)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(paths.expand)]
Operator = Literal["copy_top", "copy_all", "interpolate", "copy_middle", "random"]


class Section(BaseModel):
    """A part of the recipe. `null` (an empty section in YAML) means its defaults."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: Any) -> Any:
        return {} if value is None else value


Value = TypeVar("Value")


class Ramp(Section, Generic[Value]):
    """A value that changes linearly from the first stage to the last."""

    first: Value
    last: Value


def _list_or_ramp(value: Any) -> str | None:
    if isinstance(value, list):
        return "list"
    return "ramp" if isinstance(value, Mapping | Ramp) else None


# Without a discriminator, pydantic reports a mistake once for each member of the union.
_BY_STAGE = Discriminator(
    _list_or_ramp, custom_error_type="by_stage", custom_error_message="neither a list nor a ramp"
)
BatchSizes = Annotated[
    Annotated[list[Positive], Tag("list")] | Annotated[Ramp[Positive], Tag("ramp")], _BY_STAGE
]
Shares = Annotated[
    Annotated[list[Share], Tag("list")] | Annotated[Ramp[Share], Tag("ramp")], _BY_STAGE
]
PositiveOrAuto = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(lambda value: "auto" if value == "auto" else "number"),
]


class ModelConfig(Section):
    """The final model, in the names of Hugging Face's BertConfig, AlbertConfig and ModernBertConfig.

    A key whose default is null, `vocab_size` aside, belongs to the families that have a default for
    it (`Family.defaults`).
    """

    family: Annotated[str, AfterValidator(_family)] = _DEFAULT_FAMILY
    vocab_size: Size | None = None  # None: the tokenizer of the token store decides
    num_hidden_layers: Count = 12
    hidden_size: Size = 768
    num_attention_heads: Count = 12
    intermediate_size: Size = 3072
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    hidden_dropout_prob: Probability = 0.1
    attention_probs_dropout_prob: Probability = 0.1
    max_position_embeddings: Size = 512
    type_vocab_size: Annotated[Size, Field(ge=2)] = 2
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    layer_norm_eps: Annotated[float, Field(gt=0)] = 1e-12
    embedding_size: Size | None = None  # of the word embeddings, where not hidden_size
    num_hidden_groups: Positive | None = None  # groups of layers that share their parameters
    global_attn_every_n_layers: Positive | None = None  # the others attend locally
    local_attention: Annotated[Whole, Field(ge=2)] | None = None  # tokens of the local window
    global_rope_theta: Annotated[float, Field(gt=0)] | None = None  # base of the rotary positions
    local_rope_theta: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _family_defaults(cls, value: Any) -> Any:
        family = _named_family(value)
        if family is None or not isinstance(value, Mapping):
            return value
        filled = dict(value)
        for key, default in family.defaults.items():
            if filled.get(key) is None:
                filled[key] = default
        return filled

    @property
    def num_blocks(self) -> int:
        """Sets of layer parameters: one for each layer or, in ALBERT, for each group of layers."""
        return getattr(self, FAMILIES[self.family].block_key)

    @property
    def layers_per_block(self) -> int:
        """Consecutive layers that share one set of parameters."""
        return self.num_hidden_layers // self.num_blocks


class StageConfig(Section):
    """One stage of `plan.method: custom`."""

    depth: Positive
    steps: Positive
    trainable_layers: NotNegative | None = None  # beside those that plan.freeze freezes; None: all
    train_embeddings: bool | None = None  # None: where the lowest layer trains
    seq_length: Annotated[Size, Field(ge=8)] | None = None  # None: data.seq_length
    init: Operator | None = None  # None: plan.init
    learning_rate_factor: Annotated[float, Field(gt=0)] = 1.0
    warmup_steps: NotNegative = 0  # its own, on top of the schedule's
    micro_batch_size: Positive | None = None  # None: train.micro_batch_size
    global_batch_size: Positive | None = None  # None: train.global_batch_size
    masked_lm_prob: Share | None = None  # None: data.masked_lm_prob


class LongSequenceConfig(Section):
    """The last `share` of all steps at a longer sequence length."""

    share: Share
    seq_length: Annotated[Size, Field(ge=8)] = 512
    micro_batch_size: Positive | None = None  # None: train.micro_batch_size
    global_batch_size: Positive | None = (
        None  # None: that of the stages that it is the last part of
    )


class NewVocabularyConfig(Section):
    """The tokenizer of data.path in the model of `plan.init_from`, which has another."""

    # Of a first stage in which embeddings and heads alone train; 0: no such stage.
    steps: NotNegative


class PlanConfig(Section):
    """Which layers train when; plan/methods.py makes the stages.

    The number of steps is `total_steps`, or num_stages x steps_per_stage + the joint steps, for
    every method, so that `--set plan.method=full` makes the twin that spends the same steps.
    """

    method: Literal["mslt", "stacking", "full", "custom"]
    num_stages: Positive | None = None
    steps_per_stage: Positive | None = None
    total_steps: Positive | None = None
    joint_steps: NotNegative | None = None  # neither of the two: no joint stage
    joint_share: Probability | None = None  # of all steps
    # Of the steps, for each stage of stacking (None: 12.5, 17.5 and 70 %), or of the steps before
    # the joint stage, for each of mslt (None: equal). A full twin doesn't read it.
    stage_shares: list[Share] | None = None
    init: Operator | None = None  # None: copy_top; with stacking copy_all
    # A Hugging Face folder or model of the hub that stage 1 begins with; None: fresh weights.
    init_from: PathText | None = None
    new_vocabulary: NewVocabularyConfig | None = None  # None: init_from has data.path's tokenizer
    # Which layers are frozen: with mslt, of those that exist when new ones are trained; with custom, those
    # beside a stage's trainable_layers.
    freeze: Literal["bottom", "top", "none"] = "bottom"
    freeze_embeddings: bool = False  # in every stage; those of init_from
    stages: list[StageConfig] | None = None  # custom only
    # By stage, for every method but custom. None: train.global_batch_size, data.masked_lm_prob.
    global_batch_size: BatchSizes | None = None
    masked_lm_prob: Shares | None = None
    long_sequence: LongSequenceConfig | None = None


class DataConfig(Section):
    """The token store and how instances are made from it."""

    path: PathText
    eval_path: PathText | None = None
    seq_length: Annotated[Size, Field(ge=8)] = 128
    input_format: Annotated[str, AfterValidator(_input_format)] = "nsp"
    masking: Literal["token", "whole_word", "ngram", "span"] = "token"
    num_workers: Annotated[NotNegative, Field(le=1000)] = (
        1  # threads that make batches ahead, on each rank
    )
    masked_lm_prob: Share = 0.15  # of training where the plan has no other, and of evaluation
    max_predictions_per_seq: Positive | None = None  # at seq_length; None: 20 of 128
    short_seq_prob: Annotated[float, Field(ge=0, le=1)] = 0.1  # nsp and sop only

    @property
    def objective(self) -> Objective:
        """What the model learns from instances of this format."""
        return OBJECTIVES[self.input_format]


class TrainConfig(Section):
    """Batch, precision, device."""

    global_batch_size: Positive  # instances per step where the plan has no other
    micro_batch_size: Positive  # instances per rank and micro-step
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0  # of the global norm; 0: none
    frozen_dropout: Literal["off", "on"] = "off"
    # Whether padding is left out of all that is done for each token, and how many different counts
    # of tokens a micro-batch may have: multiples of 1/unpadded_sizes of its places.
    unpadded: Literal["off", "on"] = "on"
    unpadded_sizes: Positive = 64
    # Compiled by torch.compile, frozen and trained layers apart; auto: on a GPU.
    compile: Literal["off", "on", "auto"] = "off"
    # The frozen layers: instances of one pass (None: micro_batch_size; auto: as many as take no more
    # memory than the trained layers do of one micro-batch), whether they run one pass ahead (auto: on
    # a GPU, and with several ranks), whether as CUDA graphs, and their precision (None: precision).
    prefix_micro_batch_size: PositiveOrAuto | None = None
    prefix_ahead: Literal["off", "on", "auto"] = "auto"
    prefix_graph: Literal["off", "on"] = "off"
    prefix_precision: Literal["fp32", "bf16", "fp16"] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Without a sign of life of a rank, or a step of all, before the others end; six times as long
    # where an index is made, code is compiled or files are written.
    hang_timeout_seconds: Seconds = 300.0
    profile_steps: NotNegative = 0  # steps of each stage that torch's profiler records; 0: none
    # Skipped steps in a row (loss or gradient not finite) before the run goes back to its last
    # checkpoint and passes over their batches, and how often it may.
    max_skipped_steps: Count = 5
    max_rollbacks: NotNegative = 3
    # Standard deviations of loss or gradient norm above their mean over the last spike_window
    # steps at which the run goes back; None: never.
    spike_sigmas: Annotated[float, Field(gt=0)] | None = None
    spike_window: Annotated[Count, Field(ge=20)] = 100

    @property
    def frozen_precision(self) -> str:
        """Of the frozen layers."""
        return self.prefix_precision or self.precision


class LambConfig(Section):
    """What only LAMB has: the fields of optim.lamb_reference.LambOptions, which explains them."""

    backend: Literal["auto", "triton", "numba", "torch", "deepspeed", "apex"] = "auto"
    bias_correction: bool = True
    decay: Literal["update", "gradient"] = "update"
    adapt: Literal["decayed", "all"] = "decayed"
    min_trust_ratio: Annotated[float, Field(ge=0)] = 0.0
    max_trust_ratio: Annotated[float, Field(ge=0, allow_inf_nan=True)] = math.inf
    gradient_normalization: Literal["none", "clip", "unit"] = "none"
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class OptimizerConfig(Section):
    """`learning_rate` is the peak; the schedule multiplies it."""

    name: Literal["lamb", "adamw"] = "lamb"
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    # A YAML list becomes the tuple, so this one field isn't strict about its container.
    betas: Annotated[tuple[Probability, Probability], Field(strict=False)] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    # Moments at a stage boundary: kept by what goes on training, also copied with a layer to its
    # copies, or dropped.
    state: Literal["carry", "copy", "reset"] = "carry"
    lamb: LambConfig = LambConfig()


class ScheduleConfig(Section):
    """The learning rate over the run; plan/schedule.py has the formulas."""

    name: Literal["linear", "polynomial", "constant", "wsd"] = "linear"
    warmup_steps: NotNegative = 0
    power: Annotated[float, Field(gt=0)] = 1.0  # polynomial only
    end_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    decay_steps: Positive | None = None  # wsd only
    restart: bool = False  # warm up and decay anew inside each stage


class CheckpointConfig(Section):
    every_steps: Positive = 1000
    keep: Positive = 2  # the newest
    keep_every: Positive | None = (
        None  # steps: beside them, those of its multiples; None: no others
    )
    # Seconds without a file that could be written, after which the run ends.
    give_up_after: Seconds = 7200.0


class DeepSpeedConfig(Section):
    config: PathText | None = None  # path of a DeepSpeed JSON; None: the built-in ZeRO-0 one


class EvaluationConfig(Section):
    instances: Positive = 1024


def _wandb_project(name: str) -> str:
    if set(name) & set("/\\#?%:"):
        raise ValueError(
            "wandb takes none of / \\ # ? % : in a project's name; the team goes into the environment "
            "variable WANDB_ENTITY"
        )
    return name


class WandbConfig(Section):
    enabled: bool = False
    mode: Literal["offline", "online"] = "offline"
    project: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_wandb_project)] = (
        "mslt-ds"
    )


class TelemetryConfig(Section):
    log_every_steps: Positive = 10
    wandb: WandbConfig = WandbConfig()
    tensorboard: bool = False


class RunConfig(Section):
    """All keys of a recipe. `recipe.loading` makes it and checks it across sections."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    output_dir: PathText = "runs"
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 42
    model: ModelConfig = ModelConfig()
    plan: PlanConfig
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @model_validator(mode="before")
    @classmethod
    def _input_format_of_family(cls, value: Any) -> Any:
        """`data.input_format` where the recipe gives none: the first one that the family has heads for."""
        if not isinstance(value, Mapping) or not isinstance(data := value.get("data"), Mapping):
            return value
        family = _named_family(value.get("model"))
        if family is None or data.get("input_format") is not None:
            return value
        first = next(name for name, o in OBJECTIVES.items() if o.heads in family.architectures)
        return {**value, "data": {**data, "input_format": first}}

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name

    def max_predictions(self, seq_length: int, masked_lm_prob: float | None = None) -> int:
        """The most masked positions of an instance of `seq_length` tokens.

        BERT allows 20 of 128, where 15 % are 19.2; other lengths and probabilities have
        proportionally many, and so has a given `data.max_predictions_per_seq`.

        masked_lm_prob: of the stage; None: data.masked_lm_prob
        """
        data = self.data
        prob = data.masked_lm_prob if masked_lm_prob is None else masked_lm_prob
        if data.max_predictions_per_seq is None:
            exact = seq_length * prob * (20 / 19.2)
        else:
            at_data_prob = data.max_predictions_per_seq * seq_length / data.seq_length
            exact = at_data_prob * (prob / data.masked_lm_prob)
        return min(seq_length, math.ceil(round(exact, 6)))

    def to_yaml(self) -> str:
        """The resolved recipe: every key, defaults included; `load_recipe` reads it back."""
        return strict_yaml.dump(self.model_dump(mode="json"))
