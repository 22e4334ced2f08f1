"""The families of Hugging Face transformers; imported when the first model of it comes."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import PretrainedConfig, PreTrainedModel

from dynamicvit.backbones import backbone_for, register_backbone
from dynamicvit.backbones.hf_base import HFBackbone, describe
from dynamicvit.backbones.hf_dinov2 import HFDinov2Backbone
from dynamicvit.backbones.hf_eomt import HFEomtBackbone
from dynamicvit.backbones.hf_siglip import HFSiglipBackbone
from dynamicvit.backbones.hf_videomae import HFVideoMAEBackbone
from dynamicvit.backbones.hf_vit import HFDeiTBackbone, HFViTBackbone
from dynamicvit.backbones.hf_vivit import HFVivitBackbone
from dynamicvit.backbones.hf_vjepa2 import HFVJEPA2Backbone
from dynamicvit.errors import InputError

__all__ = ["classifier_from", "describe", "rebuild"]

_FAMILIES: tuple[type[HFBackbone], ...] = (
    HFViTBackbone,
    HFDeiTBackbone,
    HFDinov2Backbone,
    HFSiglipBackbone,
    HFEomtBackbone,
    HFVideoMAEBackbone,
    HFVivitBackbone,
    HFVJEPA2Backbone,
)

for _family in _FAMILIES:
    register_backbone(_family)


def classifier_from(config: PretrainedConfig) -> PreTrainedModel:
    """A dense classifier of a supported family, with fresh weights.

    transformers' own way asks ``config.architectures`` which of two DeiT classifiers it is, and
    there may be none.

    Raises:
        InputError: for a config of another model.
    """
    classes = [kind for family in _FAMILIES for kind in family.model_classes]
    for kind in classes:
        if kind.config_class is type(config):
            return kind._from_config(config)
    known = ", ".join(kind.config_class.model_type for kind in classes)
    raise InputError(f"model_type {config.model_type!r} is not supported; one of {known} is")


def rebuild(description: dict[str, Any]) -> PreTrainedModel:
    """The model that :func:`describe` described, with fresh weights."""
    config = dict(description["backbone_config"])
    kind = config.pop("model_type")
    built: Any = transformers.AutoConfig.for_model(kind, **config)
    has_classifier = built.num_labels > 0
    built.num_labels = max(1, built.num_labels)  # SigLIP's class wants one until it is built
    model: Any = classifier_from(built)
    if not has_classifier:
        backbone_for(model).reset_classifier(0, None)
    model.image_processing = dict(description["image_processing"])
    return model
