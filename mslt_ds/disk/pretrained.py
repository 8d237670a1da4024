"""A run that begins with a trained model instead of a fresh one: `plan.init_from`.

Notable: the folder has to hold just the model that stage 1 has, in depth, sizes and vocabulary: an
encoder's weight that would be cut, padded or left out in silence is one that somebody misses later.
Growth to more layers is the plan's business. Heads alone may be missing (an encoder saved without them):
they begin fresh, and that is said. Heads that the recipe has no use for are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig

from mslt_ds.data.tokenizer import PROBE
from mslt_ds.disk.hugging_face import LOAD, quiet
from mslt_ds.disk.model_folder import check_tokenizer, in_encoder, load_weights, read_config
from mslt_ds.errors import CheckpointError, DataError, first_line
from mslt_ds.model import parts
from mslt_ds.state import Weights

_KEY = "plan.init_from"
_DEPTH = ("num_hidden_layers", "num_hidden_groups", "inner_group_num")
_SIZES = (
    "vocab_size", "embedding_size", "hidden_size", "num_attention_heads", "intermediate_size",
    "hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
)  # fmt: skip


def check_folder(folder: Path, hf_config: PretrainedConfig, tokenizer_dir: Path) -> None:
    """CheckpointError unless `folder` holds a model of `hf_config` and the tokenizer of `tokenizer_dir`.

    Reads the small files only, so that a wrong folder is refused before anything is built.
    """
    try:
        found = read_config(folder)
        _check_tokenizer(folder, tokenizer_dir)
    except (CheckpointError, DataError) as error:
        raise CheckpointError(f"{_KEY}: {error}") from error
    if found.model_type != hf_config.model_type:
        raise CheckpointError(
            f"{_KEY}: {folder}: its model_type is {found.model_type}, and model.family is "
            f"{hf_config.model_type}"
        )
    problems = [
        f"{_KEY}: {folder}: its {key} is {_get(found, key)}, and stage 1 of the plan has "
        f"{_get(hf_config, key)}; stage 1 has to begin with the folder's whole model"
        for key in _DEPTH
        if _get(found, key) != _get(hf_config, key)
    ]
    problems += [
        f"{_KEY}: {folder}: its {key} is {_get(found, key)}, and the recipe's {_get(hf_config, key)}; "
        f"set model.{key} to the folder's"
        for key in _SIZES
        if hasattr(hf_config, key) and _get(found, key) != _get(hf_config, key)
    ]
    if problems:
        raise CheckpointError("\n".join(problems))


def load(
    folder: Path,
    hf_config: PretrainedConfig,
    fresh: Callable[[str, tuple[int, ...]], Tensor],
) -> tuple[Weights, list[str]]:
    """The weights of `hf_config`'s model from `folder`, and the names of the heads that begin fresh.

    fresh: (name, shape) -> a fresh parameter, asked for heads that the folder doesn't hold.
    CheckpointError if it lacks more than heads.
    """
    try:
        weights = load_weights(folder, hf_config)
    except CheckpointError as error:
        raise CheckpointError(f"{_KEY}: {error}") from error
    shapes = parts.parameter_shapes(hf_config)
    missing = sorted(shapes.keys() - weights.keys())
    if lost := [name for name in missing if in_encoder(name, hf_config)]:
        raise CheckpointError(
            f"{_KEY}: {folder}: {len(lost)} weights of the encoder are missing, such as {lost[0]}; "
            "config.json and the weights are of two different models"
        )
    return weights | {name: fresh(name, shapes[name]) for name in missing}, missing


def _check_tokenizer(folder: Path, expected_dir: Path) -> None:
    found, expected = _tokenizer(folder), _tokenizer(expected_dir)
    if found.get_vocab() != expected.get_vocab():
        difference = "its vocabulary isn't that of data.path"
    elif found(PROBE)["input_ids"] != expected(PROBE)["input_ids"]:
        difference = "its tokenizer cuts text otherwise than that of data.path (casing, accents)"
    else:
        return
    raise CheckpointError(f"{folder}: {difference}; prepare the text with --tokenizer {folder}")


def _tokenizer(folder: Path) -> Any:
    # Without files, AutoTokenizer would make a tokenizer that knows no words.
    check_tokenizer(folder)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, **LOAD)
    except Exception as error:  # whatever is raised for files that mean nothing
        raise DataError(f"{folder}: its tokenizer can't be loaded ({first_line(error)})") from error


def _get(config: PretrainedConfig, key: str) -> object:
    return getattr(config, key, None)
