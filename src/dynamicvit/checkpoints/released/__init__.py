"""The checkpoints that the paper's authors released: what they are, where they are, how to load."""

from dynamicvit.checkpoints.released.downloads import download
from dynamicvit.checkpoints.released.layouts import is_released, released_name, rename_released
from dynamicvit.checkpoints.released.load import load_released
from dynamicvit.checkpoints.released.metadata import Metadata, find_keep_ratio
from dynamicvit.checkpoints.released.nearest import known_network, likeness
from dynamicvit.checkpoints.released.recognize import CROP_PCT, Recognized, recognize
from dynamicvit.checkpoints.released.zoo import (
    RELEASES,
    Release,
    is_release,
    near_releases,
    release_of,
)

__all__ = [
    "CROP_PCT",
    "RELEASES",
    "Metadata",
    "Recognized",
    "Release",
    "download",
    "find_keep_ratio",
    "is_release",
    "is_released",
    "known_network",
    "likeness",
    "load_released",
    "near_releases",
    "recognize",
    "release_of",
    "released_name",
    "rename_released",
]
