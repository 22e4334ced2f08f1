"""Frames of a video file, and of whatever else FFmpeg opens as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from PIL import Image

from dynamicvit.data.decoding import one_line
from dynamicvit.errors import InputError
from dynamicvit.streaming.frames import Frame
from dynamicvit.utils.optional import need

#: A file that ends by more than this many seconds before its own duration has been cut off.
_SLACK = 1.0


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


def _picture(frame: Any) -> Image.Image:
    """The frame in RGB, turned as the camera was held."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _fail(problem: str) -> Image.Image:
    raise InputError(problem)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)
