"""Images from disk to batches: nothing repeated, dropped silently, or left to chance."""

from __future__ import annotations

import logging
import os
import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import ConcatDataset

from dynamicvit import sparsify
from dynamicvit.data import (
    UNLABELED,
    ImageData,
    Loader,
    Sample,
    Unreadable,
    class_map_for,
    eval_transform,
    imagenet_class_map,
    split,
    train_transform,
)
from dynamicvit.errors import InputError
from pictures import grays, labels, truncated_jpeg, write_image

pytestmark = [
    # Python warns where a process with threads forks; that is torch's affair.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a single core
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes with 2, 3 and 1 images, of gray levels 10, 11, 20, 21, 22, 30."""
    root = tmp_path / "images"
    for name, levels in {"cat": (10, 11), "dog": (20, 21, 22), "eel": (30,)}.items():
        for gray in levels:
            write_image(root / name / f"{gray}.png", gray)
    return root


def tarred(folder: Path) -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname=folder.name)
    return path


# ---------------------------------------------------------------- sources and labels


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_class_folders_in_a_folder_or_a_tar(folder: Path, archived: bool, workers: int) -> None:
    data = ImageData(tarred(folder) if archived else folder)
    assert data.classes == ("cat", "dog", "eel")
    assert len(data) == 6
    data[0]  # workers must not share what reading in this process has opened
    batches = Loader(data, 4, num_workers=workers)
    assert grays(batches) == [10, 11, 20, 21, 22, 30]
    assert labels(batches) == [0, 0, 1, 1, 1, 2]
    assert [len(batch) for batch in batches] == [4, 2]


@pytest.mark.parametrize("archived", [False, True])
def test_a_flat_folder_has_no_labels(tmp_path: Path, archived: bool) -> None:
    flat = tmp_path / "flat"
    for gray in (1, 2, 3):
        write_image(flat / f"{gray}.png", gray)
    if archived:
        with tarfile.open(tmp_path / "flat.tar", "w") as archive:
            for path in sorted(flat.iterdir()):
                archive.add(path, arcname=path.name)
        flat = tmp_path / "flat.tar"
    data = ImageData(flat)
    assert not data.labeled
    assert labels(Loader(data, 2)) == [UNLABELED] * 3
    with pytest.raises(InputError, match="no class folders"):
        ImageData(flat, labeled=True)


def test_class_folders_without_their_labels(folder: Path) -> None:
    data = ImageData(folder, labeled=False)
    assert not data.labeled
    assert set(labels(Loader(data, 6))) == {UNLABELED}


def test_images_beside_class_folders_are_refused(folder: Path) -> None:
    write_image(folder / "stray.png", 1)
    with pytest.raises(InputError, match="beside its class folders"):
        ImageData(folder)


def test_inner_tar(folder: Path, tmp_path: Path) -> None:
    inner = tmp_path / "fox.tar"
    with tarfile.open(inner, "w") as archive:
        archive.add(write_image(tmp_path / "40.png", 40), arcname="40.png")
    with tarfile.open(tmp_path / "outer.tar", "w") as archive:
        archive.add(inner, arcname="fox.tar")
    data = ImageData(tmp_path / "outer.tar", class_map={"fox": 3})
    assert grays(Loader(data, 1)) == [40]
    assert data.labels.tolist() == [3]


# ---------------------------------------------------------------- class maps


def test_class_map_gives_the_indices(folder: Path, tmp_path: Path) -> None:
    by_line = tmp_path / "names.txt"
    by_line.write_text("eel\nant\ncat\ndog\n")
    for class_map in ({"cat": 2, "dog": 3, "eel": 0}, by_line, str(by_line)):
        assert ImageData(folder, class_map=class_map).labels.tolist() == [2, 2, 3, 3, 3, 0]


def test_a_folder_that_the_class_map_lacks_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match=r"2 class folders of .* not in the class map: cat, eel"):
        ImageData(folder, class_map={"dog": 0})


def test_class_map_files_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt is not a file"):
        ImageData(folder, class_map="nowhere.txt")
    other = tmp_path / "map.csv"
    other.write_text("cat,0")
    with pytest.raises(InputError, match=r"map\.csv can't be used"):
        ImageData(folder, class_map=other)
    code = tmp_path / "map.pkl"
    code.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match=r"map\.pkl can't be used.*not permitted"):
        ImageData(folder, class_map=code)


def test_a_subset_of_imagenet_keeps_imagenets_indices(tmp_path: Path) -> None:
    for wordnet_id in ("n01443537", "n15075141"):
        write_image(tmp_path / wordnet_id / "1.png", 5)
    data = ImageData(tmp_path)
    assert data.labels.tolist() == [0, 1]  # nothing is assumed without a model
    chosen = class_map_for(data, 1000)
    assert "ImageNet" in chosen.origin
    assert data.with_class_map(chosen.index).labels.tolist() == [1, 999]
    assert ImageData(tmp_path, class_map="imagenet").labels.tolist() == [1, 999]
    assert class_map_for(data, 2).index == {"n01443537": 0, "n15075141": 1}
    assert len(imagenet_class_map()) == 1000


def test_class_map_for_says_what_does_not_fit(folder: Path) -> None:
    data = ImageData(folder)
    assert class_map_for(data, 3).index == {"cat": 0, "dog": 1, "eel": 2}
    with pytest.raises(InputError, match="3 class folders and the model 1000 classes"):
        class_map_for(data, 1000)
    with pytest.raises(InputError, match="index 7, but the model's classes are 0 to 4"):
        class_map_for(data, 5, {"cat": 0, "dog": 7, "eel": 2})
    given = class_map_for(data, 5, {"cat": 0, "dog": 4, "eel": 2})
    assert data.with_class_map(given.index).labels.tolist() == [0, 0, 4, 4, 4, 2]


# ---------------------------------------------------------------- unreadable images


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_and_named(
    folder: Path, archived: bool, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [truncated_jpeg(folder / "cat" / "9.jpg"), folder / "dog" / "20.png"]
    bad[1].write_bytes(b"no image at all")
    root = tarred(folder) if archived else folder
    batches = Loader(ImageData(root), 4, num_workers=workers)
    with caplog.at_level(logging.WARNING):
        first, second = list(batches)
        list(batches)
    # cat: 9 (bad), 10, 11; dog: 20 (bad) | 21, 22; eel: 30. No image comes twice.
    assert grays([first, second]) == [10, 11, 21, 22, 30]
    assert first.labels.tolist() == [0, 0]
    names = [Path(path).name for path in first.skipped]
    assert names == ["9.jpg", "20.png"]
    assert second.skipped == ()
    assert [Path(path).name for path in first.paths] == ["10.png", "11.png"]
    assert [Path(path).name for path in second.to("cpu").paths] == ["21.png", "22.png", "30.png"]
    assert batches.num_images == 7
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2, "each is logged once, not in every epoch"
    assert "9.jpg: image file is truncated" in lines[0]
    assert "20.png: cannot identify image file" in lines[1]
    if not archived:
        assert first.skipped == tuple(map(str, bad))


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_names_the_file_in_one_line(folder: Path, workers: int) -> None:
    bad = truncated_jpeg(folder / "cat" / "9.jpg")
    with pytest.raises(InputError) as raised:
        list(Loader(ImageData(folder, strict=True), 4, num_workers=workers))
    assert str(bad) in str(raised.value)
    assert "truncated" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_batch_of_bad_images_only(folder: Path) -> None:
    for name in ("10.png", "11.png"):
        (folder / "cat" / name).write_bytes(b"")
    batches = list(Loader(ImageData(folder), 2))
    assert [len(batch) for batch in batches] == [0, 2, 2]
    assert batches[0].images.shape == (0, 3, 0, 0)
    assert batches[0].labels.dtype == torch.int64
    assert len(batches[0].skipped) == 2


def test_a_root_without_a_readable_image(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"none of the 2 images can be read; .*a\.jpg"):
        list(Loader(ImageData(tmp_path), 1))


def test_going_on_inside_an_epoch_asks_nothing_of_what_is_left(folder: Path) -> None:
    (folder / "eel" / "30.png").write_bytes(b"")
    batches = Loader(ImageData(folder), 5)
    batches.set_epoch(0, start=1)
    assert [len(batch) for batch in batches] == [0]


def test_errors_of_the_transform_are_not_taken_for_bad_images(folder: Path) -> None:
    def broken(image: Image.Image) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Loader(ImageData(folder, transform=broken), 2))


def test_an_item_is_a_sample_or_the_marker(folder: Path) -> None:
    data = ImageData(folder)
    assert isinstance(data[0], Sample)
    (folder / "cat" / "10.png").unlink()
    item = data[0]
    assert isinstance(item, Unreadable)
    assert item.path == str(folder / "cat" / "10.png")


# ---------------------------------------------------------------- bad roots


def test_roots_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.tar").write_bytes(b"not a tar" * 100)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    for name, said in {
        "nowhere": "does not exist",
        "empty": "holds no images",
        "notes.txt": "neither a folder nor a .tar",
        "broken.tar": "can't be read",
        "empty.tar": "holds no images",
    }.items():
        with pytest.raises(InputError, match=said) as raised:
            ImageData(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_no_permission_is_not_an_empty_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"dog can't be read \(Permission denied\)"):
        ImageData(folder)


def test_bad_loader_arguments(folder: Path) -> None:
    data = ImageData(folder)
    for wrong, said in (
        ({"batch_size": 0}, "batch size"),
        ({"batch_size": 1, "num_workers": -1}, "workers"),
        ({"batch_size": 1, "seed": -1}, "seed"),
        ({"batch_size": 7, "drop_last": True}, "more than the 6 images"),
    ):
        with pytest.raises(InputError, match=said):
            Loader(data, **wrong)


# ---------------------------------------------------------------- order and augmentation


def noise(image: Image.Image) -> torch.Tensor:
    """Draws from all three generators that timm's transforms use."""
    draws = [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002
    return torch.tensor(draws).reshape(3, 1, 1).expand(3, image.height, image.width)


def test_augmentation_depends_on_seed_epoch_and_index_only(folder: Path) -> None:
    data = ImageData(folder, transform=noise)

    def drawn(workers: int = 0, seed: int = 0, epoch: int = 0, batch: int = 4) -> torch.Tensor:
        batches = Loader(data, batch, seed=seed, num_workers=workers)
        batches.set_epoch(epoch)
        return torch.cat([batch.images for batch in batches])[:, :, 0, 0]

    reference = drawn()
    assert len(set(reference.flatten().tolist())) == 18, "each image has its own draws"
    assert torch.equal(drawn(workers=2), reference)
    assert torch.equal(drawn(batch=1), reference)
    for other in (drawn(seed=1), drawn(epoch=1)):
        assert not (other == reference).any()


def test_workers_do_not_matter_to_real_augmentation(tmp_path: Path, deit: torch.nn.Module) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    transform = train_transform(
        deit, 32, auto_augment="rand-m9-n2-mstd0.5", color_jitter=0.3, re_prob=0.5
    )
    data = ImageData(tmp_path, transform=transform)

    def drawn(workers: int, epoch: int = 0, start: int = 0) -> list[torch.Tensor]:
        batches = Loader(data, 2, shuffle=True, num_workers=workers)
        batches.set_epoch(epoch, start)
        return [batch.images for batch in batches]

    reference = drawn(0)
    for found in (drawn(0), drawn(1), drawn(2), reference[:1] + drawn(1, start=1)):
        assert all(map(torch.equal, found, reference))
    other = torch.cat(drawn(0, epoch=1))
    for image in torch.cat(reference):  # each is drawn anew in the next epoch
        assert not any(torch.equal(image, drawn_anew) for drawn_anew in other)


def test_the_callers_random_generators_are_left_alone(folder: Path) -> None:
    def state() -> tuple[float, float, float]:
        return random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)

    for workers in (0, 1):
        seed()
        expected = state()
        seed()
        list(Loader(ImageData(folder, transform=noise), 2, shuffle=True, num_workers=workers))
        assert state() == expected


def test_order(folder: Path) -> None:
    data = ImageData(folder)

    def order(seed: int, epoch: int, start: int = 0) -> list[int]:
        batches = Loader(data, 2, shuffle=True, seed=seed)
        batches.set_epoch(epoch, start)
        return grays(batches)

    orders = {tuple(order(0, epoch)) for epoch in range(5)}
    assert all(sorted(order) == [10, 11, 20, 21, 22, 30] for order in orders)
    assert len(orders) == 5
    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(1, 3)
    assert order(0, 3, start=1) == order(0, 3)[2:]


def test_drop_last(folder: Path) -> None:
    batches = Loader(ImageData(folder), 4, drop_last=True)
    assert len(batches) == 1
    assert batches.num_images == 4
    assert [len(batch) for batch in batches] == [4]
    assert len(Loader(ImageData(folder), 4)) == 2


def test_labeled_and_unlabeled_together(folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    write_image(flat / "50.png", 50)
    (flat / "51.png").write_bytes(b"")
    both = ConcatDataset([ImageData(folder), ImageData(flat)])
    batches = Loader(both, 3, num_workers=1)
    assert grays(batches) == [10, 11, 20, 21, 22, 30, 50]
    assert labels(batches) == [0, 0, 1, 1, 1, 2, UNLABELED]
    assert [name for batch in batches for name in batch.skipped] == [str(flat / "51.png")]


# ---------------------------------------------------------------- splits


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """40 images of class 0, 20 of class 1, and 30 classes of one image."""
    root = tmp_path_factory.mktemp("many")
    counts = {"000": 40, "001": 20} | {f"{number:03}": 1 for number in range(2, 32)}
    for name, count in counts.items():
        for number in range(count):
            write_image(root / name / f"{number:02}.png", 1, (1, 1))
    return ImageData(root)


def paths(data: ImageData) -> list[str]:
    return [data.path(index) for index in range(len(data))]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_split_is_stratified(many: ImageData, fraction: float) -> None:
    rest, held = split(many, fraction)
    assert sorted(paths(rest) + paths(held)) == sorted(paths(many))
    assert not set(paths(rest)) & set(paths(held))
    counts = Counter(held.labels.tolist())
    assert abs(counts[0] - 40 * fraction) <= 1
    assert abs(counts[1] - 20 * fraction) <= 1
    assert abs(sum(counts.values()) - 90 * fraction) <= 1
    assert held.labels.tolist() == [int(Path(path).parent.name) for path in paths(held)]


def test_split_is_deterministic_and_drawn(many: ImageData) -> None:
    held = paths(split(many, 0.25, seed=1)[1])
    assert paths(split(many, 0.25, seed=1)[1]) == held
    assert paths(split(many, 0.25, seed=2)[1]) != held
    # Which of the classes of one image lose it is drawn too.
    singles = [
        {path for path in paths(split(many, 0.25, seed)[1]) if Path(path).parent.name >= "002"}
        for seed in range(4)
    ]
    assert len(set.union(*singles)) > max(map(len, singles))


def test_split_parts_keep_labels_and_take_their_own_transform(folder: Path) -> None:
    data = ImageData(folder, class_map={"cat": 5, "dog": 6, "eel": 7})
    rest, held = split(data, 0.5)
    held = held.with_transform(lambda image: torch.zeros(3, 1, 1))
    assert len(rest) == len(held) == 3
    assert set(labels(Loader(held, 3))) <= {5, 6, 7}
    assert grays(Loader(held, 3)) == [0, 0, 0]
    assert min(grays(Loader(rest, 3))) >= 10
    again = held.with_class_map({"cat": 0, "dog": 1, "eel": 2})
    assert (again.labels == held.labels - 5).all()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 0.01, float("nan")])
def test_split_fractions_that_cannot_be(folder: Path, fraction: float) -> None:
    with pytest.raises(InputError, match="held-out fraction"):
        split(ImageData(folder), fraction)


# ---------------------------------------------------------------- transforms


@pytest.fixture(scope="module")
def deit() -> torch.nn.Module:
    return sparsify(timm.create_model("deit_tiny_patch16_224", depth=4))


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
    assert make(sparsify(small))(image).shape == (3, 32, 48)
    assert make(small, 64)(image).shape == (3, 64, 64)
    assert make(small, (40, 16))(image).shape == (3, 40, 16)
    with pytest.raises(InputError, match="image size must be positive"):
        make(small, 0)


@pytest.mark.parametrize("crop_pct", [0, -1, 1.5, float("nan")])
def test_crop_pct_outside_its_range(deit: torch.nn.Module, crop_pct: float) -> None:
    with pytest.raises(InputError, match="crop_pct"):
        eval_transform(deit, crop_pct=crop_pct)


def test_train_transform_crops_and_flips_and_no_more(deit: torch.nn.Module) -> None:
    names = [type(step).__name__ for step in train_transform(deit).transforms]
    assert names == [
        "RandomResizedCropAndInterpolation",
        "RandomHorizontalFlip",
        "MaybeToTensor",
        "Normalize",
    ]


def test_train_transform_passes_augmentation_on(deit: torch.nn.Module) -> None:
    more = train_transform(deit, auto_augment="rand-m9-n2-mstd0.5", re_prob=0.25, scale=(0.5, 1))
    names = [type(step).__name__ for step in more.transforms]
    assert "RandAugment" in names
    assert "RandomErasing" in names
    assert more.transforms[0].scale == (0.5, 1)
    jitter = train_transform(deit, color_jitter=0.3)
    assert "ColorJitter" in [type(step).__name__ for step in jitter.transforms]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"color": 1}, "unknown augmentation 'color'"), ({"auto_augment": "rand-x9"}, "rand-x9")],
)
def test_train_transform_refuses(deit: torch.nn.Module, wrong: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        train_transform(deit, **wrong)
