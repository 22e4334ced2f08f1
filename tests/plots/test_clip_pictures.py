"""Pictures of clips: dropped tubelets look alike in all frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageSequence

from dynamicvit import sparsify
from dynamicvit.plots.clips import visualize_clip
from families import BY_NAME


def test_dropped_tubelets_are_as_gray_in_every_frame(tmp_path: Path) -> None:
    """Also where some frames alone would count as dark, and others not."""
    pytest.importorskip("matplotlib")
    family = BY_NAME["inflated_augreg"]
    model = sparsify(family.backbone(), [0.1], [1], method="class-attention").eval()
    brightness = torch.linspace(0.2, 0.35, family.frames)  # around where an image is dark
    clip = (brightness[:, None, None, None].expand(family.shape) - 0.5) / 0.5
    visualize_clip(model, clip, tmp_path / "clip.png")
    with Image.open(tmp_path / "clip.gif") as gif:
        shown = [frame.convert("L") for frame in ImageSequence.Iterator(gif)]
    assert len(shown) == family.frames
    grays = [frame.crop((frame.width // 2, 0, *frame.size)).getextrema()[1] for frame in shown]
    assert max(grays) - min(grays) < 30, grays
