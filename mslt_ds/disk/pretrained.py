"""A run that begins with a trained model instead of a fresh one: `plan.init_from`.

It names a local folder or a model of the Hugging Face Hub, which has to be exactly the model of stage 1,
with its depth, sizes and, without `plan.new_vocabulary`, its vocabulary. No weight of the encoder is cut,
padded or left out; the plan grows the model to more layers. Heads that the folder lacks, as an encoder does
that was saved without them, begin fresh, and a message names them. Heads that the recipe doesn't use are
left out.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from transformers import PretrainedConfig

from mslt_ds import hub
from mslt_ds.data import tokenizer
from mslt_ds.data.tokenizer import TOKENIZER_FILES
from mslt_ds.disk.model_folder import load_weights, read_config, tokenizer_difference
from mslt_ds.disk.new_vocabulary import old_rows, take
from mslt_ds.errors import CheckpointError, DataError
from mslt_ds.model.families import family_of
from mslt_ds.state import Weights

_KEY = "plan.init_from"
_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")


def find(given: str) -> Path:
    """The folder that `given` names: a local one or, where there is none, a copy of `owner/name` or
    `owner/name@revision` of the hub, in its cache. Only what a model is loaded from is fetched.

    CheckpointError if the hub has no such model, EnvironmentProblem if it can't be asked.
    """
    folder = hub.fetch(
        given, _KEY, ["config.json", *_WEIGHTS, *TOKENIZER_FILES], missing=CheckpointError
    )
    if folder != Path(given) and not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{_KEY}: {given}: it holds no model.safetensors; load it with transformers, save it with "
            "save_pretrained, and name the folder"
        )
    return folder


def check_folder(
    folder: Path,
    hf_config: PretrainedConfig,
    tokenizer_dir: Path,
    *,
    new_vocabulary: bool = False,
) -> None:
    """CheckpointError unless `folder` holds a model of `hf_config` and the tokenizer of `tokenizer_dir` or, with
    `new_vocabulary`, any.

    Reads the small files only, so that a wrong folder is refused before anything is built.
    """
    try:
        found = read_config(folder)
        difference = tokenizer_difference(folder, tokenizer_dir)
    except (CheckpointError, DataError) as error:
        raise CheckpointError(f"{_KEY}: {error}") from error
    if difference and not new_vocabulary:
        raise CheckpointError(
            f"{_KEY}: {folder}: {difference} of data.path; prepare the text with --tokenizer {folder}, or "
            "give plan.new_vocabulary"
        )
    if found.model_type != hf_config.model_type:
        raise CheckpointError(
            f"{_KEY}: {folder}: its model_type is {found.model_type}, and model.family is "
            f"{hf_config.model_type}"
        )
    family = family_of(hf_config)
    problems = [
        f"{_KEY}: {folder}: its {key} is {_get(found, key)}, and stage 1 of the plan has "
        f"{_get(hf_config, key)}; stage 1 has to begin with the folder's whole model"
        for key in family.depth_attributes
        if _get(found, key) != _get(hf_config, key)
    ]
    problems += [
        f"{_KEY}: {folder}: its {name} is {_get(found, name)}, and the recipe's {_get(hf_config, name)}; "
        f"set model.{key} to the folder's"
        for key in family.sizes
        if not (new_vocabulary and key == "vocab_size")
        and hasattr(hf_config, name := family.attribute(key))
        and _get(found, name) != _get(hf_config, name)
    ]
    if problems:
        raise CheckpointError("\n".join(problems))


def load(
    folder: Path,
    hf_config: PretrainedConfig,
    fresh: Callable[[str, tuple[int, ...]], Tensor],
    new_vocabulary: Path | None = None,
) -> tuple[Weights, list[str]]:
    """The weights of `hf_config`'s model from `folder`, and the names of the heads that begin fresh.

    fresh: (name, shape) -> a fresh parameter, asked for heads that the folder doesn't hold.
    new_vocabulary: the folder of the tokenizer that the model gets; None: it has that of `folder`
    CheckpointError if it lacks more than heads.
    """
    family = family_of(hf_config)
    shapes = family.parameter_shapes(hf_config)
    try:
        if new_vocabulary is None:
            weights = load_weights(folder, hf_config)
        else:
            weights = _load_other_vocabulary(folder, hf_config, new_vocabulary)
    except (CheckpointError, DataError) as error:
        raise CheckpointError(f"{_KEY}: {error}") from error
    missing = sorted(shapes.keys() - weights.keys())
    if lost := [name for name in missing if family.in_encoder(name)]:
        raise CheckpointError(
            f"{_KEY}: {folder}: {len(lost)} weights of the encoder are missing, such as {lost[0]}; "
            "config.json and the weights are of two different models"
        )
    return weights | {name: fresh(name, shapes[name]) for name in missing}, missing


def _load_other_vocabulary(folder: Path, hf_config: PretrainedConfig, place: Path) -> Weights:
    """The weights of the folder's model with the vocabulary of the tokenizer at `place`."""
    family, found = family_of(hf_config), read_config(folder)
    own = copy.deepcopy(hf_config)
    own.vocab_size, own.pad_token_id = found.vocab_size, found.pad_token_id
    weights = load_weights(folder, own)
    old, new = tokenizer.load(folder), tokenizer.load(place)
    rows = old_rows(old, new)
    counts = Counter(min(len(row), 2) for row in rows)
    print(
        f"plan.new_vocabulary: of {len(rows):,} tokens, {counts[1]:,} begin with the vector of one token of "
        f"{folder}, {counts[2]:,} with the mean of several, {counts[0]:,} with the mean of all",
        flush=True,
    )
    one_more = copy.deepcopy(own)
    one_more.vocab_size += 1
    shapes = family.parameter_shapes(one_more)
    of_tokens = {
        name for name, shape in family.parameter_shapes(own).items() if shapes[name] != shape
    }
    size = hf_config.vocab_size
    weights |= {name: take(weights[name], rows, size) for name in of_tokens & weights.keys()}
    first, before = (family.first_position(c.pad_token_id or 0) for c in (hf_config, found))
    if (table := family.position_table) in weights:
        weights[table] = weights[table].roll(first - before, 0)
    return weights


def _get(config: PretrainedConfig, key: str) -> object:
    return getattr(config, key, None)
