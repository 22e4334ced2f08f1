"""Small videos, each frame of one gray."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def write_clip(
    path: Path,
    frames: int,
    *,
    fps: int = 30,
    size: tuple[int, int] = (64, 48),
    times: list[int] | None = None,
    noise: bool = False,
    right: int | None = None,
    **options: Any,
) -> Path:
    """A video whose frame ``i`` has the gray level ``8 i``, its own among the first 31.

    Args:
        path: where to; the ending says the kind.
        frames: how many.
        fps: their rate.
        size: width and height.
        times: of the frames, in units of ``1 / fps`` seconds, where they don't come evenly.
        noise: frames of noise, which are large, in place of gray.
        right: gray level of the right half, if it has its own.
        **options: of the container.
    """
    width, height = size
    with av.open(str(path), "w", options={k: str(v) for k, v in options.items()}) as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for index in range(frames):
            pixels = np.full((height, width, 3), 8 * index % 248, dtype=np.uint8)
            if noise:
                random = np.random.default_rng(index)
                pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            if right is not None:
                pixels[:, width // 2 :] = right
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
