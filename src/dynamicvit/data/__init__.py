"""Images from disk to batches, through timm's formats and transforms.

timm's own data set repeats the next image in place of an unreadable one; here an unreadable image
is named, excluded from every count, and never replaced.
"""

from dynamicvit.data.batches import Batch, Loader, NoReadableImageError
from dynamicvit.data.class_names import (
    Prediction,
    class_names,
    read_class_names,
    set_class_names,
    top_classes,
)
from dynamicvit.data.classes import (
    ClassMap,
    OtherClassesError,
    class_map_for,
    imagenet_class_map,
)
from dynamicvit.data.decoding import read_image
from dynamicvit.data.identity import images_digest
from dynamicvit.data.images import ImageData, Sample, Unreadable, split
from dynamicvit.data.joint import joint_eval_transform, joint_train_transform
from dynamicvit.data.masks import MaskData, has_masks
from dynamicvit.data.readers import ReaderError
from dynamicvit.data.sources import UNLABELED
from dynamicvit.data.transforms import eval_transform, train_transform
from dynamicvit.data.video import (
    ONE_VIEW,
    ClipData,
    Sampling,
    Views,
    check_data,
    clip_eval_transform,
    clip_train_transform,
    data_for,
    frames_of,
    has_clips,
    open_data,
    taken_by,
)

__all__ = [
    "ONE_VIEW",
    "UNLABELED",
    "Batch",
    "ClassMap",
    "ClipData",
    "ImageData",
    "Loader",
    "MaskData",
    "NoReadableImageError",
    "OtherClassesError",
    "Prediction",
    "ReaderError",
    "Sample",
    "Sampling",
    "Unreadable",
    "Views",
    "check_data",
    "class_map_for",
    "class_names",
    "clip_eval_transform",
    "clip_train_transform",
    "data_for",
    "eval_transform",
    "frames_of",
    "has_clips",
    "has_masks",
    "imagenet_class_map",
    "images_digest",
    "joint_eval_transform",
    "joint_train_transform",
    "open_data",
    "read_class_names",
    "read_image",
    "set_class_names",
    "split",
    "taken_by",
    "top_classes",
    "train_transform",
]
