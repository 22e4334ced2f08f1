"""The families of Hugging Face transformers; imported when the first model of it comes."""

from __future__ import annotations

from transformers import PretrainedConfig, PreTrainedModel

from dynamicvit.backbones import register_adapter
from dynamicvit.backbones.hf_common import HFAdapter
from dynamicvit.backbones.hf_dinov2 import HFDinov2Adapter
from dynamicvit.backbones.hf_siglip import HFSiglipAdapter
from dynamicvit.backbones.hf_vit import HFViTAdapter
from dynamicvit.errors import InputError

_FAMILIES: tuple[HFAdapter, ...] = (HFViTAdapter(), HFDinov2Adapter(), HFSiglipAdapter())

for _adapter in _FAMILIES:
    register_adapter(_adapter)


def classifier_from(config: PretrainedConfig) -> PreTrainedModel:
    """A dense classifier of a supported family, with fresh weights.

    transformers' own way asks ``config.architectures`` which of two DeiT classifiers it is, and
    there may be none.

    Raises:
        InputError: for a config of another model.
    """
    classes = [kind for adapter in _FAMILIES for kind in adapter.model_classes]
    for kind in classes:
        if kind.config_class is type(config):
            return kind._from_config(config)
    known = ", ".join(kind.config_class.model_type for kind in classes)
    raise InputError(f"model_type {config.model_type!r} is not supported; one of {known} is")
