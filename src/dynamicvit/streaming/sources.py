"""One name for every kind of source."""

from __future__ import annotations

from pathlib import Path

from dynamicvit.errors import InputError
from dynamicvit.streaming.camera import is_camera, open_camera
from dynamicvit.streaming.folder import Folder
from dynamicvit.streaming.frames import Source
from dynamicvit.streaming.video import Video


def open_source(name: str, fps: float | None = None) -> Source:
    """Open what a user names.

    Args:
        name: a video file, a folder of images, or a camera (``camera:0``, ``/dev/video0``).
        fps: frames per second to ask a camera for; by default its own.

    Raises:
        InputError: if it can't be opened, or holds nothing to see.
    """
    if is_camera(name):
        return open_camera(name, fps)
    path = Path(name)
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise InputError(
            f"{name}: no such file; a video, a folder of images, or a camera as camera:0"
        )
    return Video(name, str(path))
