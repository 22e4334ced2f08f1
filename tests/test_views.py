"""A model of clips is evaluated over views, behind a model that only looks at brightness."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from clips import write_clip
from dynamicvit import InputError
from dynamicvit.data import ClipData, ImageData, Loader, Sampling, Views, data_for
from dynamicvit.evaluation.accuracy import evaluate
from dynamicvit.evaluation.views import over_views
from families import DEIT
from pictures import class_folders

FRAMES = 4


class Brightness(nn.Module):
    """Class 1 for bright clips, class 0 for dark ones."""

    pretrained_cfg: ClassVar = {
        "input_size": (3, 24, 24),
        "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
        "crop_pct": 1.0,
    }
    num_classes = 2

    def __init__(self, frames: int | None = FRAMES) -> None:
        super().__init__()
        self.bound = SimpleNamespace(frames=frames)
        self.scale = nn.Parameter(torch.tensor(20.0))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, clips: Tensor) -> Tensor:
        self.seen.append(tuple(clips.shape))
        level = self.scale * (clips.mean((1, 2, 3, 4)) - 0.5)
        return torch.stack([-level, level], dim=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clips that grow brighter: with 30 frames from black to nearly white, with 8 all dark."""
    for name in ("dark", "growing"):
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / "0.avi", 8 if name == "dark" else 30, codec="mjpeg")
    return tmp_path


def test_probabilities_are_averaged_not_logits() -> None:
    logits = torch.tensor([[[9.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    model = Turns(logits)
    found = over_views(model, torch.zeros(1, 3, 4, 3, 8, 8))
    assert torch.allclose(found.exp(), logits.softmax(-1).mean(1), atol=1e-6)
    assert torch.allclose(found.exp().sum(-1), torch.ones(1))
    one = over_views(Turns(logits), torch.zeros(1, 4, 3, 8, 8))
    assert torch.equal(one, logits[:, 0])
    # Impossible in one view, so that the mean of logits would have no limit.
    sure = torch.tensor([[[200.0, -200.0], [-0.1, 0.1], [-0.1, 0.1]]])
    assert over_views(Turns(sure), torch.zeros(1, 3, 4, 3, 8, 8)).isfinite().all()


class Turns(nn.Module):
    """Gives the logits ``(B, V, classes)`` of one view after the other."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.views = iter(logits.unbind(1))

    def forward(self, clips: Tensor) -> Tensor:
        return next(self.views)


def test_top1_over_views_is_that_of_the_mean(folder: Path) -> None:
    model = Brightness()
    data = ClipData(folder, sampling=Sampling(FRAMES, stride=1), views=Views(5, 3))
    result = evaluate(model, data, batch_size=2, workers=0, image_size=24)
    assert model.seen == [(2, FRAMES, 3, 24, 24)] * 15
    assert result.views == Views(5, 3)
    assert ("views (clips × crops)", "5 × 3") in list(result.rows())
    prepared = data.for_evaluation(model, 24)
    expected = [
        int(over_views(model, prepared[i].image[None]).argmax() == i)  # type: ignore[union-attr]
        for i in range(2)
    ]
    assert result.top1 == sum(expected) / 2
    loader = Loader(prepared, 2)
    assert evaluate(model, loader).top1 == result.top1
    assert evaluate(model, loader).views == Views(5, 3)
    dense = evaluate(model, loader, dense=model)
    assert dense.agreement == 1
    assert dense.divergence == 0


def test_views_change_the_answer(folder: Path) -> None:
    """The middle of the clip that grows brighter is dark; its last frames are bright."""
    model = Brightness()

    def bright(views: Views) -> float:
        data = ClipData(folder / "growing", sampling=Sampling(4, stride=1), views=views)
        image = data.for_evaluation(model, 24)[0].image[None]  # type: ignore[union-attr]
        with torch.no_grad():
            return float(over_views(model, image).softmax(-1)[0, 1])

    assert bright(Views(1, 1)) < 0.5
    assert bright(Views(2, 1)) == pytest.approx(0.5, abs=0.1)


def test_a_name_is_opened_as_what_the_model_takes(folder: Path) -> None:
    model = Brightness()
    data = data_for(model, folder)
    assert isinstance(data, ClipData)
    assert data.sampling == Sampling(FRAMES)
    assert evaluate(model, str(folder), workers=0, image_size=24).views == Views(1, 1)
    assert model.seen[-1] == (2, FRAMES, 3, 24, 24)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"sampling": Sampling(8)}, "clips of 4 frames; .* gives clips of 8 frames"),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_clips_that_the_model_does_not_take(folder: Path, given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(Brightness(), ClipData(folder, **given), workers=0)
    with pytest.raises(InputError, match="4 frames, got 8"):
        data_for(Brightness(), folder, **given)


def test_images_and_clips_are_not_confused(folder: Path, tmp_path: Path) -> None:
    images = class_folders(tmp_path / "images")
    with pytest.raises(InputError, match=r"clips of 4 frames; .* gives images"):
        evaluate(Brightness(), ImageData(images), workers=0)
    with pytest.raises(InputError, match=r"takes images; .* gives clips$"):
        evaluate(DEIT.sparse(), ClipData(folder), workers=0)
    with pytest.raises(InputError, match="no sampling"):
        data_for(DEIT.sparse(), images, views=Views(5, 3))
    batches = Loader(ClipData(folder, views=Views(2, 1)), 2)
    with pytest.raises(InputError, match="one view"):
        evaluate(DEIT.sparse(), batches, save_kept=tmp_path / "kept.npz")
