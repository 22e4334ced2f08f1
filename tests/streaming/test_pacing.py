"""When frames are due, by a clock that stands still."""

from __future__ import annotations

import math

import pytest
from fakes import Clock, Frames

from dynamicvit import InputError
from dynamicvit.streaming import Frame
from dynamicvit.streaming.feed import Pace


def pace(source: Frames, fps: float | None = None, places: int = 2) -> tuple[Pace, Clock]:
    clock = Clock()
    return Pace(source, fps, places=places, clock=clock, rest=clock.rest), clock


def test_a_file_plays_at_its_own_times() -> None:
    source = Frames(3, rate=20)
    own, clock = pace(source)
    assert (own.lossless, own.period) == (False, 0.05)
    for frame in source:
        clock.now += 0.01  # decoding
        moment = own.wait_for(frame)
        assert moment.time == frame.time
        assert moment.due == pytest.approx(100.01 + frame.index / 20)
        assert not moment.late
        assert clock.now == pytest.approx(moment.due)


@pytest.mark.parametrize("rate", [None, 20])
def test_fps_replaces_the_times_of_images_and_videos(rate: float | None) -> None:
    source = Frames(3, rate=rate)
    own, clock = pace(source, fps=5)
    moments = [own.wait_for(frame) for frame in source]
    assert [moment.time for moment in moments] == pytest.approx([0, 0.2, 0.4])
    assert [moment.due for moment in moments] == pytest.approx([100, 100.2, 100.4])
    assert (own.lossless, own.period) == (False, 0.2)
    assert clock.now == pytest.approx(100.4)


@pytest.mark.parametrize(("rate", "fps"), [(None, None), (None, 0), (20, 0)])
def test_as_fast_as_they_are_classified(rate: float | None, fps: float | None) -> None:
    source = Frames(3, rate=rate)
    own, clock = pace(source, fps)
    assert own.lossless
    for frame in source:
        assert own.wait_for(frame) == (frame.time, None, False)
    assert clock.now == 100


def test_a_camera_sets_the_pace() -> None:
    own, clock = pace(Frames(3, rate=30, live=True))
    assert not own.lossless
    for seconds in (0.0, 0.5, 0.6):
        clock.now = 100 + seconds
        moment = own.wait_for(Frame(0, None, lambda: None))
        assert moment.time == pytest.approx(seconds)
        assert (moment.due, moment.late) == (clock.now, False)


@pytest.mark.parametrize("places", [1, 2, 5])
def test_late_is_what_newer_frames_leave_no_place_for(places: int) -> None:
    own, clock = pace(Frames(9, rate=10), places=places)
    frames = list(Frames(9, rate=10))
    own.wait_for(frames[0])
    clock.now = 100 + 0.1 + places * 0.1 - 1e-6
    assert not own.wait_for(frames[1]).late
    clock.now += 2e-6
    assert own.wait_for(frames[1]).late
    assert not own.wait_for(frames[2]).late


@pytest.mark.parametrize(
    ("fps", "live"), [(-1, False), (math.nan, False), (math.inf, False), (0, True)]
)
def test_rates_that_are_refused(fps: float, live: bool) -> None:
    with pytest.raises(InputError, match=f"got {fps}"):
        pace(Frames(1, live=live), fps)
