"""What a stream is made of, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True)
class Frame:
    """One picture of a stream.

    Attributes:
        index: its number, from 0; those that are dropped later count too.
        time: seconds after the first frame; ``None`` if the source knows no times.
        read: gives the picture, upright and in RGB; raises ``InputError`` if it is broken. It is
            not called for a frame that comes too late, which so costs little.
        name: of its file, if it has one of its own.
    """

    index: int
    time: float | None
    read: Callable[[], Image.Image]
    name: str | None = None


class Source(Protocol):
    """Where frames come from. It is opened by one thread, then read and closed by one other."""

    @property
    def name(self) -> str:
        """As the user wrote it."""
        ...

    @property
    def rate(self) -> float | None:
        """Frames per second, as far as the source knows."""
        ...

    @property
    def live(self) -> bool:
        """Whether frames come when they come, and are lost if nobody takes them."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order.

        Raises:
            InputError: where the source breaks off, after the frames before.
        """
        ...

    def close(self) -> None:
        """Let go of the file or the device."""
        ...
