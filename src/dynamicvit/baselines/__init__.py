"""What the paper is compared with: other ways to choose tokens, to combine them, or to do without.

Each is a :class:`~dynamicvit.DynamicViT` with another reduction at its stages, so that training,
evaluation and counting are the same code::

    from dynamicvit.baselines import build, names

    model = build("merging", backbone, macs_fraction=0.64)
"""

from dynamicvit.baselines.class_attention import ClassAttention
from dynamicvit.baselines.downsampling import Downsampling
from dynamicvit.baselines.merging import Merging
from dynamicvit.baselines.random import RandomScores
from dynamicvit.baselines.static import StaticRanking
from dynamicvit.baselines.ways import WAYS, Way, build, names, way_of, ways_of
from dynamicvit.baselines.width import narrow

__all__ = [
    "WAYS",
    "ClassAttention",
    "Downsampling",
    "Merging",
    "RandomScores",
    "StaticRanking",
    "Way",
    "build",
    "names",
    "narrow",
    "way_of",
    "ways_of",
]
