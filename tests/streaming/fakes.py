"""Clocks that don't run by themselves, and sources without files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from PIL import Image

from dynamicvit import InputError
from dynamicvit.streaming import Frame


class Clock:
    """Time passes only where a test says so."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def rest(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


@dataclass
class Frames:
    """A source of gray frames; frame ``i`` has gray ``i``.

    Attributes:
        count: how many there are.
        rate: frames per second.
        live: whether it is a camera.
        arrive: called before each frame, with its index.
        error: raised after the last one.
        broken: index of an unreadable frame.
        read: the indices of those that were read.
        closed: how often it was closed.
    """

    count: int
    rate: float | None = None
    live: bool = False
    arrive: Callable[[int], object] = lambda index: None
    error: Exception | None = None
    broken: int | None = None
    name: str = "frames"
    read: list[int] = field(default_factory=list)
    closed: int = 0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.count):
            self.arrive(index)
            time = index / self.rate if self.rate and not self.live else None
            yield Frame(index, time, partial(self._read, index))
        if self.error is not None:
            raise self.error

    def _read(self, index: int) -> Image.Image:
        self.read.append(index)
        if index == self.broken:
            raise InputError(f"{index} can't be read")
        return Image.new("RGB", (4, 4), (index, index, index))

    def close(self) -> None:
        self.closed += 1


def indices(found: Iterable) -> list[int]:
    return [each.index for each in found]
