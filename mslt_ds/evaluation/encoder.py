"""The pretrained encoder of an evaluation: a Hugging Face folder, checked before any training.

A head that the folder lacks (a classifier, a pooler) is initialized from the cell's seed, and the
command says so. Any other missing or unexpected weight means that config.json and the weights belong
to different models. Hugging Face would initialize such weights at random and go on; here they are an
error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel

from mslt_ds.data.tokenizer import TOKENIZER_FILES, spell_out
from mslt_ds.errors import CheckpointError, RecipeError, failures_as, first_line
from mslt_ds.hugging_face import LOAD, quiet, weight_files

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Encoder:
    """A model folder whose configuration and tokenizer are loaded, and whose weights aren't.

    digest: of the files of the weights, the configuration and the tokenizer
    """

    path: Path
    config: PretrainedConfig
    tokenizer: Any
    digest: str

    @classmethod
    def open(cls, path: Path) -> Encoder:
        """Read configuration and tokenizer. CheckpointError if the folder holds no usable model."""
        try:
            files = weight_files(path)
        except CheckpointError as error:
            raise CheckpointError(f"--model: {error}") from error

        def failed(problem: str) -> CheckpointError:
            return CheckpointError(
                f"--model: {path}: {problem}; the folder needs a configuration and a "
                "tokenizer that Hugging Face's Auto classes know"
            )

        with failures_as(failed), quiet():
            config = AutoConfig.from_pretrained(path, **LOAD)
            tokenizer = AutoTokenizer.from_pretrained(path, split_special_tokens=True, **LOAD)
        if not tokenizer.is_fast:
            raise CheckpointError(
                f"--model: {path}: its tokenizer has no fast form; save the folder with tokenizer.json"
            )
        # As in pretraining: `[SEP]` written in a text is text.
        spell_out(tokenizer.backend_tokenizer)
        rows, tokens = getattr(config, "vocab_size", len(tokenizer)), len(tokenizer)
        if tokens > rows:
            raise CheckpointError(
                f"--model: {path}: the tokenizer has {tokens:,} tokens and the model {rows:,} "
                "embeddings; they belong to different models"
            )
        return cls(path, config, tokenizer, _digest(path, files))

    def build(self, auto_class: Any, seed: int, **config: Any) -> tuple[PreTrainedModel, list[str]]:
        """The model in fp32, and the names of its newly initialized parameters.

        auto_class: one of transformers' AutoModelFor...
        seed: what newly initialized parameters depend on
        config: further settings of the configuration, such as num_labels

        CheckpointError if the folder can't be loaded or lacks weights of the encoder.
        """
        torch.manual_seed(seed)
        try:
            with quiet():
                model, info = auto_class.from_pretrained(
                    self.path, output_loading_info=True, **LOAD,
                    dtype=torch.float32, ignore_mismatched_sizes=True, **config,
                )  # fmt: skip
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"--model: {self.path}: {first_line(error)}; it can't be loaded as "
                f"{auto_class.__name__}"
            ) from error
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        prefix = model.base_model_prefix
        self._check_complete(model, prefix, missing, unexpected)
        others = [
            f"{name} ({' x '.join(map(str, held))}, not {' x '.join(map(str, asked))})"
            for name, held, asked in sorted(info["mismatched_keys"])
        ]
        if others:
            raise CheckpointError(
                f"--model: {self.path}: weights of another shape: {_some(others)}. If this is the "
                "head of another task, save the encoder without it; otherwise config.json belongs to "
                "another model"
            )
        return model, missing

    def _check_complete(
        self, model: PreTrainedModel, prefix: str, missing: list[str], unexpected: list[str]
    ) -> None:
        inside = [
            name for name in missing if name.startswith(f"{prefix}.") and not _in_pooler(name)
        ]
        layers = self.config.num_hidden_layers if hasattr(self.config, "num_hidden_layers") else "?"
        # Layers that share parameters are counted by a second key.
        counts = [key for key in self.config.to_dict() if key.startswith("num_hidden_")]
        keys = " and ".join(sorted(counts, reverse=True)) or "num_hidden_layers"
        if inside:
            raise CheckpointError(
                f"--model: {self.path}: {len(inside)} weights of the encoder are missing, such as "
                f"{_some(inside)}; config.json says {layers} layers: set {keys} to what "
                "the folder holds, or use a complete folder"
            )
        left_over = [name for name in unexpected if any(part in name for part in _layers(model))]
        if left_over:
            raise CheckpointError(
                f"--model: {self.path}: config.json says {layers} layers, and the folder holds more, "
                f"such as {_some(left_over)}; set {keys} to what it holds"
            )


def check_max_length(model: nn.Module, encoder: Encoder, asked: int) -> None:
    """RecipeError unless the model has positions for `asked` tokens."""
    limit = position_limit(model)
    if limit is not None and asked > limit:
        raise RecipeError(
            f"max_length: {asked}, but {encoder.path} is made for {limit} positions; "
            f"--set max_length={limit} cuts longer texts there"
        )


def fresh_note(fresh: Sequence[str]) -> str:
    """A note for the user on the newly initialized parameters."""
    if not fresh:
        return "nothing is newly initialized: the folder has a head of its own, from which every run starts"
    return f"are newly initialized, drawn by each run's seed: {', '.join(fresh)}"


def position_limit(model: nn.Module) -> int | None:
    """The longest input in tokens that the model has positions for; None if nothing limits them.

    RoBERTa reserves the first rows of its table up to the padding index, which reduces the limit.
    Rotary positions could be computed beyond those that the model was trained for, without an error.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            padding = module.padding_idx
            return module.num_embeddings - (0 if padding is None else padding + 1)
        if name.endswith("rotary_emb"):
            return model.config.max_position_embeddings  # type: ignore[union-attr]
    return None


def _layers(model: nn.Module) -> set[str]:
    """What stands in the name of a parameter of a layer, such as `.layer.`, in this model."""
    return {
        f".{name.rpartition('.')[2]}."
        for name, module in model.base_model.named_modules()  # type: ignore[operator]
        if isinstance(module, nn.ModuleList)
    }


def _in_pooler(name: str) -> bool:
    return "pooler" in name.split(".")


def _digest(path: Path, weights: list[Path]) -> str:
    state = hashlib.blake2b(digest_size=16)
    others = [path / name for name in ("config.json", *TOKENIZER_FILES)]
    for file in [*weights, *(other for other in others if other.is_file())]:
        state.update(file.name.encode())
        with file.open("rb") as content:
            state.update(hashlib.file_digest(content, "blake2b").digest())
    return state.hexdigest()


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN])
