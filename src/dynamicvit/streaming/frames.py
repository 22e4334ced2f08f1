"""Where frames come from: a video file, a camera, or a folder of images."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from dynamicvit.data.decoding import image_files, one_line, read_image
from dynamicvit.errors import InputError
from dynamicvit.utils.optional import need

#: A file that ends by more than this many seconds before its own duration has been cut off.
_SLACK = 1.0

_CAMERA = re.compile(r"camera:(?P<which>.+)|(?P<device>/dev/video\d+)")


@dataclass(frozen=True)
class Frame:
    """One picture of a stream.

    Attributes:
        index: its number, from 0; those that are dropped later count too.
        time: seconds after the first frame; ``None`` if the source knows no times.
        read: gives the picture, upright and in RGB; raises ``InputError`` if it is broken. It is
            not called for a frame that comes too late, which so costs little.
        name: of its file, if it has one of its own.
    """

    index: int
    time: float | None
    read: Callable[[], Image.Image]
    name: str | None = None


class FrameSource(Protocol):
    """Where frames come from. It is opened by one thread, then read and closed by one other."""

    @property
    def name(self) -> str:
        """As the user wrote it."""
        ...

    @property
    def rate(self) -> float | None:
        """Frames per second, as far as the source knows."""
        ...

    @property
    def live(self) -> bool:
        """Whether frames come at their own time, and are lost if not taken."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order.

        Raises:
            InputError: where the source breaks off, after the frames before.
        """
        ...

    def close(self) -> None:
        """Let go of the file or the device."""
        ...


def open_frames(name: str, fps: float | None = None) -> FrameSource:
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


class Folder:
    """The images in a folder and below; numbers in names count as numbers (2 before 10).

    Args:
        root: the folder.

    Raises:
        InputError: if it holds no images.
    """

    rate: float | None = None
    live = False

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._files = image_files(root)

    def __iter__(self) -> Iterator[Frame]:
        """The images, not yet read; they have no times."""
        for index, path in enumerate(self._files):
            yield Frame(index, None, partial(read_image, path), str(path))

    def close(self) -> None:
        """Nothing is open."""


class Video:
    """The first video stream of a file or a device.

    Args:
        name: as the user wrote it, for messages.
        location: what FFmpeg opens.
        live: whether it is a device, whose frames have the time at which they come.
        kind: FFmpeg's name of the format; by default it looks for itself.
        options: for FFmpeg.

    Raises:
        InputError: if PyAV is missing, or what is there can't be opened or has no video.
    """

    def __init__(
        self,
        name: str,
        location: str,
        *,
        live: bool = False,
        kind: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._av = need("av", "video")
        self.name = name
        self.live = live
        try:
            self._container = self._av.open(location, format=kind, options=dict(options or {}))
        except (OSError, ValueError, self._av.FFmpegError) as error:
            raise InputError(f"{name} can't be opened as a video ({_reason(error)})") from error
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"{name} holds no video")
        self._stream = self._container.streams.video[0]
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.rate: float | None = float(rate) if rate else None

    def __iter__(self) -> Iterator[Frame]:
        """The frames; one that can't be decoded raises as it is read, and the next ones come.

        Raises:
            InputError: where the file or device breaks off.
        """
        first, time, index = None, 0.0, 0
        for decoded in self._decoded():
            if isinstance(decoded, Exception):
                problem = f"frame {index} of {self.name} can't be decoded ({_reason(decoded)})"
                yield Frame(index, None if self.live else time, partial(_fail, problem))
            else:
                if decoded.time is None:
                    time = index * self._period
                else:
                    first = decoded.time if first is None else first
                    time = decoded.time - first
                yield Frame(index, None if self.live else time, partial(_picture, decoded))
            index += 1
            time += 0 if self.rate is None else 1 / self.rate
        if not self.live:
            self._check_end(index, time)

    def close(self) -> None:
        """Close the file or device."""
        self._container.close()

    @property
    def _period(self) -> float:
        if self.rate is None:
            raise InputError(f"{self.name} has neither times nor a rate: give --fps")
        return 1 / self.rate

    def _decoded(self) -> Iterator[Any]:
        """FFmpeg's frames, and its errors in the places of those that are broken."""
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = packet.decode()
                except self._av.InvalidDataError as error:
                    frames = [error]
                yield from frames
        except (OSError, self._av.FFmpegError) as error:
            raise InputError(f"{self.name} broke off ({_reason(error)})") from error

    def _check_end(self, frames: int, seconds: float) -> None:
        """FFmpeg takes the end of a file that was cut off for the end of the video.

        Fewer frames than announced alone mean nothing: an edit list may leave some out; nor does
        an early end: sound may last longer.
        """
        announced, duration = self._stream.frames, self._container.duration
        if not announced or frames >= announced or duration is None:
            return
        expected = duration / self._av.time_base
        if seconds + _SLACK < expected:
            raise InputError(
                f"{self.name} is cut off: it ends after {seconds:.1f} of {expected:.1f} seconds, "
                f"with {frames} of {announced} frames"
            )


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


def _picture(frame: Any) -> Image.Image:
    """The frame in RGB, turned as the camera was held."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _fail(problem: str) -> Image.Image:
    raise InputError(problem)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)
