"""What the paper is compared with: other ways to choose tokens, to combine them, or to do without.

Each is a :class:`~dynamicvit.DynamicViT` with another reduction at its stages, so that training,
evaluation and counting are the same code::

    from dynamicvit.methods import build, names

    model = build("merging", backbone, macs_fraction=0.64)
"""

from dynamicvit.methods.class_attention import ClassAttention
from dynamicvit.methods.downsampling import Downsampling
from dynamicvit.methods.random import RandomScores
from dynamicvit.methods.registry import WAYS, Way, build, names, way_of, ways_of
from dynamicvit.methods.static import StaticRanking
from dynamicvit.methods.tome import TokenMerging
from dynamicvit.methods.width import narrow

__all__ = [
    "WAYS",
    "ClassAttention",
    "Downsampling",
    "RandomScores",
    "StaticRanking",
    "TokenMerging",
    "Way",
    "build",
    "names",
    "narrow",
    "way_of",
    "ways_of",
]
