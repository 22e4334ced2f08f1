"""Vision transformers that drop the patches they don't need (DynamicViT, NeurIPS 2021)."""

import dynamicvit.registry  # noqa: F401 (timm finds our models by name from here on)
from dynamicvit._version import __version__
from dynamicvit.errors import InputError, UnsupportedBackboneError
from dynamicvit.macs import count_macs, keep_ratio_for, schedule_macs
from dynamicvit.model import DynamicViT, MaskedOutput, PrunedOutput
from dynamicvit.prediction import PredictionModule
from dynamicvit.released import load_released
from dynamicvit.schedule import Schedule
from dynamicvit.sparsification import sparsify
from dynamicvit.tiles import tiled_keep_ratios

__all__ = [
    "DynamicViT",
    "InputError",
    "MaskedOutput",
    "PredictionModule",
    "PrunedOutput",
    "Schedule",
    "UnsupportedBackboneError",
    "__version__",
    "count_macs",
    "keep_ratio_for",
    "load_released",
    "schedule_macs",
    "sparsify",
    "tiled_keep_ratios",
]
