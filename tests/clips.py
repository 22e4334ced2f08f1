"""Small videos, each frame of one gray, and what they show."""

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
    codec: str = "mpeg4",
    gop: int | None = None,
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
        codec: FFmpeg's.
        gop: frames from one key frame to the next, each third one stored out of order.
        **options: of the container.
    """
    width, height = size
    with av.open(str(path), "w", options={k: str(v) for k, v in options.items()}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        if gop is not None:
            stream.bit_rate = 4_000_000
            stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, 2
        stream.codec_context.time_base = Fraction(1, fps)
        container.start_encoding()  # or nothing would be written of no frames
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


def turn(path: Path, height: int = 48) -> None:
    """Write into an .mp4 the matrix that turns pixels on their side clockwise."""
    one, unit = (1 << 16).to_bytes(4, "big"), (1 << 30).to_bytes(4, "big")
    minus, zero = (-(1 << 16)).to_bytes(4, "big", signed=True), bytes(4)
    upright = one + zero * 3 + one + zero * 3 + unit
    matrix = zero + one + zero + minus + zero * 2 + (height << 16).to_bytes(4, "big") + zero + unit
    content = path.read_bytes()
    start = content.index(upright, content.index(b"tkhd"))
    path.write_bytes(content[:start] + matrix + content[start + len(matrix) :])


def levels(frames: Any) -> list[int]:
    """What frames ``(..., C, H, W)`` of values in [0, 1] are of :func:`write_clip`'s, flattened."""
    means = frames.mean((-3, -2, -1)).flatten()
    return [round(255 * float(mean) / 8) for mean in means]


def write_sound(path: Path) -> Path:
    """A file of sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux([*stream.encode(frame), *stream.encode()])
    return path


def class_folders(root: Path, clips: int = 2, frames: int = 8) -> Path:
    """Classes ``a`` and ``b`` of clips."""
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for index in range(clips):
            write_clip(root / name / f"{index}.mp4", frames + index, size=(48, 32))
    return root
