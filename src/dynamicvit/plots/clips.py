"""The patches that a model keeps of a clip: a contact sheet of its frames, and a moving picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.data import ClipData, Sampling, Unreadable, class_names, frames_of
from dynamicvit.data.transforms import unnormalized
from dynamicvit.errors import InputError
from dynamicvit.plots.page import draw
from dynamicvit.plots.patches import as_picture, as_rgb, dim, is_dark
from dynamicvit.plots.visualized import Visualization, method_of
from dynamicvit.utils.files import atomic_write
from dynamicvit.utils.outputs import MARK

#: Milliseconds that a frame is shown, and the least height of a picture in pixels.
_SHOWN, _LEAST = 250, 160


@torch.no_grad()
def visualize_clip(
    model: PrunedClassifier,
    clip: Tensor | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    score_stage: int = 0,
    image_size: int | tuple[int, int] | None = None,
    crop_pct: float | None = None,
) -> Visualization:
    """Draw the tubelets that a model keeps of a clip, a row for each of its frames.

    A tubelet is drawn in all of its frames. The map shows the order of the scores inside a frame.

    Args:
        model: in ``eval()``.
        clip: ``(T, C, H, W)``, normalized; or a video file, whose frames are spread over it.
        path: of the sheet, as for :func:`~dynamicvit.plots.visualization.visualize`; a GIF of the
            frames, beside them as the last stage leaves them, is written with the same name.
        names: of the classes; by default the model's own.
        score_stage: stage of the map of keep scores, from 0.
        image_size: of a file, as for :func:`~dynamicvit.data.clip_eval_transform`.
        crop_pct: likewise.

    Returns:
        The figure; its ``output`` is that of the clip.

    Raises:
        InputError: for a file that can't be read, or a model of images.
    """
    frames = frames_of(model)  # type: ignore[arg-type]
    if frames is None:
        raise InputError("the model takes images, not clips: visualize")
    if not isinstance(clip, Tensor):
        clip = _read(model, Path(clip), frames, image_size, crop_pct)
    like = next((weight for weight in model.parameters()), clip)
    output = model.forward_pruned(clip[None].to(like.device))
    dense = None
    if isinstance(model, DynamicViT):
        dense = model.forward_dense(clip[None].to(like.device)).logits
    if names is None:
        names = class_names(model)
    pictures = unnormalized(model, clip).cpu()
    by_frame = frame_output(output, frames)
    dark = is_dark(torch.cat([as_rgb(picture) for picture in pictures], dim=1))  # one for all
    method = method_of(model) or "pruned"
    figure = draw(pictures, by_frame, method=method, score_stage=score_stage, dark=dark)
    found = Visualization(figure, output, dense, names)
    if path is not None:
        found.save(path)
        with atomic_write(Path(path).with_suffix(".gif")) as draft:
            first, *rest = moving(pictures, by_frame, dark)
            how: dict[str, Any] = {"duration": _SHOWN, "loop": 0, "comment": MARK.encode()}
            first.save(draft, "GIF", save_all=True, append_images=rest, **how)
    return found


def frame_output(output: PrunedOutput, frames: int) -> PrunedOutput:
    """What a clip's output says of each of its frames, as of a batch of images.

    Args:
        output: of one clip, whose grid has times in front.
        frames: of the clip.
    """
    times, rows, columns = output.grid

    def each(values: Tensor) -> Tensor:
        return values.reshape(times, rows * columns).repeat_interleave(frames // times, dim=0)

    return PrunedOutput(
        output.logits.expand(frames, -1),
        tuple(each(kept) for kept in output.kept),
        tuple(each(scores) for scores in output.keep_scores),
        (rows, columns),
    )


def moving(pictures: Tensor, output: PrunedOutput, dark: bool) -> list[Image.Image]:
    """Each frame, and beside it what the last stage leaves of it.

    Args:
        pictures: ``(T, C, H, W)`` in [0, 1].
        output: of :func:`frame_output`.
        dark: whether the frames count as dark.
    """
    shown = []
    for index, picture in enumerate(pictures):
        kept = output.kept[-1][index].cpu() if output.kept else None
        left = as_rgb(picture) if kept is None else dim(picture, kept, output.grid, dark)
        both = torch.cat([as_rgb(picture), left], dim=2)
        image = as_picture(both)
        times = -(-_LEAST // image.height)
        shown.append(image.resize((image.width * times, image.height * times), Image.NEAREST))
    return shown


def _read(
    model: Any,
    path: Path,
    frames: int,
    image_size: int | tuple[int, int] | None,
    crop_pct: float | None,
) -> Tensor:
    """``(T, C, H, W)``, normalized: the clip of a file."""
    data = ClipData(path, sampling=Sampling(frames), labeled=False)
    sample = data.for_evaluation(model, image_size, crop_pct)[0]
    if isinstance(sample, Unreadable):
        raise InputError(f"{sample.path}: {sample.reason}")
    return sample.image
