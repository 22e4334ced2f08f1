"""Sources of frames: a video file, a camera, or a folder of images."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from dynamicvit.data.decoding import read_image, reason_of
from dynamicvit.data.folders import image_files
from dynamicvit.data.video.reading import is_cut_off
from dynamicvit.errors import InputError
from dynamicvit.utils.inputs import check_file_type
from dynamicvit.utils.optional import need

_CAMERA = re.compile(r"camera:(?P<which>.+)|(?P<device>/dev/video\d+)")


@dataclass(frozen=True)
class Frame:
    """A picture of a stream.

    Attributes:
        index: its number from 0, dropped frames included.
        time: seconds after the first frame, if known.
        read: returns the picture, upright, in gray, RGB or RGBA; raises ``InputError`` if it is
            broken. Not called for late frames.
        name: its file, if it has its own.
    """

    index: int
    time: float | None
    read: Callable[[], Image.Image]
    name: str | None = None


class FrameSource(Protocol):
    """A source of frames, opened by one thread, then read and closed by another.

    Attributes:
        name: as the user wrote it.
        rate: frames per second, if known.
        live: whether frames come at their own time and are lost if not taken.
    """

    name: str
    rate: float | None
    live: bool

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order.

        Raises:
            InputError: after the last frame of a source that breaks off.
        """
        ...

    def close(self) -> None:
        """Close the file or device."""
        ...


def open_frames(name: str, fps: float | None = None) -> FrameSource:
    """Open a source of frames.

    Args:
        name: a video file, a folder of images, or a camera: ``camera:`` and its number (on Windows
            its name), or ``/dev/video0``.
        fps: rate to request from a camera; by default its own.

    Raises:
        InputError: for a source that is missing, unreadable, busy or empty, or a camera without
            that rate.
    """
    if (device := _device(name, sys.platform)) is not None:
        kind, location = device
        options = {} if fps is None else {"framerate": f"{fps:g}"}
        return Video(name, location, live=True, kind=kind, options=options)
    path = Path(name)
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise InputError(
            f"{name}: no such file; give a video, a folder of images, or a camera as camera:0"
        )
    try:
        check_file_type(path)
    except OSError as error:
        raise InputError(f"{name} is {error.strerror}; a camera is named camera:0") from error
    return Video(name, str(path))


class Folder:
    """The images in a folder and below in natural order, without times.

    Raises:
        InputError: for a folder without images.
    """

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self.rate: float | None = None
        self.live = False
        self._files = image_files(root)

    def __iter__(self) -> Iterator[Frame]:
        for index, path in enumerate(self._files):
            yield Frame(index, None, partial(read_image, path, None), str(path))

    def close(self) -> None:
        """Nothing is open."""


class Video:
    """The first video stream of a file or a device.

    Args:
        name: as the user wrote it, for messages.
        location: FFmpeg's.
        live: whether it is a device.
        kind: FFmpeg's name of the format; detected by default.
        options: FFmpeg's.

    Raises:
        InputError: if PyAV is missing, or there is no readable video.
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
            raise InputError(f"{name} can't be opened as a video ({reason_of(error)})") from error
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"{name} holds no video")
        self._stream = self._container.streams.video[0]
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.rate: float | None = float(rate) if rate else None

    def __iter__(self) -> Iterator[Frame]:
        """The frames; reading one that can't be decoded raises, and the next follow.

        Raises:
            InputError: after the last frame of a file or device that breaks off.
        """
        first, time, index = None, 0.0, 0
        for decoded, moment in self._decoded():
            if isinstance(decoded, Exception):
                problem = f"frame {index} of {self.name} can't be decoded ({reason_of(decoded)})"
                yield Frame(index, None if self.live else time, partial(_fail, problem))
            else:
                if moment is None:
                    if self.rate is None:
                        raise InputError(f"{self.name} has neither times nor a rate: give --fps")
                    time = index / self.rate
                else:
                    first = moment if first is None else first
                    time = moment - first
                yield Frame(index, None if self.live else time, partial(_picture, decoded))
            index += 1
            time += 0 if self.rate is None else 1 / self.rate
        if not self.live:
            self._check_end(index, time)

    def close(self) -> None:
        """Close the file or device."""
        self._container.close()

    def _decoded(self) -> Iterator[tuple[Any, float | None]]:
        """FFmpeg's frames, or its errors in place of broken ones, and when they are shown.

        AVI stores no times: FFmpeg guesses wrong when frames that are stored out of order are
        shown. They are shown at the times at which frames are decoded, one after the other.
        """
        decoded_at: deque[float] = deque()
        try:
            for packet in self._container.demux(self._stream):
                if self._container.format.name == "avi" and packet.size and packet.dts is not None:
                    decoded_at.append(float(packet.dts * packet.time_base))
                try:
                    for frame in packet.decode():
                        yield frame, decoded_at.popleft() if decoded_at else frame.time
                except self._av.InvalidDataError as error:
                    yield error, decoded_at.popleft() if decoded_at else None
        except (OSError, self._av.FFmpegError) as error:
            raise InputError(f"{self.name} broke off ({reason_of(error)})") from error

    def _check_end(self, frames: int, seconds: float) -> None:
        """Refuse a file that was cut off, which FFmpeg takes for its end.

        Fewer frames than announced alone mean nothing, as an edit list may omit some; nor does an
        early end, as sound may last longer.
        """
        announced, duration = self._stream.frames, self._container.duration
        if not announced or frames >= announced or duration is None:
            return
        expected = duration / self._av.time_base
        if is_cut_off(seconds, expected):
            raise InputError(
                f"{self.name} is cut off: it ends after {seconds:.1f} of {expected:.1f} seconds, "
                f"with {frames} of {announced} frames"
            )


def _device(name: str, platform: str) -> tuple[str, str] | None:
    """FFmpeg's format and location of a camera; None for another name."""
    found = _CAMERA.fullmatch(name)
    if found is None:
        return None
    if found["device"] is not None:
        return "v4l2", found["device"]
    which = found["which"]
    if platform == "win32":
        return "dshow", f"video={which}"
    if not which.isdecimal():
        raise InputError(f"{name}: name a camera by its number, such as camera:0")
    return ("avfoundation", which) if platform == "darwin" else ("v4l2", f"/dev/video{which}")


def _picture(frame: Any) -> Image.Image:
    """The frame in RGB, upright."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _fail(problem: str) -> Image.Image:
    raise InputError(problem)
