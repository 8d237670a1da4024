"""Weights of record on disk: a Hugging Face folder that `from_pretrained` loads as it is.

* The file holds the fp32 masters, one tensor per parameter. Tied parameters are stored once, under
  the name of the embeddings and of the MLM head's bias; Hugging Face ties the decoder to them
  when it loads the folder and reports no key as missing.
* The folder is written whole or not at all (`atomic.py`), so a stage boundary that exists can be
  trusted after a kill.
* Its manifest has the checksums of its files, which are compared when the weights are loaded.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig

from mslt_ds.atomic import replace_folder
from mslt_ds.data.bert_tokenizer import read_settings
from mslt_ds.data.tokenizer import PROBE, TOKENIZER_FILES, main_file
from mslt_ds.disk import manifest
from mslt_ds.disk.card import CARD_FILE
from mslt_ds.disk.manifest import DamageError
from mslt_ds.disk.tensors import save_tensors
from mslt_ds.errors import CheckpointError, DataError, failures_as, first_line
from mslt_ds.hugging_face import LOAD, quiet, weight_files
from mslt_ds.model.families import family_of
from mslt_ds.state import Weights

WEIGHTS_FILE = "model.safetensors"


def save_weights(
    folder: Path, weights: Weights, hf_config: PretrainedConfig, tokenizer_dir: Path | None
) -> None:
    """Write `weights` as a Hugging Face folder: config.json, model.safetensors, tokenizer files.

    weights: every parameter of the model that `hf_config` describes, without tied aliases
    hf_config: of the depth that `weights` have; `architectures` names the class to load
    tokenizer_dir: a folder that `AutoTokenizer` loads; None leaves the tokenizer out

    Of a folder that is replaced the README.md is kept (`card.py`).
    """
    config = copy.deepcopy(hf_config)
    config.dtype = torch.float32
    # A cast or a view must not reach the disk: one contiguous fp32 tensor for each name.
    tensors = {name: tensor.detach().float() for name, tensor in weights.items()}
    with replace_folder(folder) as partial:
        config.save_pretrained(partial)
        save_tensors(tensors, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        if tokenizer_dir is not None:
            _copy_tokenizer(tokenizer_dir, partial, config)
        manifest.write(partial, [path.name for path in sorted(partial.iterdir())])
        if (folder / CARD_FILE).is_file():  # a user's, whom no checksum hinders
            shutil.copyfile(folder / CARD_FILE, partial / CARD_FILE)


def read_config(folder: Path) -> PretrainedConfig:
    """The configuration of a model that is there; CheckpointError where none is."""
    weight_files(folder)
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, **LOAD)
    except Exception as error:  # whatever is raised for a JSON that means nothing
        raise CheckpointError(
            f"{folder / 'config.json'}: can't be read ({first_line(error)})"
        ) from error


def weights_digest(weights: Weights) -> str:
    """16 hexadecimal digits of the names and bytes of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(folder: Path, hf_config: PretrainedConfig | None = None) -> Weights:
    """The folder's weights by Hugging Face's names: fp32 on the CPU, tied aliases left out.

    folder: of this program or of any other, in a form that `from_pretrained` reads
    hf_config: the model to take them for; None: the one that the folder's config.json describes

    Parameters of the model that the folder doesn't hold aren't in the result, and neither are heads
    that the model hasn't. CheckpointError if the folder holds no model, another encoder, tensors of
    other shapes, a decoder that isn't tied, or other weights than its manifest says.
    """
    _check_damage(folder)
    config = hf_config or read_config(folder)
    family = family_of(config)
    model_class: Any = family.model_class(config)
    try:
        with quiet():
            model, info = model_class.from_pretrained(
                folder, config=copy.deepcopy(config), output_loading_info=True, **LOAD,
                dtype=torch.float32, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except Exception as error:  # whatever torch, pickle and safetensors raise for damaged files
        raise CheckpointError(f"{folder}: can't be loaded ({first_line(error)})") from error
    if info["mismatched_keys"]:
        name, held, asked = min(info["mismatched_keys"])
        raise CheckpointError(
            f"{folder}: {name} has the shape {tuple(held)}, and the model's is {tuple(asked)}; "
            "config.json and the weights are of two different models"
        )
    if others := sorted(name for name in info["unexpected_keys"] if family.in_encoder(name)):
        raise CheckpointError(
            f"{folder}: it holds {others[0]}, which a model of its config.json hasn't; they are of two "
            "different models, or of a kind that isn't known here"
        )
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for alias, owner in family.tied.items():
        tensor = weights.pop(alias, None)
        if tensor is not None and not torch.equal(tensor, weights[owner]):
            raise CheckpointError(
                f"{folder}: {alias} differs from {owner}; only models with a tied decoder can be used"
            )
    return {name: tensor for name, tensor in weights.items() if name not in info["missing_keys"]}


def _check_damage(folder: Path) -> None:
    """CheckpointError if the weights aren't those that this program wrote. Others have no manifest."""
    try:
        if (folder / WEIGHTS_FILE).is_file():
            manifest.verify(folder, [WEIGHTS_FILE])
    except (DamageError, OSError) as error:
        raise CheckpointError(
            f"{folder}: damaged ({first_line(error)}); if the file was changed on purpose, remove "
            f"{manifest.MANIFEST} there"
        ) from error


def check_tokenizer(folder: Path) -> None:
    """DataError unless `folder` has the files of a tokenizer."""
    if main_file(folder) is None:
        raise DataError(f"{folder}: no tokenizer here; expected tokenizer.json or vocab.txt")


def tokenizer_difference(folder: Path, expected_dir: Path) -> str | None:
    """How the tokenizer of `folder` differs from that of `expected_dir`; None if it doesn't.

    DataError if one of them can't be loaded.
    """
    found, expected = load_tokenizer(folder), load_tokenizer(expected_dir)
    if found.get_vocab() != expected.get_vocab():
        return "its vocabulary isn't that"
    if found(PROBE)["input_ids"] != expected(PROBE)["input_ids"]:
        return "its tokenizer cuts text otherwise (casing, accents) than that"
    return None


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, by Hugging Face's Auto class. DataError if it has none."""
    from transformers import AutoTokenizer  # takes a second

    # Without files, AutoTokenizer would make a tokenizer that knows no words.
    check_tokenizer(folder)

    def failed(problem: str) -> DataError:
        return DataError(f"{folder}: its tokenizer can't be loaded ({problem})")

    with failures_as(failed), quiet():
        return AutoTokenizer.from_pretrained(folder, **LOAD)


def _copy_tokenizer(source: Path, target: Path, config: PretrainedConfig) -> None:
    """Copy a tokenizer beside a model of `config`, with settings that make it fit: its length is as many
    tokens as the model has positions for, to which `truncation=True` then truncates."""
    check_tokenizer(source)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    path = target / "tokenizer_config.json"
    try:
        settings = read_settings(path)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    # The code that it names isn't copied.
    settings.pop("auto_map", None)
    # Without a class, AutoTokenizer goes by the model: an ALBERT's would be SentencePiece's.
    is_whole = (target / "tokenizer.json").is_file()
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast" if is_whole else "BertTokenizer"
    } | settings
    has_segments = getattr(config, "type_vocab_size", 0) > 1
    settings["model_input_names"] = [
        "input_ids", *(["token_type_ids"] if has_segments else []), "attention_mask",
    ]  # fmt: skip
    # A tokenizer that doesn't know its length says 1e30, or nothing.
    length = family_of(config).longest_sequence(config.max_position_embeddings, config.pad_token_id)
    settings["model_max_length"] = min(length, settings.get("model_max_length") or length)
    path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
