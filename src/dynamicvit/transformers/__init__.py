"""Models that are Hugging Face transformers' own kind; imported only where transformers is.

Importing this makes ``AutoConfig`` and ``AutoModelForImageClassification`` know them.
"""

from dynamicvit.transformers.config import DynamicViTConfig
from dynamicvit.transformers.model import DynamicViTForImageClassification
from dynamicvit.transformers.trainer import TrainerMixin

__all__ = ["DynamicViTConfig", "DynamicViTForImageClassification", "TrainerMixin"]
