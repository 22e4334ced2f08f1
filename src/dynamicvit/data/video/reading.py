"""The decoder of videos: when the frames of a file are shown, and the pictures of some of them.

PyAV decodes; torchcodec is not used, as two decoders would give other pixels on other machines.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dynamicvit.data.decoding import check_shape, reason_of
from dynamicvit.data.video.sampling import Timeline
from dynamicvit.utils.inputs import check_file_type
from dynamicvit.utils.optional import need

#: Endings of the files that count as clips, in lower case.
CLIP_ENDINGS = frozenset(
    f".{end}" for end in ["avi", "gif", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "webm", "wmv"]
)

#: FFmpeg's names of their formats. Others would read images, or what a playlist in a file names.
_FORMATS = "avi,gif,mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpeg,asf"

#: A file that ends earlier than its stated duration by so many seconds, and by this share of it,
#: is cut off.
_SLACK, _SHARE = 1.0, 0.1


class VideoHeader(NamedTuple):
    """What a video says of itself: seconds, ``None`` if it doesn't, and the pixels of a frame."""

    seconds: float | None
    width: int
    height: int


def video_header(content: bytes | Path) -> VideoHeader:
    """The length and size of a video, without a pass over its frames.

    Raises:
        InputError: if PyAV is missing.
        Exception: as for :class:`VideoFile`.
    """
    with closing(_open(content)) as container:
        stream, length = _video_of(container), container.duration
        return VideoHeader(length and length / 1e6, stream.width, stream.height)  # FFmpeg's unit


class VideoFile:
    """A video file: its timeline, and its frames by index.

    Args:
        content: a file's bytes, or its path.

    Attributes:
        timeline: of the frames, from one pass over the file without decoding.

    Raises:
        InputError: if PyAV is missing.
        Exception: of any kind, for a broken file: OSError, ValueError, av.FFmpegError, ...
    """

    def __init__(self, content: bytes | Path) -> None:
        self._av: Any = need("av", "video")
        self._content = content
        with closing(_open(content)) as container:
            stream = _video_of(container)
            packets = [
                (p.pts, p.dts, p.duration, p.is_keyframe, p.is_discard)
                for p in container.demux(stream)
                if p.size
            ]
            shown = [packet for packet in packets if not packet[-1]]
            if not shown:
                raise ValueError("the video holds no frames")
            base, form = float(stream.time_base), container.format.name
            # AVI stores no times: FFmpeg's guesses of when a frame is shown are wrong for frames
            # that are stored out of order, those of when it is decoded are not.
            stored = form != "avi" and all(pts is not None for pts, *_ in shown)
            stamps = sorted(
                pts if stored else index if dts is None else dts
                for index, (pts, dts, *_) in enumerate(shown)
            )
            times = base * (np.array(stamps) - stamps[0])
            last = base * (shown[-1][2] or 0)
            if not last:  # as long as the others
                last = times[-1] / max(1, len(times) - 1) or 1.0
            self.timeline = Timeline(times, float(times[-1] + last))
            self._check_end(container, stream, len(packets))
        self._start, self._base, self._stored = stamps[0], base, stored
        # When key frames are shown, in the formats that have an index; a file begins with one.
        indexed = stored and ("mov" in form or "matroska" in form)
        keys = [pts for pts, _, _, is_key, _ in packets if is_key and indexed]
        self._keys = np.array(sorted(keys)[1:], dtype=np.int64)

    def frames(self, indices: np.ndarray) -> np.ndarray:
        """``(n, H, W, 3)`` uint8, upright RGB, of rising indices.

        Frames before the key frame of the first are not decoded, nor those between two key frames
        that none is wanted of.

        Raises:
            Exception: as for the class; ValueError for a frame that is missing or damaged.
        """
        indices = np.asarray(indices)
        found: list[np.ndarray] = []
        with closing(_open(self._content)) as container:
            stream = _video_of(container)
            stream.codec_context.thread_count = 1  # of a process that has others beside it
            rest = indices
            while len(rest):
                got = self._from_key(container, stream, rest)
                found += got
                rest = rest[len(got) :]
        if len({picture.shape for picture in found}) > 1:
            raise ValueError("its frames are of unlike size")
        return np.stack(found)

    def clips(self, chosen: np.ndarray) -> np.ndarray:
        """``(clips, T, 3, H, W)`` uint8 of frames by index, each decoded once.

        Args:
            chosen: ``(clips, T)``, as :class:`.Sampling` chooses them.

        Raises:
            Exception: as :meth:`frames`.
        """
        wanted, where = np.unique(chosen, return_inverse=True)
        return np.moveaxis(self.frames(wanted)[where.reshape(chosen.shape)], -1, 2)

    def _check_end(self, container: Any, stream: Any, frames: int) -> None:
        """Refuse a file that was cut off, which FFmpeg takes for its end.

        Fewer frames than announced alone mean nothing, nor does an early end, as sound may last
        longer.
        """
        announced = stream.frames
        alone = len(container.streams) == 1  # Matroska announces no number
        if container.duration is None or (frames >= announced if announced else not alone):
            return
        expected = container.duration / 1e6  # FFmpeg's own unit
        if is_cut_off(self.timeline.duration, expected):
            raise ValueError(
                f"cut off: it ends after {self.timeline.duration:.1f} of {expected:.1f} seconds"
            )

    def _from_key(self, container: Any, stream: Any, wanted: np.ndarray) -> list[np.ndarray]:
        """Pictures of the first of the wanted frames, up to the key frame of a later one."""
        stamps = self._start + np.rint(self.timeline.times[wanted] / self._base).astype(int)
        key_of = np.searchsorted(self._keys, stamps, side="right")
        # Seeking, which flushes the decoder, pays where a whole group of frames is skipped.
        breaks = np.flatnonzero(np.diff(key_of) > 1)
        wanted = wanted[: breaks[0] + 1] if len(breaks) else wanted
        if key_of[0]:
            key = int(self._keys[key_of[0] - 1])
            container.seek(key, stream=stream)
            found = self._take(container, stream, wanted, key)
            if found is not None:
                return found
            # It stands behind the frame: containers list frames by the time of decoding.
            container.seek(int(self._start), stream=stream)
        return self._take(container, stream, wanted, self._start)

    def _take(self, container: Any, stream: Any, wanted: np.ndarray, first: int) -> Any:
        """Pictures of wanted frames, from where the file stands; None if it stands behind them."""
        found: list[np.ndarray] = []
        before: Any = None
        for index, frame in self._decoded(container, stream, first):
            if before is None and index > wanted[0] and first != self._start:
                return None
            while len(found) < len(wanted) and index >= wanted[len(found)]:
                exact = index == wanted[len(found)]
                found.append(_picture(frame if exact or before is None else before))
            if len(found) == len(wanted):
                return found
            before = frame
        if before is None:
            raise ValueError("no frame of it can be decoded")
        return found + [_picture(before)] * (len(wanted) - len(found))

    def _decoded(self, container: Any, stream: Any, first: int) -> Iterator[tuple[int, Any]]:
        """Frames from where the file stands, at a stamp, each with its index."""
        position = self._index(first)
        frames = container.decode(stream)
        while True:
            try:
                frame = next(frames)
            except (StopIteration, self._av.EOFError):
                return
            except self._av.FFmpegError as error:
                raise ValueError(
                    f"frame {position} can't be decoded ({reason_of(error)})"
                ) from error
            if self._stored and frame.pts is not None:
                position = self._index(frame.pts)
            yield position, frame
            position += 1

    def _index(self, stamp: int) -> int:
        return int(self.timeline.shown_at((stamp - self._start) * self._base))


def is_cut_off(seconds: float, expected: float) -> bool:
    """Whether a video of a stated duration that ends after these seconds was cut off."""
    return expected - seconds > min(_SLACK, _SHARE * expected)


def _open(content: bytes | Path) -> Any:
    """FFmpeg's view of a file's contents."""
    av: Any = need("av", "video")
    if isinstance(content, Path):
        check_file_type(content)
    try:
        # Not by name alone, which FFmpeg may take for a protocol's.
        file = f"file:{content}" if isinstance(content, Path) else io.BytesIO(content)
        return av.open(file, options={"format_whitelist": _FORMATS})
    except av.ArgumentError:  # FFmpeg's word for a format that is not on the list
        what = "an image, not a video" if _is_image(content) else "not a video"
        raise ValueError(what) from None
    except av.InvalidDataError:
        raise ValueError("not a video, or damaged at its start") from None


def _is_image(content: bytes | Path) -> bool:
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content):
            return True
    except Exception:  # of any kind, as of any file
        return False


def _video_of(container: Any) -> Any:
    """The first stream of video; a cover's picture is none."""
    videos = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if not videos:
        what = "sound, but no video" if container.streams.audio else "no video"
        raise ValueError(f"the file holds {what}")
    check_shape(videos[0].width, videos[0].height)
    return videos[0]


def _picture(frame: Any) -> np.ndarray:
    """``(H, W, 3)``: the frame in RGB, upright.

    Raises:
        ValueError: for one that the decoder had to make up in part.
    """
    if frame.is_corrupt:
        raise ValueError(f"the frame at {float(frame.time or 0):.2f} s is damaged")
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
