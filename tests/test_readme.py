"""The Python of README.md and of pages of docs/ runs, on a small model in place of DeiT-S."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.optim import create_optimizer_v2
from torch import nn

from dynamicvit import DynamicViT, TrainingObjective, sparsify
from exports import shallow
from pictures import noise_folders

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"img_size": 64, "depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 4}


def backbone() -> nn.Module:
    return timm.create_model("deit_tiny_patch16_224", **SMALL)


def run(page: str, names: dict[str, Any], changed: dict[str, str]) -> dict[str, Any]:
    """A page's blocks, in order, with words changed so that little is computed."""
    text = (ROOT / page).read_text(encoding="utf-8")
    code = "".join(re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.M))
    for said, small in changed.items():
        assert said in code
        code = code.replace(said, small)
    exec(compile(code, page, "exec", dont_inherit=True), names)
    return names


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What pages take for granted: images in the current folder and in memory, a model."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "validation"):
        noise_folders(tmp_path / folder, classes=4, each=2)
    pixels = np.random.default_rng(0).integers(0, 256, (80, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    return {
        "images": torch.randn(2, 3, 64, 64),
        "model": sparsify(backbone(), 0.7, method="dynamicvit"),
        "recipe": ["images=4", "batch_size=2"],
        "small": SMALL,
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.usefixtures("traced_once")
def test_the_readme(names: dict[str, Any]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "nncf"):
        pytest.importorskip(package)
    changed = {
        '"deit_small_patch16_224", pretrained=True': '"deit_tiny_patch16_224", **small',
        '"deit_small_patch16_224")': "sparsify(backbone, 0.7, method='dynamicvit'), "
        "overrides=recipe, workers=0)",
        "dense=True)": "dense=True, workers=0)",
        '(model, "model.onnx")': '(least, "model.onnx", batch=2)',  # a known size: written faster
        '(model, "int8.onnx"': '(least, "int8.onnx", batch=2',
        'calibrate="photos")': 'calibrate="photos", calibration_images=4, least_agreement=0)',
    }
    names["least"] = shallow()
    run("README.md", names, changed)
    assert {Path(file).is_file() for file in ("kept.png", "model.onnx", "int8.onnx")} == {True}
    assert names["output"].full_map.shape == (2, 4, 4, 48)
    assert [tuple(each.shape) for each in names["maps"]] == [(2, 48, 4, 4)] * 3
    assert names["made"].precision == "int8"
    assert names["result"].images == 8


def test_training(names: dict[str, Any]) -> None:
    pytest.importorskip("timm.task")
    tracker = Tracker()
    changed = {
        '"deit_small_patch16_224", pretrained=True': '"deit_tiny_patch16_224", **small',
        '"deit_small_patch16_224", overrides=["images=4000"]': "model, overrides=recipe, workers=0",
        '"deit_small_patch16_224", recipe': "model, overrides=recipe, workers=0, recipe",
        'load("deit_small_patch16_224"': "load(model.backbone",
        "load(backbone": "load(model.backbone",
    }
    loader = [(names["images"], torch.tensor([0, -1]))]
    run(
        "docs/training.md", names | {"device": "cpu", "loader": loader, "tracker": tracker}, changed
    )
    by_hand, *steps = tracker.seen
    assert by_hand["total"] > by_hand["classification"] > 0
    assert [step["loss/total"] > 0 for step in steps] == [True, True]
    assert DynamicViT.from_pretrained("runs/mine").keep_ratio == 0.7
    assert Path("runs/frozen/addon.safetensors").stat().st_size < 1e5


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of timm's own code
def test_timms_script_takes_the_page_s_task(names: dict[str, Any]) -> None:
    """What an epoch of train.py does with a task."""
    pytest.importorskip("timm.task")
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(from timm.task.*?)^```$", text, re.DOTALL | re.M)
    made: dict[str, Any] = names | {
        "torch": torch,
        "device": "cpu",
        "TrainingObjective": TrainingObjective,
    }
    exec(code, made)
    task = made["task"].train()
    before = names["model"].backbone.head.weight.clone()
    optimizer = create_optimizer_v2(
        task.get_trainable_module().model, "adamw", lr=0.1, layer_decay=0.5
    )
    result = task(names["images"], torch.tensor([0, 1]))
    result["loss"].backward()
    optimizer.step()
    assert not torch.equal(names["model"].backbone.head.weight, before)
    logits = task.get_eval_model().eval()(names["images"])
    assert logits.shape == result["output"].shape == (2, 4)


class Tracker:
    """Stands for wandb and its like."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.seen.append(values)


def test_features(names: dict[str, Any]) -> None:
    pytest.importorskip("pytorch_grad_cam")
    pytest.importorskip("captum")
    changed = {
        '"dynamicvit_deit_small_patch16_224", pretrained=True': (
            '"dynamicvit_deit_tiny_patch16_224", **small'
        ),
        '"deit_small_patch16_224", pretrained=True': '"deit_tiny_patch16_224", img_size=64',
        'backbone="dynamicvit_deit_small_patch16_224"': (
            'backbone="dynamicvit_deit_tiny_patch16_224"'
        ),
        "num_labels=19": "num_labels=19, hidden_size=8",
    }
    names["model"].eval()
    made = run("docs/features.md", names, changed)
    model, tokens = names["model"], made["tokens"]
    assert made["restored"].shape == (2, 4, 4, 192)
    assert [tuple(each.shape[2:]) for each in made["wide"]] == [(4, 6)] * 12
    assert made["logits"].shape == made["segmented"].shape == (2, 19, 64, 64)
    assert made["upernet"].backbone._backbone.model is made["restoring"]
    classifier = model.get_classifier()
    assert torch.allclose(classifier(made["embeddings"]), model(names["images"]), atol=1e-5)
    kept = int(model.forward_pruned(names["images"]).kept[-1][0].sum())
    assert made["patches"].shape == (2, kept, 48)
    places = tokens.kept_index()
    held = made["dense"].flatten(1, 2).gather(1, places[..., None].expand(-1, -1, 48))
    assert torch.allclose(held, made["patches"], atol=1e-5)
    assert [tuple(each.shape) for each in made["maps"]] == [(2, 48, 4, 4)] * 3
    assert set(made["by_name"]) == {"image_features", "image_intermediates"}
    assert [tuple(each.shape) for each in made["levels"]] == [(2, 48, 4, 4)] * 3
    assert made["channels"] == [48] * 3
    assert made["heat"].shape == (2, 64, 64)
    assert made["by_patch"].shape == (2, kept)


def test_tools(names: dict[str, Any]) -> None:
    pytest.importorskip("peft")
    made = run("docs/tools.md", names | {"labels": torch.tensor([0, 1])}, {})
    assert made["outputs"][0].shape[:2] == (2, 1 + int(16 * 0.7**3 + 0.5))
    loaded = DynamicViT.from_pretrained("runs/merged")
    assert torch.allclose(loaded(names["images"]), made["merged"](names["images"]), atol=1e-5)
    assert all(value.is_meta for value in names["model"].parameters())


def test_comparison(names: dict[str, Any]) -> None:
    changed = {
        '"PHOTOS", "comparison"': '"photos", "comparison", train=False, timing=False, workers=0',
        "macs=[0.64, 0.48]": "macs=[0.64]",  # so small a network can't have less
    }
    run("docs/comparison.md", names | {"backbone": backbone()}, changed)
    assert Path("comparison", "comparison.csv").is_file()


def test_tuning(names: dict[str, Any]) -> None:
    names["model"] = sparsify(backbone(), 0.7, method="lookahead")
    changed = {'"photos", macs=0.6': "torch.randn(32, 3, 64, 64), macs=0.8, evaluations=3"}
    found = run("docs/tuning.md", names | {"torch": torch}, changed)["found"]
    made = sparsify(backbone(), schedule="schedule.json")
    assert made.schedule == found.schedule


def test_streaming_and_tiles(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run(
        "docs/performance.md", names, {"calibrate(images)": "calibrate(images.repeat(16, 1, 1, 1))"}
    )
    assert isinstance(names["model"], DynamicViT)
    names["model"].eval()
    run("docs/streaming.md", names, {'"clip.mp4"': '"validation/0"'})
    assert "'frames': 2" in capsys.readouterr().out


def test_video(names: dict[str, Any]) -> None:
    changed = {
        '"vit_tiny_patch16_224", frames=8, tubelet=2, pretrained=False': "backbone, frames=8",
        "224, 224": "64, 64",
    }
    made = run("docs/video.md", names | {"backbone": backbone()}, changed)
    assert made["logits"].shape == (2, 4)
    assert made["model"].forward_pruned(made["clips"]).grid == (4, 4, 4)


def test_predict(names: dict[str, Any]) -> None:
    pytest.importorskip("pyarrow")
    sparsify(backbone(), 0.7, method="dynamicvit").save_pretrained("runs/mine")
    run("docs/predict.md", names, {})
    assert names["found"].images == len(names["best"]) + 1 == 9
    assert len(Path("photos.csv").read_text().splitlines()) == 10
    assert names["kept"].shape == (8, 3, 4, 4)
    assert (names["first_stage"] == names["kept"][:, 0].reshape(8, 16)).all()
    assert names["how_often"].shape == (4, 4)
