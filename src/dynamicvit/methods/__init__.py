"""Ways to choose tokens, to combine them, or to do without: one registry of methods.

Each is a class of module for the stages of a :class:`~dynamicvit.DynamicViT`, so that training,
evaluation and counting are the same code::

    model = dynamicvit.sparsify(backbone, 0.7, method="tome")
    model = dynamicvit.methods.at_macs("tome", backbone, fraction=0.64)
"""

# ruff: noqa: I001 (imported in the order that METHODS has)
from dynamicvit.core.registry import METHODS, method_named, register_method
from dynamicvit.methods.controls import RandomScores, StaticRanking
from dynamicvit.methods.downsampling import Downsampling
from dynamicvit.methods.class_attention import ClassAttention, EViT
from dynamicvit.methods.squeezing import TPS
from dynamicvit.methods.diffrate import DiffRate
from dynamicvit.methods.tome import TokenMerging
from dynamicvit.methods.mctf import MCTF
from dynamicvit.methods.lookahead import LookAhead
from dynamicvit.methods.run_length import RunLength
from dynamicvit.methods.tubelets import FewerFrames, PerFrame
from dynamicvit.methods.pixels import FewerPixels
from dynamicvit.methods.width import Narrow, narrow
from dynamicvit.methods.budgets import at_macs, own_schedules

__all__ = [
    "MCTF",
    "METHODS",
    "TPS",
    "ClassAttention",
    "DiffRate",
    "Downsampling",
    "EViT",
    "FewerFrames",
    "FewerPixels",
    "LookAhead",
    "Narrow",
    "PerFrame",
    "RandomScores",
    "RunLength",
    "StaticRanking",
    "TokenMerging",
    "at_macs",
    "method_named",
    "narrow",
    "own_schedules",
    "register_method",
]
