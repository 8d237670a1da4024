"""Weights of record on disk: a Hugging Face folder that `from_pretrained` loads as it is.

Notable:

* The file holds the fp32 masters, one tensor per parameter. Tied parameters are stored once, under
  the name of the embeddings and of the MLM head's bias; Hugging Face ties the decoder to them
  when it loads the folder and reports no key as missing.
* The folder is written whole or not at all (`atomic.py`), so a stage boundary that exists can be
  trusted after a kill.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from mslt_ds.atomic import replace_folder
from mslt_ds.errors import CheckpointError, DataError
from mslt_ds.growth import Weights
from mslt_ds.model.family import FAMILIES

WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
"""All that `AutoTokenizer` reads of a WordPiece tokenizer. Named one by one, because a tokenizer's
folder may hold a token store or a model beside it."""


def save_weights(
    folder: Path, weights: Weights, hf_config: PretrainedConfig, tokenizer_dir: Path | None
) -> None:
    """Write `weights` as a Hugging Face folder: config.json, model.safetensors, tokenizer files.

    weights: every parameter of the model that `hf_config` describes, without tied aliases
    hf_config: of the depth that `weights` have; `architectures` names the class to load
    tokenizer_dir: a folder that `AutoTokenizer` loads; None leaves the tokenizer out
    """
    config = copy.deepcopy(hf_config)
    config.dtype = torch.float32
    # A cast or a view must not reach the disk: one contiguous fp32 tensor for each name.
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in weights.items()}
    with replace_folder(folder) as partial:
        config.save_pretrained(partial)
        save_file(tensors, partial / WEIGHTS_FILE, metadata={"format": "pt"})
        # safetensors makes its file readable by the owner alone; a run folder is often shared.
        shutil.copymode(partial / "config.json", partial / WEIGHTS_FILE)
        if tokenizer_dir is not None:
            _copy_tokenizer(tokenizer_dir, partial)


def load_weights(folder: Path) -> Weights:
    """The folder's weights: fp32 on the CPU, tied aliases left out."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such file; a folder of weights holds config.json and {WEIGHTS_FILE}"
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged ({error}); take another stage's folder") from error
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    tied = {alias: owner for family in FAMILIES.values() for alias, owner in family.TIED.items()}
    for alias, owner in tied.items():
        # Other programs store tied parameters twice. Untied ones are another model.
        tensor = weights.pop(alias, None)
        if tensor is not None and not torch.equal(tensor, weights[owner]):
            raise CheckpointError(
                f"{path}: {alias} differs from {owner}; only models with a tied decoder can be used"
            )
    return weights


def _copy_tokenizer(source: Path, target: Path) -> None:
    present = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "vocab.txt"}.intersection(present):
        raise DataError(f"{source}: no tokenizer here; expected tokenizer.json or vocab.txt")
    for name in present:
        shutil.copyfile(source / name, target / name)
    # Without a class, AutoTokenizer goes by the model: an ALBERT's would be SentencePiece's.
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "tokenizer_class" not in settings:
        settings = {"tokenizer_class": "BertTokenizer"} | settings
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
