"""The pictures of a run as data URLs: what each stage keeps, keep scores, maps of classes."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit.app.compared import SideBySide
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.plots import style
from dynamicvit.plots.clips import frame_output
from dynamicvit.plots.maps import overlay
from dynamicvit.plots.page import shown_stages
from dynamicvit.plots.patches import after_stage, as_picture, as_rgb, is_dark, score_map
from dynamicvit.utils.optional import need
from dynamicvit.utils.words import percent

#: Milliseconds that a frame of a clip is shown, the quality of pictures, and the least side of a
#: map of scores in pixels.
_SHOWN, _QUALITY, _LEAST = 250, 85, 192


class Picture(NamedTuple):
    """A picture with its title and a second line, as a data URL; a clip's moves."""

    title: str
    note: str
    url: str


def pictures_of(run: SideBySide, pixels: Tensor) -> list[list[Picture]]:
    """Rows of pictures: the input and each stage; keep scores, if there are any; maps, likewise.

    Args:
        run: of this input.
        pixels: ``(1, C, H, W)`` in [0, 1], or ``(T, C, H, W)`` of a clip.
    """
    pixels = torch.stack([as_rgb(each.float().cpu()) for each in pixels])
    output = run.output if len(run.output.grid) == 2 else frame_output(run.output, len(pixels))
    stages = shown_stages(len(output.kept))
    rows = [_kept(output, pixels, stages, math.prod(run.output.grid))]
    if output.keep_scores:
        rows.append([_scores(output, stage) for stage in stages])
    if run.sparse.logits.ndim == 3:
        rows.append([_map(run, pixels, name) for name in ("dense", run.method)])
    return rows


def _kept(
    output: PrunedOutput, pixels: Tensor, stages: Sequence[int], patches: int
) -> list[Picture]:
    dark = is_dark(torch.cat(list(pixels), dim=1))  # one for all frames
    frames = f" in {len(pixels)} frames" if len(pixels) > 1 else ""
    shown = [Picture("input", f"{patches} patches{frames}", data_url(pixels))]
    for stage in stages:
        left = [
            after_stage(picture, kept.cpu(), None, output.grid, dark)
            for picture, kept in zip(pixels, output.kept[stage], strict=True)
        ]
        share = percent(float(output.kept[stage].float().mean()), 0)
        shown.append(Picture(f"stage {stage + 1}", f"{share} kept", data_url(torch.stack(left))))
    return shown


def _scores(output: PrunedOutput, stage: int) -> Picture:
    """The order of a stage's keep scores, yellow for the patches that would be kept first."""
    colors = need("matplotlib", "app").colormaps[style.SCORES]
    maps = [score_map(scores.cpu(), output.grid) for scores in output.keep_scores[stage]]
    ranks = torch.stack(maps)
    painted = torch.from_numpy(colors(ranks.nan_to_num(0).numpy())[..., :3]).movedim(-1, 1)
    gone = ranks.isnan()[:, None]
    painted = torch.where(gone, torch.full_like(painted, 0.5), painted).float()
    times = -(-_LEAST // min(output.grid))
    wide = F.interpolate(painted, scale_factor=times, mode="nearest")
    note = "gray: dropped before" if gone.any() else "yellow: kept first"
    return Picture(f"scores {stage + 1}", note, data_url(wide))


def _map(run: SideBySide, pixels: Tensor, name: str) -> Picture:
    side = run.dense if name == "dense" else run.sparse
    seen = overlay(name, pixels, side.logits[None])
    return Picture(f"map, {name}", seen.title[1], data_url(seen.pictures))


def data_url(pictures: Tensor) -> str:
    """``(T, 3, H, W)`` in [0, 1] as a data URL; more than one picture moves."""
    images = [as_picture(picture.clamp(0, 1)) for picture in pictures]
    file, how = io.BytesIO(), dict[str, Any](quality=_QUALITY, method=0)
    if len(images) > 1:
        how.update(save_all=True, append_images=images[1:], duration=_SHOWN, loop=0)
    images[0].save(file, "WEBP", **how)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"
