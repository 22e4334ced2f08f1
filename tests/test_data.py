"""Images from disk to batches: none repeated, none skipped silently."""

from __future__ import annotations

import logging
import os
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from dynamicvit.data import (
    UNLABELED,
    ImageData,
    Loader,
    class_map_for,
    imagenet_class_map,
)
from dynamicvit.errors import InputError
from pictures import WORKERS, class_folders, grays, labels, truncated_jpeg, write_image

pytestmark = WORKERS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "images")


def tarred(folder: Path, name: str | None = None) -> Path:
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname=folder.name if name is None else name)
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
        flat = tarred(flat, name="")
    data = ImageData(flat)
    assert not data.labeled
    assert labels(Loader(data, 2)) == [UNLABELED] * 3
    with pytest.raises(InputError, match="no class folders"):
        ImageData(flat, labeled=True)


def test_class_folders_with_images_beside_them_and_without_their_labels(folder: Path) -> None:
    data = ImageData(folder, labeled=False)
    assert not data.labeled
    assert set(labels(Loader(data, 6))) == {UNLABELED}


def test_inner_tar(tmp_path: Path) -> None:
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
    lines = tmp_path / "names.txt"
    lines.write_text("eel\nant\ncat\ndog\n")
    for class_map in ({"cat": 2, "dog": 3, "eel": 0}, lines, str(lines)):
        assert ImageData(folder, class_map=class_map).labels.tolist() == [2, 2, 3, 3, 3, 0]


def test_class_maps_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "map.csv").write_text("cat,0")
    (tmp_path / "map.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for class_map, named in (
        ({"dog": 0}, "2 class folders .*: cat, eel"),
        ("nowhere.txt", "nowhere.txt"),
        (tmp_path / "map.csv", "map.csv"),
        (tmp_path / "map.pkl", "map.pkl.*not permitted"),
    ):
        with pytest.raises(InputError, match=named):
            ImageData(folder, class_map=class_map)


def test_a_subset_of_imagenet_keeps_imagenets_indices(tmp_path: Path) -> None:
    for wordnet_id in ("n01443537", "n15075141"):
        write_image(tmp_path / wordnet_id / "1.png", 5)
    data = ImageData(tmp_path)
    assert data.labels.tolist() == [0, 1]  # nothing is assumed without a model
    chosen = class_map_for(data, 1000)
    assert "imagenet-1k" in chosen.origin
    assert data.with_class_map(chosen.index).labels.tolist() == [1, 999]
    assert ImageData(tmp_path, class_map="imagenet").labels.tolist() == [1, 999]
    assert class_map_for(data, 2).index == {"n01443537": 0, "n15075141": 1}
    assert len(imagenet_class_map()) == 1000


def test_class_map_for_a_number_of_classes(folder: Path) -> None:
    data = ImageData(folder)
    assert class_map_for(data, 3).index == {"cat": 0, "dog": 1, "eel": 2}
    with pytest.raises(InputError, match="3 class folders and the model 1000"):
        class_map_for(data, 1000)
    with pytest.raises(InputError, match=r"index 7, .* 0 to 4"):
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
    assert [Path(path).name for path in second.to("cpu").paths] == ["21.png", "22.png", "30.png"]
    assert batches.num_images == 7
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2, "each is logged once, not in every epoch"
    assert "9.jpg: image file is truncated" in lines[0]
    assert "20.png: not an image" in lines[1]
    if not archived:
        assert first.skipped == tuple(map(str, bad))


@pytest.mark.parametrize("workers", [0, 1])
def test_strict_names_the_file(folder: Path, workers: int) -> None:
    bad = truncated_jpeg(folder / "cat" / "9.jpg")
    with pytest.raises(InputError) as raised:
        list(Loader(ImageData(folder, strict=True), 4, num_workers=workers))
    assert str(bad) in str(raised.value)
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
    with pytest.raises(InputError, match=r"2 images .*a\.jpg"):
        list(Loader(ImageData(tmp_path), 1))


def test_an_epoch_may_resume_at_unreadable_images(folder: Path) -> None:
    (folder / "eel" / "30.png").write_bytes(b"")
    batches = Loader(ImageData(folder), 5)
    batches.set_epoch(0, start=1)
    assert [len(batch) for batch in batches] == [0]


def test_errors_of_the_transform_are_not_taken_for_bad_images(folder: Path) -> None:
    def broken(image: Image.Image) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(Loader(ImageData(folder, transform=broken), 2))


# ---------------------------------------------------------------- bad roots


def test_roots_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "broken.tar").write_bytes(b"not a tar" * 100)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    write_image(tmp_path / "mixed" / "cat" / "1.png", 1)
    write_image(tmp_path / "mixed" / "stray.png", 1)
    for name in ("nowhere", "empty", "notes.txt", "broken.tar", "empty.tar", "mixed"):
        with pytest.raises(InputError) as raised:
            ImageData(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)
        assert "\n" not in str(raised.value)
    assert len(ImageData(tmp_path / "mixed", labeled=False)) == 2


def test_no_permission_is_not_an_empty_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(InputError, match=r"dog .*Permission denied"):
        ImageData(folder)


def test_bad_loader_arguments(folder: Path) -> None:
    data = ImageData(folder)
    for wrong, named in (
        ({"batch_size": 0}, "batch size"),
        ({"batch_size": 1, "num_workers": -1}, "workers"),
        ({"batch_size": 1, "seed": -1}, "seed"),
        ({"batch_size": 7, "drop_last": True}, "7 .* 6 images"),
    ):
        with pytest.raises(InputError, match=named):
            Loader(data, **wrong)
