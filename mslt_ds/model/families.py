"""The table of model families: the one place that names them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mslt_ds.model.albert import Albert
from mslt_ds.model.bert import Bert
from mslt_ds.model.family import Family
from mslt_ds.model.modernbert import ModernBert
from mslt_ds.model.roberta import Roberta

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FAMILIES: dict[str, Family] = {
    family.name: family for family in (Bert(), Albert(), Roberta(), ModernBert())
}
"""By the name that both `model.family` and Hugging Face's `model_type` have for them."""


_AUTO_CLASS = "AutoModelForPreTraining"


def auto_class(architectures: Sequence[str]) -> str:
    """The class of transformers that loads all weights of a model, by its config.json's `architectures`."""
    for family in FAMILIES.values():
        for heads, architecture in family.architectures.items():
            if architecture in architectures:
                return family.auto_classes.get(heads, _AUTO_CLASS)
    return _AUTO_CLASS


def family_of(config: PretrainedConfig) -> Family:
    """The family of a Hugging Face configuration."""
    return FAMILIES[config.model_type]
