"""The maps of a stream over its frames, as a video file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import ImageOps

from dynamicvit.errors import InputError
from dynamicvit.plots.maps import paint
from dynamicvit.streaming.events import Answer
from dynamicvit.utils.files import atomic_write
from dynamicvit.utils.optional import need
from dynamicvit.utils.outputs import MARK

#: Endings of video files.
VIDEOS = (".mp4", ".mkv", ".mov", ".avi")

#: Frames a second where the source knows none, as a folder.
_RATE = 10.0


class Overlay:
    """Writes the frames of answers with their maps; use :func:`overlay_video`.

    Frames of another size than the first are fitted into it. A frame stands where it stood in the
    source, so a dropped one leaves its predecessor on the screen.

    Args:
        path: of the video.
        rate: frames a second; None for 10.
        names: of the classes.
    """

    def __init__(self, path: Path, rate: float | None, names: Sequence[str]) -> None:
        self._av = need("av", "video")
        try:
            self._container = self._av.open(str(path), "w")
        except (OSError, ValueError, self._av.FFmpegError) as error:
            raise InputError(f"{path} can't be written as a video ({error})") from error
        self._container.metadata["comment"] = MARK
        self._rate = Fraction(rate or _RATE).limit_denominator(1001)
        self._names = names
        self._stream: Any = None
        self._last = -1

    def add(self, answer: Answer) -> None:
        """Write an answer's frame."""
        assert answer.picture is not None
        assert answer.map is not None
        shown = paint(answer.picture.convert("RGB"), answer.map, self._names)
        stream = self._stream_for(shown.size)
        if shown.size != (stream.width, stream.height):
            shown = ImageOps.pad(shown, (stream.width, stream.height))
        seconds = answer.index / self._rate if answer.time is None else answer.time
        self._last = max(self._last + 1, round(seconds * self._rate))
        frame = self._av.VideoFrame.from_image(shown)
        frame.pts, frame.time_base = self._last, 1 / self._rate
        self._container.mux(stream.encode(frame))

    def close(self) -> None:
        """Write what is left; the file is whole then."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def _stream_for(self, size: tuple[int, int]) -> Any:
        """The video stream, begun with the first frame."""
        if self._stream is None:
            codecs = self._av.codecs_available
            codec = "libx264" if "libx264" in codecs else "mpeg4"
            self._stream = self._container.add_stream(codec, rate=self._rate)
            self._stream.width, self._stream.height = (side - side % 2 for side in size)
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = 1 / self._rate
        return self._stream


@contextmanager
def overlay_video(path: Path, rate: float | None, names: Sequence[str]) -> Iterator[Overlay]:
    """An :class:`Overlay` whose file takes its place when the block ends."""
    with atomic_write(path) as draft:
        video = Overlay(draft, rate, names)
        try:
            yield video
        finally:
            video.close()
