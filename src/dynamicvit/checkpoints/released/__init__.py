"""The checkpoints that the paper's authors released: what they are, where they are, how to read."""

from dynamicvit.checkpoints.released.downloads import download
from dynamicvit.checkpoints.released.layouts import (
    is_released,
    rename_released,
)
from dynamicvit.checkpoints.released.recognize import (
    CROP_PCT,
    Recognized,
    find_keep_ratio,
    read_metadata,
    recognize,
)
from dynamicvit.checkpoints.released.spatial import known_network, under_our_names
from dynamicvit.checkpoints.released.zoo import RELEASES, Release, is_release, release_of

__all__ = [
    "CROP_PCT",
    "RELEASES",
    "Recognized",
    "Release",
    "download",
    "find_keep_ratio",
    "is_release",
    "is_released",
    "known_network",
    "read_metadata",
    "recognize",
    "release_of",
    "rename_released",
    "under_our_names",
]
