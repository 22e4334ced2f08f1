"""From a file to the tensor that a model wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer

from dynamicvit import InputError, sparsify
from dynamicvit.data import eval_transform, read_image, train_transform
from families import DEIT
from pictures import truncated_jpeg


@pytest.fixture(scope="module")
def deit() -> torch.nn.Module:
    return sparsify(timm.create_model("deit_tiny_patch16_224", depth=4), method="dynamicvit")


def test_eval_transform_is_timms_with_the_models_settings(deit: torch.nn.Module) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    # crop_pct 0.9: short side 248, bicubic, then the center 224.
    resized = image.resize((400 * 248 // 300, 248), Image.Resampling.BICUBIC)
    left, top = round((resized.width - 224) / 2), (248 - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224))) / 255
    expected = (expected - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    tensor = eval_transform(deit)(image)
    assert tensor.shape == (3, 224, 224)
    assert np.abs(tensor.permute(1, 2, 0).numpy() - expected).max() < 0.03
    assert not torch.equal(eval_transform(deit, crop_pct=0.875)(image), tensor)


@pytest.mark.parametrize("make", [eval_transform, train_transform])
def test_the_size_is_the_models_unless_given(make) -> None:
    image = Image.new("RGB", (90, 70))
    small = VisionTransformer(img_size=(32, 48), patch_size=8, embed_dim=32, depth=4, num_heads=2)
    assert make(small)(image).shape == (3, 32, 48)
    assert make(sparsify(small, method="dynamicvit"))(image).shape == (3, 32, 48)
    assert make(small, 64)(image).shape == (3, 64, 64)
    assert make(small, (40, 16))(image).shape == (3, 40, 16)
    with pytest.raises(InputError, match="got 0"):
        make(small, 0)


@pytest.mark.parametrize("crop_pct", [0, 1.5, float("nan")])
def test_crop_pct_outside_its_range(deit: torch.nn.Module, crop_pct: float) -> None:
    with pytest.raises(InputError, match="crop_pct"):
        eval_transform(deit, crop_pct=crop_pct)


def test_train_transform_crops_flips_and_augments(deit: torch.nn.Module) -> None:
    names = [type(step).__name__ for step in train_transform(deit).transforms]
    plain = ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip"]
    assert names == [*plain, "MaybeToTensor", "Normalize"]
    more = train_transform(deit, auto_augment="rand-m9-n2-mstd0.5", re_prob=0.25, scale=(0.5, 1))
    names = [type(step).__name__ for step in more.transforms]
    assert "RandAugment" in names
    assert "RandomErasing" in names
    assert more.transforms[0].scale == (0.5, 1)
    jitter = train_transform(deit, color_jitter=0.3)
    assert "ColorJitter" in [type(step).__name__ for step in jitter.transforms]


@pytest.mark.parametrize(
    ("wrong", "named"), [({"color": 1}, "'color'"), ({"auto_augment": "rand-x9"}, "rand-x9")]
)
def test_train_transform_refuses(deit: torch.nn.Module, wrong: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        train_transform(deit, **wrong)


def test_posterize_keeps_a_bit() -> None:
    """timm's RandAugment reaches zero bits, an error from Pillow 13 on."""
    transform = train_transform(DEIT.backbone(), auto_augment="rand-m10-n2-inc1")
    (posterize,) = (
        op for step in transform.transforms for op in getattr(step, "ops", ())
        if op.name.startswith("Posterize")
    )  # fmt: skip
    posterize.prob = 1.0
    image = Image.fromarray(np.array([[[0, 127, 128], [200, 255, 1]]], dtype=np.uint8))
    assert np.asarray(posterize(image)).tolist() == [[[0, 0, 128], [128, 128, 0]]]


# ---------------------------------------------------------------- reading a file


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("RGB", (20, 10)).save(tmp_path / "side.jpg", exif=exif)
    assert read_image(tmp_path / "side.jpg").size == (10, 20)
    assert read_image(tmp_path / "side.jpg", "L").mode == "L"


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for path in (tmp_path / "text.png", tmp_path / "none.png", truncated_jpeg(tmp_path / "a.jpg")):
        with pytest.raises(InputError, match=f"^{path} can't be read as an image \\(.+\\)$"):
            read_image(path)
