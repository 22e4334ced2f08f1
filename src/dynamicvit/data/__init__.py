"""Images from disk to batches: formats and transforms are timm's, the honesty is ours.

timm's own data set shows the next image again in place of one that can't be read; here such an
image is named, left out of every count, and never replaced.
"""

from dynamicvit.data.batches import Batch, Loader
from dynamicvit.data.classes import (
    ClassMap,
    Prediction,
    class_map_for,
    class_names,
    imagenet_class_map,
    top_classes,
)
from dynamicvit.data.decoding import read_image
from dynamicvit.data.images import ImageData, Sample, Unreadable, split
from dynamicvit.data.sources import UNLABELED
from dynamicvit.data.transforms import eval_transform, train_transform

__all__ = [
    "UNLABELED",
    "Batch",
    "ClassMap",
    "ImageData",
    "Loader",
    "Prediction",
    "Sample",
    "Unreadable",
    "class_map_for",
    "class_names",
    "eval_transform",
    "imagenet_class_map",
    "read_image",
    "split",
    "top_classes",
    "train_transform",
]
