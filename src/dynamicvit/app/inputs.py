"""What the page takes: uploads within limits, and a few pictures that come with the library."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dynamicvit.core.model import DynamicViT
from dynamicvit.data import Sampling, clip_eval_transform, eval_transform, frames_of
from dynamicvit.data.decoding import decode, image_formats, reason_of
from dynamicvit.data.folders import is_image
from dynamicvit.data.samples import panned, photographs
from dynamicvit.data.transforms import unnormalized
from dynamicvit.data.video import ClipTransform
from dynamicvit.data.video.clip_sources import is_clip
from dynamicvit.data.video.reading import VideoFile, video_header
from dynamicvit.demo.scenes import MEAN, STD, Scenes
from dynamicvit.errors import InputError
from dynamicvit.plots.patches import as_picture
from dynamicvit.utils.words import duration

#: Limits of an upload: bytes and pixels of an image, of a video and of the frames taken of it,
#: and how long a video may be.
IMAGE_BYTES, CLIP_BYTES = 32 << 20, 128 << 20
IMAGE_PIXELS, CLIP_PIXELS = 40_000_000, 160_000_000
MOST_SECONDS = 600.0

_SCENES = 6  # bundled ones


class Bundled(NamedTuple):
    """An input that comes with the library.

    Attributes:
        name: what it shows.
        picture: of it, small.
        tensor: as the model takes it.
    """

    name: str
    picture: Image.Image
    tensor: Tensor


@dataclass(frozen=True)
class Inputs:
    """Files and bundled pictures as a model takes them.

    Attributes:
        model: of images or clips.
        image_size: height and width in pixels; by default the model's.
        crop_pct: share of the short side that the center crop takes; by default the model's.
        scenes: whether the model is the demo's, whose pictures are made-up scenes.
    """

    model: DynamicViT
    image_size: tuple[int, int] | None = None
    crop_pct: float | None = None
    scenes: bool = False

    @property
    def frames(self) -> int | None:
        """The frames of a clip; ``None`` for images."""
        return frames_of(self.model)

    @property
    def most_bytes(self) -> int:
        """The largest file."""
        return IMAGE_BYTES if self.frames is None else CLIP_BYTES

    def read(self, path: Path, name: str) -> Tensor:
        """A file as the model takes it: ``(C, H, W)``, or ``(T, C, H, W)``.

        Args:
            path: of the file.
            name: what messages call it.

        Raises:
            InputError: for one that is too large, not of the model's kind, or broken. Its size in
                pixels and seconds is read from its header, before anything is decoded.
        """
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise InputError(f"{name} is gone ({reason_of(error)}): upload it again") from error
        if size > self.most_bytes:
            raise InputError(f"{name}: {_mb(size)} are too many, {_mb(self.most_bytes)} at most")
        try:
            frames = self.frames
            return self._image(path, name) if frames is None else self._clip(path, frames)
        except Exception as error:  # broken files raise errors of any kind
            takes = "an image" if self.frames is None else "a video"
            raise InputError(f"{name} can't be read as {takes} ({reason_of(error)})") from error

    def pictures(self, tensor: Tensor) -> Tensor:
        """``(1, C, H, W)``, or ``(T, C, H, W)`` of a clip, in [0, 1]."""
        pictures = unnormalized(self.model, tensor)
        return pictures if self.frames is not None else pictures[None]

    def bundled(self) -> list[Bundled]:
        """Scenes for the demo's model; for others scikit-learn's photographs.

        For a model of clips a window moves over each photograph.

        Raises:
            InputError: if scikit-learn is missing.
        """
        if self.scenes:
            scenes = Scenes("score").batch(range(_SCENES))
            pixels = (scenes.images * STD + MEAN).clamp(0, 1)
            return [
                Bundled(f"scene {index + 1}", as_picture(picture), tensor)
                for index, (picture, tensor) in enumerate(zip(pixels, scenes.images, strict=True))
            ]
        found = []
        for name, picture in photographs("app").items():
            if self.frames is None:
                tensor = eval_transform(self.model, self.image_size, self.crop_pct)(picture)
            else:
                clip = torch.from_numpy(panned(picture, self.frames))[None]
                tensor = self._clip_transform(self.frames)(clip)
            picture.thumbnail((320, 320))
            found.append(Bundled(name, picture, tensor))
        return found

    def _image(self, path: Path, name: str) -> Tensor:
        if is_clip(name) and not is_image(name):
            raise ValueError("the model takes images, not videos")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is lower
            with Image.open(path, formats=image_formats()) as header:  # reads no pixels
                _check_pixels(*header.size, IMAGE_PIXELS)
        return eval_transform(self.model, self.image_size, self.crop_pct)(decode(path, None))

    def _clip(self, path: Path, frames: int) -> Tensor:
        header = video_header(path)
        _check_pixels(header.width, header.height, CLIP_PIXELS // frames)
        _check_length(header.seconds)
        video = VideoFile(path)
        _check_length(video.timeline.duration)  # where the header does not say
        transform = self._clip_transform(frames)
        return transform(torch.from_numpy(video.clips(transform.choose(video.timeline))))

    def _clip_transform(self, frames: int) -> ClipTransform:
        how: Any = {"image_size": self.image_size, "crop_pct": self.crop_pct}
        return clip_eval_transform(self.model, Sampling(frames), **how)


def _check_pixels(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise ValueError(
            f"{width}x{height} are {width * height / 1e6:.0f} million pixels, "
            f"{most / 1e6:.0f} at most"
        )


def _check_length(seconds: float | None) -> None:
    if seconds is not None and seconds > MOST_SECONDS:
        raise ValueError(f"it lasts {duration(seconds)}, {duration(MOST_SECONDS)} at most")


def _mb(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB"
