"""Images from disk to batches: formats and transforms are timm's, the honesty is ours.

timm's own data set shows the next image again in place of one that can't be read; here such an
image is named, left out of every count, and never replaced.
"""

from dynamicvit.data.batches import Batch, Loader
from dynamicvit.data.classes import ClassMap, class_map_for, imagenet_class_map
from dynamicvit.data.images import ImageData, Sample, Unreadable
from dynamicvit.data.sources import UNLABELED
from dynamicvit.data.splits import split
from dynamicvit.data.transforms import eval_transform, train_transform
from dynamicvit.data.upright import read_upright

__all__ = [
    "UNLABELED",
    "Batch",
    "ClassMap",
    "ImageData",
    "Loader",
    "Sample",
    "Unreadable",
    "class_map_for",
    "eval_transform",
    "imagenet_class_map",
    "read_upright",
    "split",
    "train_transform",
]
