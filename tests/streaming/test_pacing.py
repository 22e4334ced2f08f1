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


def test_a_rate_replaces_its_times() -> None:
    source = Frames(3, rate=20)
    own, _ = pace(source, fps=5)
    moments = [own.wait_for(frame) for frame in source]
    assert [moment.time for moment in moments] == pytest.approx([0, 0.2, 0.4])
    assert own.period == 0.2


@pytest.mark.parametrize(("rate", "fps"), [(None, None), (None, 0), (20, 0)])
def test_as_fast_as_they_are_classified(rate: float | None, fps: float | None) -> None:
    source = Frames(3, rate=rate)
    own, clock = pace(source, fps)
    assert own.lossless
    for frame in source:
        assert own.wait_for(frame) == (frame.time, None, False)
    assert clock.now == 100


def test_images_at_a_rate() -> None:
    own, clock = pace(Frames(3), fps=10)
    assert [own.wait_for(frame).due for frame in Frames(3)] == pytest.approx([100, 100.1, 100.2])
    assert not own.lossless
    assert clock.now == pytest.approx(100.2)


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


@pytest.mark.parametrize("fps", [-1, math.nan, math.inf])
def test_no_rate(fps: float) -> None:
    with pytest.raises(InputError, match=f"got {fps}"):
        pace(Frames(1), fps)


def test_a_camera_does_not_wait() -> None:
    with pytest.raises(InputError, match="frames is a camera"):
        pace(Frames(1, live=True), 0)
