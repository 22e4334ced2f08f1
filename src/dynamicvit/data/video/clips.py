"""A data set of clips: the frames of videos, and their classes."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dynamicvit.core.networks import bound_of, core_of
from dynamicvit.data.decoding import reason_of
from dynamicvit.data.images import ImageData
from dynamicvit.data.sources import Source
from dynamicvit.data.transforms import Size
from dynamicvit.data.video.clip_sources import has_clips, open_clips
from dynamicvit.data.video.clip_transforms import (
    ONE_VIEW,
    ClipTransform,
    Views,
    clip_eval_transform,
    clip_train_transform,
)
from dynamicvit.data.video.reading import VideoFile
from dynamicvit.data.video.sampling import Sampling
from dynamicvit.errors import InputError
from dynamicvit.utils.words import inputs_called

UNIFORM = Sampling(16)


class ClipData(ImageData):
    """Videos as clips of frames, as :class:`~dynamicvit.data.ImageData` has images.

    A sample's ``image`` is what the transform gives: ``(T, 3, H, W)``, or ``(V, T, 3, H, W)`` of
    several views. Its frames are read from the file anew each time, and no others are decoded than
    that needs. A video that is damaged where a wanted frame lies is unreadable: it comes as
    :class:`~dynamicvit.data.Unreadable`.

    Args:
        root: a folder of class folders, a ``.tar`` of them, a flat folder or tar of unlabeled
            clips, one video, a list of paths and classes (``.csv``, ``.tsv``, ``.txt``), or
            ``hfds/PLACE@SPLIT`` with a column of videos.
        sampling: of the frames of a clip.
        views: of each video in evaluation.
        transform: chooses frames and makes a tensor of them; by default evenly, the whole pictures
            in [0, 1]. :meth:`for_evaluation` and :meth:`for_training` give the model's.
        class_map: as for ``ImageData``.
        labeled: likewise.
        strict: likewise.

    Raises:
        InputError: as ``ImageData``.
    """

    noun = "clip"
    usual_batch = 8
    transform: ClipTransform  # type: ignore[assignment]

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        sampling: Sampling = UNIFORM,
        views: Views = ONE_VIEW,
        transform: ClipTransform | None = None,
        class_map: Mapping[str, int] | str | os.PathLike[str] | None = None,
        labeled: bool | None = None,
        strict: bool = False,
    ) -> None:
        self.sampling = sampling if transform is None else transform.sampling
        self.views = views
        whole = ClipTransform(sampling, views=Views(views.clips))
        how: Any = {"class_map": class_map, "labeled": labeled, "strict": strict}
        super().__init__(root, transform=transform or whole, **how)  # type: ignore[arg-type]

    def for_evaluation(
        self, model: nn.Module, image_size: Size | None = None, crop_pct: float | None = None
    ) -> ClipData:
        """The same clips, their views as a model takes them; see :func:`.clip_eval_transform`."""
        size: Any = {"image_size": image_size, "crop_pct": crop_pct}
        transform = clip_eval_transform(model, self.sampling, **size, **self.views._asdict())
        return self.with_transform(transform)  # type: ignore[arg-type,return-value]

    def for_training(self, model: nn.Module, **augmentation: Any) -> ClipData:
        """One random clip of each under the augmentation of :func:`.clip_train_transform`."""
        transform = clip_train_transform(model, self.sampling, **augmentation)
        return self.with_transform(transform)  # type: ignore[arg-type,return-value]

    def with_sampling(self, sampling: Sampling) -> ClipData:
        """The same clips of other frames, evenly chosen and whole."""
        other = copy.copy(self)
        other.sampling = sampling
        other.transform = ClipTransform(sampling, views=Views(self.views.clips))
        return other

    def _open(self, root: str | os.PathLike[str]) -> Source:
        return open_clips(root)

    def _decode(self, row: int) -> Tensor:
        """``(clips, T, 3, H, W)`` uint8."""
        try:
            video = VideoFile(self._source.read(row))
            return torch.from_numpy(video.clips(self.transform.choose(video.timeline)))
        except InputError:
            raise
        except Exception as error:  # FFmpeg's name its functions and memory
            raise ValueError(reason_of(error)) from error


def frames_of(model: nn.Module) -> int | None:
    """The frames of a clip that a model takes; None for a model of images, or one unknown."""
    return getattr(_says(model), "frames", None)


def _says(model: nn.Module) -> Any:
    """What knows the frames of a model's clips: its backbone, or an exported file; or nothing."""
    core = core_of(model)
    bound = getattr(core, "bound", None) or bound_of(core)
    return core if bound is None and hasattr(core, "frames") else bound


def data_for(
    model: nn.Module,
    root: str | os.PathLike[str],
    *,
    sampling: Sampling | None = None,
    views: Views = ONE_VIEW,
    **how: Any,
) -> ImageData:
    """The data set of a source that a model takes: clips or images.

    Args:
        model: says which.
        root: as for :class:`ClipData`, or for :class:`~dynamicvit.data.ImageData`.
        sampling: of clips; by default uniform, of as many frames as the model takes.
        views: of clips in evaluation.
        **how: further arguments of either.

    Raises:
        InputError: as of either; for a sampling of another number of frames than the model's; for
            sampling or views where it takes images.
    """
    frames = frames_of(model)
    if frames is None:
        if sampling is not None or views != ONE_VIEW:
            raise InputError("the model takes images, which have no sampling and one view")
        return ImageData(root, **how)
    if sampling is not None and sampling.frames != frames:
        raise InputError(f"the model takes clips of {frames} frames, got {sampling.frames}")
    return ClipData(root, sampling=sampling or Sampling(frames), views=views, **how)


def open_data(root: str | os.PathLike[str], *, views: Views = ONE_VIEW, **how: Any) -> ImageData:
    """The data set of a source before its model is known: clips or images, whichever it holds.

    Args:
        root: as for :class:`ClipData`, or for :class:`~dynamicvit.data.ImageData`.
        views: of clips in evaluation.
        **how: further arguments of either.

    Raises:
        InputError: as of either; for views of images.
    """
    if has_clips(root):
        return ClipData(root, views=views, **how)
    if views != ONE_VIEW:
        raise InputError(f"views {views} are of clips, and {root} holds none")
    return ImageData(root, **how)


def taken_by(model: nn.Module, data: ImageData, stride: int | None = None) -> ImageData:
    """A data set as a model takes it: its clips get as many frames as the model's.

    Args:
        model: says how many.
        data: clips or images.
        stride: of the frames of a clip, see :class:`.Sampling`; by default they are uniform.

    Raises:
        InputError: for images where it takes clips, the reverse, or a stride of images.
    """
    frames = frames_of(model)
    if frames is not None and isinstance(data, ClipData):
        data = data.with_sampling(Sampling(frames, stride))
    elif stride is not None:
        raise InputError(f"stride {stride} is of clips, and {data.root} holds none")
    check_data(model, data)
    return data


def check_data(model: nn.Module, data: ImageData) -> None:
    """Check that a data set gives what a model takes.

    Raises:
        InputError: for images where it takes clips, the reverse, or another number of frames.
    """
    frames = frames_of(model)
    given = data.sampling.frames if isinstance(data, ClipData) else None
    if given == frames or _says(model) is None:
        return
    takes = "images" if frames is None else f"clips of {frames} frames"
    gets = f"clips of {given} frames" if frames and given else inputs_called(given)
    raise InputError(f"the model takes {takes}; {data.root} gives {gets}")
