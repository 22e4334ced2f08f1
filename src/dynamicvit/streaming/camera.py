"""Cameras, by the way each system has to them."""

from __future__ import annotations

import re
import sys

from dynamicvit.errors import InputError
from dynamicvit.streaming.video import Video

_CAMERA = re.compile(r"camera:(?P<which>.+)|(?P<device>/dev/video\d+)")


def is_camera(name: str) -> bool:
    """Whether this names a camera: ``camera:0``, or ``/dev/video0``."""
    return _CAMERA.fullmatch(name) is not None


def open_camera(name: str, fps: float | None = None) -> Video:
    """Open a camera.

    Args:
        name: ``camera:`` and its number, on Windows its name; on Linux also ``/dev/video0``.
        fps: frames per second to ask it for; by default its own.

    Raises:
        InputError: if there is none, it is busy, or does not do ``fps``.
    """
    kind, location = _device(name, sys.platform)
    options = {} if fps is None else {"framerate": f"{fps:g}"}
    return Video(name, location, live=True, kind=kind, options=options)


def _device(name: str, platform: str) -> tuple[str, str]:
    """FFmpeg's format and location of a camera."""
    found = _CAMERA.fullmatch(name)
    assert found is not None
    if found["device"] is not None:
        return "v4l2", found["device"]
    which = found["which"]
    if platform == "win32":
        return "dshow", f"video={which}"
    if not which.isdecimal():
        raise InputError(f"a camera is named by its number, camera:0 or camera:1, got {name}")
    return ("avfoundation", which) if platform == "darwin" else ("v4l2", f"/dev/video{which}")
