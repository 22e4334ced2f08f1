"""Which frames of a video a clip is made of: uniform or dense, by time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dynamicvit.errors import InputError

#: Seconds by which times may be rounded: WebM stores milliseconds.
_ROUNDING = 0.6e-3


class Timeline(NamedTuple):
    """When the frames of a video are shown.

    Attributes:
        times: ``(frames,)`` rising, seconds from the first frame.
        duration: seconds until the last frame ends.
    """

    times: np.ndarray
    duration: float

    @property
    def interval(self) -> float:
        """Seconds between frames, mean."""
        return self.duration / len(self.times)

    def shown_at(self, moments: np.ndarray | float) -> np.ndarray:
        """Index of the frame that is shown at each moment, in seconds."""
        moments = moments + min(_ROUNDING, self.interval / 4)
        return np.maximum(np.searchsorted(self.times, moments, side="right") - 1, 0)


@dataclass(frozen=True)
class Sampling:
    """How many frames a clip has, and how far apart.

    Without a distance, sampling is uniform (TSN, Wang et al. 2016, Section 3.1): the video is cut
    into ``frames`` segments of equal time; a clip has a random moment of each in training, the
    middle of each in evaluation. With one it is dense (I3D, SlowFast): a clip starts at a random
    moment in training, in the middle of the video in evaluation.

    Distances are times, so the frames of a variable rate are those that are shown then. A video
    with fewer frames than asked gives them repeated evenly; one that is shorter than a dense clip
    is taken whole, uniformly.

    Args:
        frames: of a clip.
        stride: distance in frames, at the video's mean rate: 4 in VideoMAE's fine-tuning on
            Kinetics-400.
        seconds: distance in seconds, the same for videos of any rate.

    Raises:
        InputError: for a number that is not positive, or two distances.
    """

    frames: int
    stride: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise InputError(f"{name} of a clip must be positive, got {value}")
        if self.stride is not None and self.seconds is not None:
            raise InputError("frames are apart by a stride in frames or in seconds, not by both")

    def random_clip(self, timeline: Timeline) -> np.ndarray:
        """``(1, T)`` indices of the frames of a training clip.

        They depend on torch's random generator.
        """
        distance = self._distance(timeline)
        if distance is None:
            return timeline.shown_at(self._segments(timeline, torch.rand(1, self.frames).numpy()))
        start = float(torch.rand(())) * (timeline.duration - distance * self.frames)
        return timeline.shown_at(self._from(np.array([start]), distance))

    def even_clips(self, timeline: Timeline, clips: int = 1) -> np.ndarray:
        """``(clips, T)`` indices of the frames of clips for evaluation.

        Uniform: clip ``c`` has the moment at ``(c + 1/2) / clips`` of each segment. Dense: from the
        first clip that the video holds to the last, evenly; one clip is the middle one.
        """
        distance = self._distance(timeline)
        if distance is None:
            places = (np.arange(clips)[:, None] + 0.5) / clips
            return timeline.shown_at(self._segments(timeline, places))
        room = timeline.duration - distance * self.frames
        share = np.linspace(0, 1, clips) if clips > 1 else np.array([0.5])
        return timeline.shown_at(self._from(share * room, distance))

    def _distance(self, timeline: Timeline) -> float | None:
        """Seconds between the frames of a dense clip; None where sampling is uniform."""
        distance = self.seconds
        if self.stride is not None:
            distance = self.stride * timeline.interval
        if distance is None or distance * self.frames > timeline.duration:
            return None
        return distance

    def _segments(self, timeline: Timeline, places: np.ndarray) -> np.ndarray:
        """Moments ``(clips, T)`` at places in [0, 1) of each segment."""
        return (np.arange(self.frames) + places) * (timeline.duration / self.frames)

    def _from(self, starts: np.ndarray, distance: float) -> np.ndarray:
        """Moments ``(clips, T)`` at a distance."""
        return starts[:, None] + distance * np.arange(self.frames)
