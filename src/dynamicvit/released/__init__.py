"""The checkpoints that the paper's authors released: what they are, where they are, how to load."""

from dynamicvit.released.downloads import download
from dynamicvit.released.layouts import is_released, released_name, rename_released
from dynamicvit.released.load import load_released
from dynamicvit.released.metadata import Metadata, find_keep_ratio
from dynamicvit.released.nearest import known_network, likeness
from dynamicvit.released.recognise import CROP_PCT, Recognised, recognise
from dynamicvit.released.zoo import RELEASES, Release, is_release, near_releases, release_of

__all__ = [
    "CROP_PCT",
    "RELEASES",
    "Metadata",
    "Recognised",
    "Release",
    "download",
    "find_keep_ratio",
    "is_release",
    "is_released",
    "known_network",
    "likeness",
    "load_released",
    "near_releases",
    "recognise",
    "release_of",
    "released_name",
    "rename_released",
]
