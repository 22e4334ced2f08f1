"""Models that are Hugging Face transformers' own kind; imported only where transformers is.

Importing this makes ``AutoConfig`` and ``AutoModelForImageClassification``,
``AutoModelForVideoClassification``,
``AutoModelForSemanticSegmentation``, ``AutoModelForUniversalSegmentation`` know them.
"""

from dynamicvit.backbones import Backbone
from dynamicvit.transformers.base import DynamicViTPreTrainedModel
from dynamicvit.transformers.config import DynamicViTConfig
from dynamicvit.transformers.model import DynamicViTForImageClassification
from dynamicvit.transformers.semantic import DynamicViTForSemanticSegmentation
from dynamicvit.transformers.trainer import TrainerMixin
from dynamicvit.transformers.universal import DynamicViTForUniversalSegmentation
from dynamicvit.transformers.video import DynamicViTForVideoClassification

__all__ = [
    "DynamicViTConfig",
    "DynamicViTForImageClassification",
    "DynamicViTForSemanticSegmentation",
    "DynamicViTForUniversalSegmentation",
    "DynamicViTForVideoClassification",
    "DynamicViTPreTrainedModel",
    "TrainerMixin",
    "model_class_for",
]


def model_class_for(bound: Backbone) -> type[DynamicViTPreTrainedModel]:
    """The class of the model of transformers around a backbone, by what it takes and gives."""
    if bound.reads_map:
        return DynamicViTForUniversalSegmentation
    images = bound.frames is None
    return DynamicViTForImageClassification if images else DynamicViTForVideoClassification
