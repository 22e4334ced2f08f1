"""The checkpoints that the paper's authors released: what they are, where they are, how to load."""

from dynamicvit.released.downloads import download
from dynamicvit.released.layouts import is_released, rename_released
from dynamicvit.released.load import load_released
from dynamicvit.released.recognise import Recognised, architecture_like, recognise
from dynamicvit.released.zoo import RELEASES, Release, is_release, release_of

__all__ = [
    "RELEASES",
    "Recognised",
    "Release",
    "architecture_like",
    "download",
    "is_release",
    "is_released",
    "load_released",
    "recognise",
    "release_of",
    "rename_released",
]
