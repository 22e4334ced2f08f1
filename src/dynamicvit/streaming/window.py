"""The last frames of a stream as a clip."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from dynamicvit.errors import InputError


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
        self._frames, self._stride = frames, stride
        self._held: deque[Tensor] = deque(maxlen=(frames - 1) * stride + 1)

    def add(self, frame: Tensor) -> Tensor:
        """``(1, T, C, H, W)``: the clip that ends with a frame ``(1, C, H, W)``."""
        self._held.append(frame)
        last = len(self._held) - 1
        places = [max(0, last - self._stride * back) for back in reversed(range(self._frames))]
        return torch.stack([self._held[place] for place in places], dim=1)
