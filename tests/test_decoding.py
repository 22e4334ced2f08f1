"""The one decoder: every kind of file gives the same picture, in every command."""

from __future__ import annotations

import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynamicvit import DynamicViT, InputError
from dynamicvit.data import ImageData, Loader, eval_transform, read_image, train_transform
from dynamicvit.data.decoding import decode, image_endings
from dynamicvit.plots.visualization import visualize
from dynamicvit.runtimes.images import calibration_of
from exports import ignore_deprecations
from families import DEIT
from pictures import WORKERS, write_kinds

Main = Callable[..., int]

pytestmark = [WORKERS, ignore_deprecations]

SIZE = DEIT.size


def gray(seed: int) -> np.ndarray:
    """Noise of the model's size with a white corner."""
    pixels = np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)
    pixels[:9, :9] = 255
    return pixels


# ---------------------------------------------------------------- the rule


def test_every_kind_of_file_is_the_same_picture(tmp_path: Path) -> None:
    files = write_kinds(tmp_path, gray(0))
    assert len(files) == 16
    for path in files:
        for content in (path, path.read_bytes()):
            assert np.array_equal(np.asarray(decode(content, "L")), gray(0)), path.name
        color = np.asarray(decode(path, "RGBA"))
        opaque = color[..., 3] == 255
        clear = gray(0) == 255 if path.name == "palette.png" else np.zeros(SIZE, bool)
        assert np.array_equal(opaque, ~clear), path.name
        assert (color[..., :3][opaque] == gray(0)[..., None][opaque]).all(), path.name


def test_every_source_gives_that_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install 'dynamicvit[data]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "images"
    files = write_kinds(root / "ant", gray(0))
    table = {"image": [{"bytes": path.read_bytes()} for path in files]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path / "saved")
    with tarfile.open(tmp_path / "images.tar", "w") as archive:
        archive.add(root, "images")
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as archive:
        for number, path in enumerate(files):
            archive.add(path, f"{number:02}{path.suffix}")
    for source in (
        str(root),
        f"{root}.tar",
        f"wds/{tmp_path}/shards",
        f"hfds/{tmp_path}/saved",
        f"torch/image_folder/{root}",
    ):
        (batch,) = Loader(ImageData(source, labeled=False), 16)
        assert len(batch) == 16, source
        expected = torch.tensor(gray(0) / 255, dtype=torch.float32).expand(3, -1, -1)
        assert torch.allclose(batch.images, expected.expand_as(batch.images)), source


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_however_the_camera_was_held(tmp_path: Path, orientation: int) -> None:
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :16] = 255, 0, 0
    pixels[:8, 16:] = 0, 255, 0
    upright = Image.fromarray(pixels)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=100, subsampling=0)
    read = decode(tmp_path / "photo.jpg")
    assert np.abs(np.asarray(read).astype(int) - pixels).max() < 8
    with Image.open(tmp_path / "photo.jpg") as opened:  # as a user gives it, or torchvision
        for given in (opened, opened.convert("RGB")):
            assert np.array_equal(np.asarray(decode(given)), np.asarray(read))
    assert decode(read) is read, "once is enough"


def test_gray_beyond_eight_bits_is_scaled_by_its_range(tmp_path: Path) -> None:
    for dtype, values, expected in (
        (np.uint16, [0, 257 * 100, 65535], [0, 100, 255]),
        (np.uint16, [0, 2048, 4095], [0, 128, 255]),  # a camera of 12 bits
        (np.uint16, [0, 8192, 16383], [0, 128, 255]),
        (np.uint16, [0, 200, 100], [0, 200, 100]),
        (np.int32, [-100, 0, 100], [0, 128, 255]),
        (np.int32, [0, 50000, 100000], [0, 128, 255]),
        (np.float32, [0, 0.5, 0.25], [0, 128, 64]),
        (np.float32, [0, 3000, 1500], [0, 255, 128]),
        (np.float32, [-1, 0, 1], [0, 128, 255]),
        (np.float32, [float("nan"), 2, float("inf")], [0, 0, 0]),
        (np.float32, [7, 7, 7], [0, 0, 0]),
    ):
        path = tmp_path / "gray.tif"
        Image.fromarray(np.array([values], dtype=dtype)).save(path)
        found = np.asarray(read_image(path, "L"))[0].astype(int)
        assert np.abs(found - expected).max() <= 1, (dtype, values)
        assert np.array_equal(np.asarray(read_image(path)), found[None, :, None].repeat(3, 2))


def test_what_is_transparent_is_white_and_the_fourth_channel(tmp_path: Path) -> None:
    pixels = np.array([[[10, 20, 30, 255], [200, 0, 0, 0], [100, 100, 100, 51]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    seen = np.asarray(read_image(tmp_path / "rgba.png")).astype(int)[0]
    assert np.abs(seen - [[10, 20, 30], [255, 255, 255], [224, 224, 224]]).max() <= 1
    assert np.array_equal(np.asarray(read_image(tmp_path / "rgba.png", "RGBA")), pixels)
    Image.fromarray(pixels[..., :3]).save(tmp_path / "key.png", transparency=(200, 0, 0))
    seen = np.asarray(read_image(tmp_path / "key.png"))[0]
    assert seen.tolist() == [[10, 20, 30], [255, 255, 255], [100, 100, 100]]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert np.asarray(read_image(tmp_path / "bits.png", "L")).tolist() == [[255, 0]]


def test_damaged_exif_is_no_damaged_image(tmp_path: Path) -> None:
    image = Image.fromarray(gray(0))
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\0\0"):
        image.save(tmp_path / "odd.png", exif=exif)
        assert np.array_equal(np.asarray(decode(tmp_path / "odd.png", "L")), gray(0))


def test_what_other_programs_would_have_to_decode_is_no_image(tmp_path: Path) -> None:
    endings = image_endings()
    assert {".jpg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".ppm"} <= endings
    assert not {".eps", ".pdf", ".h5", ".mpg", ".wmf", ".txt", ""} & endings
    Image.fromarray(gray(0)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.jpg")
    with pytest.raises(InputError, match=r"page\.jpg can't be read"):
        read_image(tmp_path / "page.jpg")


# ---------------------------------------------------------------- models of other channels


@pytest.fixture(scope="module", params=[1, 4])
def model(request: pytest.FixtureRequest) -> DynamicViT:
    model = DEIT.sparse(depth=1, stages=(0,), in_chans=request.param, num_classes=2)
    assert len(model.pretrained_cfg["mean"]) == 3, "timm describes the three channels it knows"
    return model


@pytest.fixture(scope="module")
def saved(model: DynamicViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, each of one picture in every kind of file."""
    root = tmp_path_factory.mktemp("kinds")
    for seed, name in enumerate(("ant", "bee")):
        for path in write_kinds(root / name, gray(seed)):
            if path.name == "palette.png":  # which a fourth channel tells from the others
                path.unlink()
    return root


@torch.no_grad()
def expected(model: DynamicViT, pixels: np.ndarray) -> torch.Tensor:
    """The probabilities ``(classes,)`` of a gray picture, by hand."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    mean, std = [*mean, sum(mean) / 3], [*std, sum(std) / 3]
    chosen = [3] if model.in_chans == 1 else [0, 1, 2, 3]
    values = torch.tensor(pixels / 255, dtype=torch.float32)
    planes = [values] if model.in_chans == 1 else [values] * 3 + [torch.ones_like(values)]
    normalized = [(plane - mean[c]) / std[c] for plane, c in zip(planes, chosen, strict=True)]
    return model(torch.stack(normalized)[None])[0].softmax(-1)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_path_gives_the_models_channels(model: DynamicViT, kinds: Path, workers: int) -> None:
    for make in (eval_transform, train_transform):
        transform = make(model)
        data = ImageData(kinds, transform=pickle.loads(pickle.dumps(transform)))
        batches = list(Loader(data, 15, num_workers=workers))
        assert [batch.images.shape for batch in batches] == [(15, model.in_chans, *SIZE)] * 2
    transform = eval_transform(model, crop_pct=1.0)
    (ant, bee) = Loader(ImageData(kinds, transform=transform), 15)
    assert (ant.images == ant.images[:1]).all()
    assert (bee.images == bee.images[:1]).all()
    with torch.no_grad():
        assert torch.allclose(model(ant.images[:1])[0].softmax(-1), expected(model, gray(0)))
    calibration = calibration_of(ImageData(kinds, labeled=False), transform, 4)
    assert calibration.images.shape == (4, model.in_chans, *SIZE)


def test_augmentation_of_all_kinds(model: DynamicViT) -> None:
    """Pillow has no equalize, posterize, ... for images with alpha."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50, 4), dtype=np.uint8))
    for augmentation in (
        {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5},
        {"auto_augment": "original"},
        {"auto_augment": "v0"},
        {"auto_augment": "augmix-m3-w3"},
        {"color_jitter": (0.4, 0.4, 0.4, 0.1), "grayscale_prob": 0.5, "gaussian_blur_prob": 0.5},
    ):
        transform = train_transform(model, 16, **augmentation)
        for _ in range(30):
            assert transform(image).shape == (model.in_chans, 16, 16)


def test_augmented_colors_leave_alpha_alone() -> None:
    model = DEIT.backbone(in_chans=4)
    transform = train_transform(
        model, 32, auto_augment="rand-m9-n3-inc1", scale=(1, 1), ratio=(1, 1)
    )
    for op in transform.transforms[2].ops:
        op.prob = 1.0
        if op.name.startswith(("Rotate", "Shear", "Translate")):
            op.aug_fn = lambda image, *_, **__: image
    pixels = np.full((32, 32, 4), (90, 120, 200, 0), dtype=np.uint8)
    pixels[:16, :, 3] = 255
    for _ in range(20):
        alpha = transform(Image.fromarray(pixels))[3]
        assert alpha[:16].unique().numel() == alpha[16:].unique().numel() == 1
        assert alpha[0, 0] > alpha[31, 31]


def test_a_model_of_other_channels_is_named() -> None:
    for channels in (2, 5):
        with pytest.raises(InputError, match=f"takes {channels}"):
            eval_transform(DEIT.backbone(in_chans=channels))


# ---------------------------------------------------------------- commands


@pytest.mark.extended
@pytest.mark.parametrize("model", [4], indirect=True)
def test_commands_agree_on_every_kind_of_file(
    model: DynamicViT,
    saved: Path,
    kinds: Path,
    tmp_path: Path,
    command: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_hand = {name: expected(model, gray(seed)) for seed, name in enumerate(("ant", "bee"))}
    whole = ("--crop-pct", 1)
    file = tmp_path / "model.pt2"
    words = (*whole, "--batch", 1, "--validation", kinds)
    assert command("export", saved, "-o", file, *words) == 0
    for which in (saved, file):
        capsys.readouterr()
        assert command("stream", kinds, "-m", which, *whole, "--json", "-") == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        answers = [line for line in lines if line["event"] == "frame"]
        assert len(answers) == 30
        for answer in answers:
            probable = by_hand[Path(answer["file"]).parent.name]
            [best] = answer["classes"]
            assert best["probability"] == pytest.approx(float(probable.max()), abs=1e-4)
        assert command("eval", kinds, "-m", which, *whole, "--workers", 0, "--json", "-") == 0
        numbers = json.loads(capsys.readouterr().out)
        right = [int(by_hand[name].argmax()) == label for label, name in enumerate(by_hand)]
        assert numbers["top1"] == sum(right) / 2
        assert numbers["images"] == 30
    some = [kinds / "ant" / name for name in ("16.tif", "alpha.webp")]
    assert command("visualize", *some, "-m", saved, *whole, "-o", tmp_path / "seen") == 0
    shown = capsys.readouterr().out
    assert shown.count(f"{100 * float(by_hand['ant'].max()):5.1f} %") >= 2
    assert len(list((tmp_path / "seen").iterdir())) == 2


def test_training_and_timing(
    model: DynamicViT, saved: Path, kinds: Path, tmp_path: Path, command: Main
) -> None:
    out = tmp_path / "run"
    steps = ["--set", "epochs=1", "--set", "images=null", "--set", "batch_size=15"]
    assert command("train", kinds, "-m", saved, "-o", out, "--workers", 0, *steps) == 0
    assert json.loads((out / "report.json").read_text())["training"]["images"] == 30
    assert DynamicViT.from_pretrained(out).in_chans == model.in_chans
    assert command("bench", "-m", saved, "--batch-size", 1, "--samples", 2, "--threads", 1) == 0


def test_pictures_of_four_channels_are_drawn_on_white() -> None:
    model = DEIT.sparse(in_chans=4)
    image = Image.new("RGBA", SIZE[::-1], (200, 0, 0, 0))
    drawn = visualize(model, image).figure.axes[0].images[0].get_array()
    assert np.allclose(drawn, 1.0)
