"""The queue between two threads."""

from __future__ import annotations

import threading

import pytest

from dynamicvit import InputError
from dynamicvit.streaming.waiting import Waiting


def test_the_newest_stay_in_order() -> None:
    waiting: Waiting[int] = Waiting(2)
    for item in range(5):
        waiting.put(item)
    waiting.skip()
    waiting.finish()
    assert [waiting.take(), waiting.take(), waiting.take()] == [3, 4, None]
    assert waiting.dropped == 4


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_lossless_lets_the_reader_wait() -> None:
    waiting: Waiting[int] = Waiting(2, lossless=True)
    reader = in_thread(lambda: ([waiting.put(item) for item in range(50)], waiting.finish()))
    taken = []
    while (item := waiting.take()) is not None:
        taken.append(item)
        assert len(waiting._items) <= 2
    reader.join(5)
    assert taken == list(range(50))
    assert waiting.dropped == 0


def test_an_error_comes_after_what_was_there_before() -> None:
    waiting: Waiting[int] = Waiting(2)
    waiting.put(1)
    waiting.finish(ValueError("broken"))
    assert waiting.take() == 1
    with pytest.raises(ValueError, match="broken"):
        waiting.take()


def test_closing_frees_a_reader_that_waits_or_sleeps() -> None:
    waiting: Waiting[int] = Waiting(1, lossless=True)
    waiting.put(1)
    readers = [in_thread(lambda: waiting.put(2)), in_thread(lambda: waiting.closed.wait(60))]
    waiting.close()
    for reader in readers:
        reader.join(5)
        assert not reader.is_alive()


def test_a_frame_or_a_stop_ends_the_wait() -> None:
    waiting: Waiting[int] = Waiting(1)
    timer = threading.Timer(0.02, waiting.put, [7])
    timer.start()
    assert waiting.take() == 7
    timer.join()
    asked = iter([False, True])
    assert waiting.take(lambda: next(asked)) is None
    assert list(asked) == []


def test_no_place() -> None:
    with pytest.raises(InputError, match="got 0"):
        Waiting(0)
