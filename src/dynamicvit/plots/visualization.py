"""Run a model on images and draw the patches that it keeps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dynamicvit.checkpoints.loading import load
from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.data import class_names, eval_transform, frames_of, read_image
from dynamicvit.data.transforms import unnormalized
from dynamicvit.errors import InputError
from dynamicvit.plots.clips import visualize_clip
from dynamicvit.plots.maps import overlay
from dynamicvit.plots.page import draw
from dynamicvit.plots.visualized import Visualization, method_of

ImageFile = str | os.PathLike[str] | Image.Image


@torch.no_grad()
def visualize(
    model: PrunedClassifier | str | os.PathLike[str],
    images: Tensor | ImageFile | Sequence[ImageFile],
    path: str | os.PathLike[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    masks: Tensor | None = None,
    score_stage: int = 0,
    show_merged: bool = False,
    image_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
    mean_std: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Visualization:
    """Draw the patches that a model keeps of images, and its pruned and dense predictions.

    For a model of clips the tubelets of one clip, a row for each of its frames, and a GIF beside
    the picture (:func:`~dynamicvit.plots.clips.visualize_clip`).

    Args:
        model: in ``eval()``; or a name or path for :func:`~dynamicvit.load`.
        images: one or more image files or PIL images, or ``(B, C, H, W)`` normalized. For a model
            of clips one video file, or ``(T, C, H, W)`` normalized.
        path: of the picture; ``.png``, ``.pdf``, ``.svg``, or no ending for PNG and PDF.
        names: of the classes; by default the model's own.
        labels: class index of each image.
        masks: ``(B, H, W)``, class index of each pixel, below 0 for none: drawn beside the map of a
            segmentation model.
        score_stage: stage of the map of keep scores, from 0.
        show_merged: draw merged patches as copies of the kept patch that they are part of.
        image_size: of files and PIL images, as for :func:`~dynamicvit.data.eval_transform`.
        crop_pct: likewise.
        mean_std: normalization of a tensor; by default that of the model's ``pretrained_cfg``.

    Raises:
        InputError: for unreadable images or of a wrong shape, for a path that can't be written, and
            for a model of clips with an argument that is for images.
    """
    if isinstance(model, str | os.PathLike):
        model = load(model)
    if frames_of(model) is not None:  # type: ignore[arg-type]
        for name, given in (("labels", labels), ("masks", masks), ("mean_std", mean_std)):
            if given is not None:
                raise InputError(f"{name} are for images, and the model takes clips")
        how: Any = {"names": names, "score_stage": score_stage}
        how |= {"image_size": image_size, "crop_pct": crop_pct}
        return visualize_clip(model, _one_clip(images), path, **how)
    if not isinstance(images, Tensor):
        images = _prepare(model, images, image_size, crop_pct)
    output = model.forward_pruned(images)
    dense_logits = model.forward_dense(images).logits if isinstance(model, DynamicViT) else None
    if names is None:
        names = class_names(model)
    pictures, method = unnormalized(model, images, mean_std), method_of(model) or "pruned"
    overlays = []
    if output.logits.ndim == 4:  # a map says its classes itself
        maps = {method: output.logits} | ({} if dense_logits is None else {"dense": dense_logits})
        maps |= {} if masks is None else {"truth": masks}
        overlays = [overlay(whose, pictures, each, names) for whose, each in maps.items()]
    figure = draw(
        pictures,
        output,
        method=method,
        names=None if overlays else names or None,
        overlays=overlays,
        labels=labels,
        dense_logits=dense_logits,
        score_stage=score_stage,
        show_merged=show_merged,
    )
    found = Visualization(figure, output, dense_logits, names)
    if path is not None:
        found.save(path)
    return found


def _one_clip(clip: Any) -> Tensor | str | os.PathLike[str]:
    """The one clip or file that is given, also as a batch or list of one.

    Raises:
        InputError: for several, or for no clip.
    """
    if isinstance(clip, str | os.PathLike):
        return clip
    if isinstance(clip, Tensor) and clip.ndim == 4:
        return clip
    if isinstance(clip, Image.Image) or len(clip) != 1:
        raise InputError("the model takes clips: give one video file, or (T, C, H, W)")
    return clip[0]


def _prepare(
    model: PrunedClassifier,
    images: ImageFile | Sequence[ImageFile],
    image_size: int | tuple[int, int] | None,
    crop_pct: float | None,
) -> Tensor:
    """``(B, C, H, W)``, normalized, on the model's device."""
    several = [images] if isinstance(images, str | os.PathLike | Image.Image) else images
    transform = eval_transform(model, image_size, crop_pct)
    prepared = [
        transform(each if isinstance(each, Image.Image) else read_image(Path(each), None))
        for each in several
    ]
    device = next((weight.device for weight in model.parameters()), None)
    return torch.stack(prepared).to(device)
