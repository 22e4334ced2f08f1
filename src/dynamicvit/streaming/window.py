"""The last frames of a stream as a clip, and what its tubelets share with the clips before."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from dynamicvit.backbones.inflated import InflatedBackbone
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens


class Clip(NamedTuple):
    """Frames of a stream.

    Attributes:
        numbers: of the frames, in order; the same number is the same frame.
        frames: each ``(1, C, H, W)``.
    """

    numbers: tuple[int, ...]
    frames: tuple[Tensor, ...]

    def stacked(self) -> Tensor:
        """``(1, T, C, H, W)``."""
        return torch.stack(self.frames, dim=1)


class Window:
    """Slides over frames: after each the clip that ends with it.

    Before there are enough, the first frame stands for those that are missing.

    Args:
        frames: of a clip.
        stride: frames of the stream from one of a clip to the next.

    Raises:
        InputError: for a stride below 1.
    """

    def __init__(self, frames: int, stride: int = 1) -> None:
        if stride < 1:
            raise InputError(f"stride is at least 1 frame, got {stride}")
        self._frames, self._stride, self._count = frames, stride, 0
        self._held: deque[tuple[int, Tensor]] = deque(maxlen=(frames - 1) * stride + 1)

    def add(self, frame: Tensor) -> Clip:
        """The clip that ends with a frame ``(1, C, H, W)``."""
        self._held.append((self._count, frame))
        self._count += 1
        last = len(self._held) - 1
        places = [max(0, last - self._stride * back) for back in reversed(range(self._frames))]
        numbers, frames = zip(*(self._held[place] for place in places), strict=True)
        return Clip(numbers, frames)


class Embedding:
    """Embeds the clips of a stream, each tubelet once while clips share it.

    Args:
        bound: of the network, or of several budgets of it.
    """

    def __init__(self, bound: InflatedBackbone) -> None:
        self._bound = bound
        self._known: dict[tuple[int, ...], Tokens] = {}

    def __call__(self, clip: Clip, device: torch.device | str) -> Tokens:
        """All tokens of a clip before the first block."""
        parts = []
        for first in range(0, len(clip.numbers), self._bound.tubelet):
            own = slice(first, first + self._bound.tubelet)
            numbers = clip.numbers[own]
            if numbers not in self._known:
                pixels = torch.stack(clip.frames[own], dim=1).to(device)
                self._known[numbers] = self._bound.embed_tubelets(pixels)
            parts.append(self._known[numbers])
        # Clips only move on: what begins before this one is in none that follows.
        self._known = {key: x for key, x in self._known.items() if key[0] >= clip.numbers[0]}
        return self._bound.in_time(parts[0], torch.stack([part.x for part in parts], dim=1))
