"""Vision transformers that drop the patches they don't need (DynamicViT, NeurIPS 2021)."""

import dynamicvit.checkpoints.timm_names  # noqa: F401 (timm finds our models by name from here on)
from dynamicvit._version import __version__
from dynamicvit.budgets import keep_ratio_for, tiled_keep_ratios
from dynamicvit.checkpoints.dense import load_dense
from dynamicvit.checkpoints.loading import load
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.outputs import MaskedOutput, PrunedOutput
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Schedule
from dynamicvit.costs import count_macs, schedule_macs
from dynamicvit.errors import InputError, UnsupportedBackboneError
from dynamicvit.sparsification import sparsify

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
    "load",
    "load_dense",
    "schedule_macs",
    "sparsify",
    "tiled_keep_ratios",
]
