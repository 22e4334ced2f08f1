"""Clips: videos from disk to batches of frames, as images are read."""

from dynamicvit.data.video.clip_sources import has_clips, open_clips
from dynamicvit.data.video.clip_transforms import (
    ONE_VIEW,
    ClipTransform,
    Views,
    clip_eval_transform,
    clip_train_transform,
)
from dynamicvit.data.video.clips import (
    ClipData,
    check_data,
    data_for,
    frames_of,
    open_data,
    taken_by,
)
from dynamicvit.data.video.reading import VideoFile
from dynamicvit.data.video.sampling import Sampling, Timeline

__all__ = [
    "ONE_VIEW",
    "ClipData",
    "ClipTransform",
    "Sampling",
    "Timeline",
    "VideoFile",
    "Views",
    "check_data",
    "clip_eval_transform",
    "clip_train_transform",
    "data_for",
    "frames_of",
    "has_clips",
    "open_clips",
    "open_data",
    "taken_by",
]
