"""Frames read ahead in a thread."""

from __future__ import annotations

import threading

import pytest
import torch
from fakes import Clock, Frames, indices
from PIL import Image
from torchvision.transforms.functional import to_tensor

from dynamicvit import InputError
from dynamicvit.streaming import Feed
from dynamicvit.streaming.waiting import Waiting


def prepare(image: Image.Image) -> torch.Tensor:
    return to_tensor(image)[None]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert "dynamicvit-frames" not in {thread.name for thread in threading.enumerate()}


def test_all_frames_prepared_in_order_by_a_thread_of_their_own() -> None:
    at_work = set()
    source = Frames(20)

    def noted(image: Image.Image) -> torch.Tensor:
        at_work.add(threading.current_thread())
        return prepare(image)

    with Feed(source, noted) as feed:
        found = list(feed)
    assert indices(found) == list(range(20))
    assert [round(float(each.images.mean()) * 255) for each in found] == list(range(20))
    assert (feed.dropped, feed.period, source.closed) == (0, None, 1)
    assert threading.main_thread() not in at_work
    assert len(at_work) == 1


def test_late_frames_are_neither_read_nor_prepared() -> None:
    """The clock jumps by ten frames when the fourth comes."""
    clock = Clock()

    def arrive(index: int) -> None:
        clock.now += 1.0 if index == 3 else 0.0

    source = Frames(20, rate=10, arrive=arrive)
    feed = Feed(source, prepare, places=2, clock=clock)
    feed._pace._rest = clock.rest
    with feed:
        found = indices(feed)
    # At 1.2 s, frames 11 and 12 are the newest that are due.
    assert set(range(3, 11)).isdisjoint(source.read)
    assert feed.dropped == 20 - len(found) >= 8
    assert found == sorted(found)


@pytest.mark.parametrize("error", [InputError("the file broke off"), ZeroDivisionError("a bug")])
def test_an_error_of_the_thread_comes_after_the_frames_before(error: Exception) -> None:
    source = Frames(3, error=error)
    found = []
    with Feed(source, prepare) as feed, pytest.raises(type(error), match=str(error)):
        found.extend(ready.index for ready in feed)
    assert found == [0, 1, 2]
    assert source.closed == 1


def test_an_error_of_preparing_is_raised() -> None:
    def broken(image: Image.Image) -> torch.Tensor:
        raise RuntimeError("a bug")

    with Feed(Frames(3), broken) as feed, pytest.raises(RuntimeError, match="a bug"):
        list(feed)


def test_an_unreadable_picture_comes_in_its_place() -> None:
    with Feed(Frames(4, broken=2), prepare) as feed:
        found = list(feed)
    assert indices(found) == [0, 1, 2, 3]
    assert [each.problem for each in found] == [None, None, "2 can't be read", None]
    assert [each.images is None for each in found] == [False, False, True, False]


@pytest.mark.parametrize("rate", [None, 0.001])
def test_leaving_early_ends_the_thread_whether_it_waits_for_a_place_or_for_a_moment(
    rate: float | None,
) -> None:
    source = Frames(1000, rate=rate)
    with Feed(source, prepare) as feed:
        assert next(iter(feed)).index == 0
    assert source.closed == 1
    assert len(source.read) < 10


def test_a_source_without_frames_can_be_stopped() -> None:
    unplugged = threading.Event()
    asked = iter([False, False, True])
    source = Frames(1, live=True, arrive=lambda index: unplugged.wait(5))
    with Feed(source, prepare, stopped=lambda: next(asked)) as feed:
        assert list(feed) == []
        unplugged.set()


def test_a_full_queue_drops_its_oldest() -> None:
    waiting: Waiting[int] = Waiting(2)
    for item in range(5):
        waiting.put(item)
    waiting.skip()
    waiting.finish()
    assert [waiting.take(), waiting.take(), waiting.take()] == [3, 4, None]
    assert waiting.dropped == 4
    with pytest.raises(InputError, match="got 0"):
        Waiting(0)
