"""Model cards say what a model is, costs and gets right, and their snippet runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

from dynamicvit import DynamicViT, count_macs, segmenter, sparsify
from dynamicvit.checkpoints.card import model_card
from dynamicvit.evaluation import EvaluationResult
from dynamicvit.evaluation.segmentation import SegmentationResult
from families import BY_NAME, DEIT

pytestmark = pytest.mark.cards


def table(card: Any) -> dict[str, str]:
    return dict(re.findall(r"^\| (.+) \| (.+) \|$", card.text, re.M))


def saved(model: DynamicViT, folder: Path, **about: Any) -> ModelCard:
    model.save_pretrained(folder, model_card_kwargs=about)
    return ModelCard.load(folder / "README.md")


def run_snippet(card: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Beside the saved folder, as who downloaded it would."""
    monkeypatch.chdir(folder.parent)
    Image.new("L", (50, 40), 77).save("photo.jpg")
    [code] = re.findall(r"^```python\n(.*?)^```$", card.text, re.DOTALL | re.M)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec", dont_inherit=True), names)
    assert names["model"].keep_ratio == 0.5
    return names


def test_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DEIT.sparse().eval()
    result = EvaluationResult(0.5, 1.0, 0.75, 0.1, 0.6, 6, 6, (), 1.0)
    card = saved(model, tmp_path / "mine", result=result, images="zeros")
    said = table(card)
    assert said["GMACs at 64 × 80 pixels"].startswith(f"{count_macs(model) / 1e9:.3g}, dense")
    assert said["GMACs at 64 × 80 pixels"].endswith(f" {count_macs(model.backbone) / 1e9:.3g}")
    assert said["top-1"] == "50.00 % (6 images of zeros)"
    assert said["patches kept"].startswith("70.0 %")
    assert card.data.license == said["license of its published weights"] == "apache-2.0"
    names = run_snippet(card, tmp_path / "mine", monkeypatch)
    assert torch.equal(names["model"].at(0.7)(DEIT.images()), model(DEIT.images()))
    assert names["classes"].shape == (1, 1)


def test_what_becomes_of_the_others(tmp_path: Path) -> None:
    ours = table(saved(DEIT.sparse(policy="removed"), tmp_path / "ours"))
    assert ours["method"] == "`dynamicvit`: tokens that are not kept are removed"
    model = sparsify(DEIT.backbone(), 0.7, method="lookahead")
    said = table(saved(model, tmp_path / "untrained"))
    assert said["method"] == "`lookahead`: tokens that are not kept merge into kept ones"


def test_a_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = segmenter(DEIT.sparse(), num_classes=3).eval()
    result = SegmentationResult(0.25, {"sky": 0.2, "hair": 0.3}, None, None, 2, 2, (), 1.0)
    card = saved(model, tmp_path / "mine", result=result, license="mit")
    assert card.data.license == "mit"
    assert table(card)["mIoU"] == "25.00 % (2 images)"
    assert not any(what.startswith(" ") for what in table(card))
    names = run_snippet(card, tmp_path / "mine", monkeypatch)
    assert names["classes"].shape == (40, 50)


@pytest.mark.parametrize("name", ["inflated_augreg", "hf_videomae"])
def test_a_model_of_clips(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its snippet reads a video; an inflated network says whose license it has."""
    pytest.importorskip("av")
    from clips import write_clip

    model = BY_NAME[name].sparse().eval()
    card = saved(model, tmp_path / "mine")
    said = table(card)
    frames = model.bound.frames
    [macs] = [value for what, value in said.items() if what.endswith(f"pixels, {frames} frames")]
    assert macs.startswith(f"{count_macs(model) / 1e9:.3g}, dense")
    if name == "inflated_augreg":
        assert said["backbone"].endswith(f"an image network inflated to clips of {frames} frames")
        assert said["license of the image network's published weights"] == card.data.license
    else:
        assert said["license of its published weights"] == "not recorded"
    write_clip(tmp_path / "clip.mp4", 3 * frames)
    names = run_snippet(card, tmp_path / "mine", monkeypatch)
    assert names["clips"][0].image.shape == model.bound.input_shape()
    assert names["classes"].shape == (1, 1)


def test_what_nobody_knows_is_not_said(tmp_path: Path) -> None:
    model = sparsify(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2), 1.0)
    model.backbone.pretrained_cfg = {
        **model.backbone.pretrained_cfg,
        "license": None,
    }
    card = saved(model, tmp_path)
    assert card.data.license is None
    assert table(card)["accuracy"] == "not measured"
    assert table(card)["license of its published weights"] == "not recorded"


@pytest.mark.parametrize("name", ["hf_vit", "lvvit", "beit"])
def test_other_libraries_and_families(name: str) -> None:
    """What they cost is counted for every family by the tests of costs."""
    said = table(model_card(BY_NAME[name].sparse(), "name"))
    [macs] = [value for what, value in said.items() if what.startswith("GMACs")]
    assert [float(number) > 0 for number in macs.split(", dense ")] == [True, True]
    assert said["backbone"]
