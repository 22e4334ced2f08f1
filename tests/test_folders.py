"""Which files of a folder, a tar or shards are images, and which folders are classes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dynamicvit.data import ImageData, Loader, class_map_for
from dynamicvit.data.folders import image_files, left_out_in_words, other_files
from dynamicvit.errors import InputError
from families import DEIT
from pictures import write_image

Main = Callable[..., int]

#: Endings of image files, in some case.
KINDS = ("png", "JPG", "webp", "bmp", "TIF", "tiff", "Gif", "ppm", "jp2", "tga")
HIDDEN = (
    ".ipynb_checkpoints/1.png",
    "cat/.ipynb_checkpoints/1.png",
    "@eaDir/cat/1.png",
    "__MACOSX/cat/1.png",
    "cat/._1.png",
    "cat/Thumbs.db",
    ".DS_Store",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes ant, bee (without images) and cat, hidden files, and others."""
    root = tmp_path / ".cache" / "images"  # hidden is what lies below the root
    for kind in KINDS:
        write_image(root / "cat" / f"{kind.lower()}.{kind}", 20)
    write_image(root / "ant" / "1.webp", 10)
    write_image(root / "ant" / "2.png", 11)
    (root / "bee").mkdir()
    for name in ("bee/1.nef", "bee/2.nef", "cat/notes.txt", "labels.csv"):
        (root / name).write_bytes(b"no image")
    for name in HIDDEN:
        if name.endswith(".png"):
            write_image(root / name, 99)
        else:
            (root / name).write_bytes(b"")
    return root


def tarred(folder: Path, nested: bool) -> Path:
    """A tar of the folder's classes; nested, of a tar for each."""
    path = folder.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        if not nested:
            archive.add(folder, arcname=".")
            return path
        for place in sorted(folder.iterdir()):
            if place.is_dir():
                with tarfile.open(f"{place}.tar", "w") as inner:
                    inner.add(place, arcname="")
                archive.add(f"{place}.tar", arcname=f"{place.name}.tar")
            else:
                archive.add(place, arcname=place.name)
    return path


@pytest.mark.parametrize("where", ["folder", "tar", "tar of tars"])
def test_what_counts_in_folders_and_tars(folder: Path, where: str) -> None:
    root = folder if where == "folder" else tarred(folder, nested="tars" in where)
    data = ImageData(root)
    assert len(data) == len(KINDS) + 2
    assert data.classes == ("ant", "bee", "cat")
    assert data.labels.tolist() == [0, 0] + [2] * len(KINDS)
    assert [round(float(data[row].image.mean()) * 255) for row in range(len(data))][:3] == [
        10,
        11,
        20,
    ]
    assert data.empty_classes == ("bee",)
    assert data.left_out == ("bee/1.nef", "bee/2.nef", "cat/notes.txt", "labels.csv")
    line = left_out_in_words(data.left_out)
    assert line == "left out 4 files of other types: bee/1.nef, bee/2.nef, cat/notes.txt, ..."
    # The images of cat keep index 2, whether or not those of bee can be read.
    chosen = class_map_for(data, 3)
    assert "bee" in chosen.origin
    assert data.with_class_map(chosen.index).labels.tolist() == data.labels.tolist()
    with pytest.raises(InputError, match=r"3 class folders \(no images in bee\) and the model 2"):
        class_map_for(data, 2)
    assert ImageData(root, class_map={"ant": 4, "cat": 6}).labels.tolist()[1:3] == [4, 6]


def test_what_is_no_class(tmp_path: Path) -> None:
    """Folders without images count where classes lie, not above or below them."""
    root = tmp_path / "images"
    write_image(root / "train" / "cat" / "1.png", 1)
    write_image(root / "train" / "ant" / "1.png", 1)
    for name in ("train/cat/boxes/1.xml", "val/readme/1.txt", "train/dog/more/1.txt"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("no image")
    (root / "train" / "eel").mkdir()
    data = ImageData(root)
    assert data.classes == ("ant", "cat", "dog", "eel")
    assert data.empty_classes == ("dog", "eel")
    flat = ImageData(root, labeled=False)
    assert flat.classes == flat.empty_classes == ()


def test_a_class_of_broken_files_stays_a_class(tmp_path: Path) -> None:
    for name in ("ant", "cat"):
        write_image(tmp_path / name / "1.png", 1)
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "1.png").write_bytes(b"no image")
    (batch,) = Loader(ImageData(tmp_path), 3)
    assert batch.labels.tolist() == [0, 2]
    assert batch.skipped == (str(tmp_path / "bee" / "1.png"),)


def test_a_subset_of_imagenet_beside_other_folders(tmp_path: Path) -> None:
    for name in ("n01443537/1.webp", "n15075141/1.jpg"):
        write_image(tmp_path / name, 5)
    (tmp_path / "boxes").mkdir()
    data = ImageData(tmp_path)
    chosen = class_map_for(data, 1000)
    assert data.with_class_map(chosen.index).labels.tolist() == [1, 999]


def test_folders_without_images_name_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "IMG_1.HEIC").write_bytes(b"")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"cat/IMG_1\.HEIC.*pillow-heif"):
        ImageData(tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)):
        image_files(tmp_path)
    assert other_files(tmp_path) == ("cat/IMG_1.HEIC",)


def test_images_of_a_folder_for_pictures_and_streams(folder: Path) -> None:
    files = image_files(folder)
    assert [path.name for path in files[:3]] == ["1.webp", "2.png", "bmp.bmp"]
    assert len(files) == len(KINDS) + 2


def test_links_that_lead_back_are_not_followed(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "cat" / "1.png", 1)
    write_image(tmp_path / "elsewhere" / "1.png", 1)
    (tmp_path / "images" / "cat" / "again").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "dog").symlink_to(tmp_path / "elsewhere")
    data = ImageData(tmp_path / "images")
    assert data.classes == ("cat", "dog")
    assert len(data) == 2


def test_shards(folder: Path) -> None:
    pytest.importorskip("webdataset", reason="pip install 'dynamicvit[data]'")
    shards = folder.parent / "shards"
    shards.mkdir()
    with tarfile.open(shards / "0.tar", "w") as archive:
        for number, path in enumerate(sorted((folder / "cat").glob("*.*"))):
            if path.is_file() and path.name not in ("notes.txt", "Thumbs.db", "._1.png"):
                archive.add(path, f"{number:02}{path.suffix}")
                (folder / "label").write_text("2")
                archive.add(folder / "label", f"{number:02}.cls")
        archive.add(folder / "cat" / "png.png", "__MACOSX/00.png")
        archive.add(folder / "cat" / "png.png", "._00.png")
    data = ImageData(f"wds/{shards}")
    samples = [data[row] for row in range(len(data))]
    assert len(samples) == len(KINDS)
    assert all(sample.label == 2 for sample in samples)


def test_torchvisions_image_folder(folder: Path) -> None:
    data = ImageData(f"torch/image_folder/{folder}")
    assert data.classes == ("ant", "bee", "cat")
    assert data.empty_classes == ("bee",)
    assert data.labels.tolist() == [0, 0] + [2] * len(KINDS)
    assert len({data[row].label for row in range(len(data))}) == 2
    assert data.left_out == ("bee/1.nef", "bee/2.nef", "cat/notes.txt", "labels.csv")


def test_commands_count_and_name_what_they_leave_out(
    folder: Path, tmp_path: Path, command: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in KINDS[1:]:  # or as many pictures would be drawn
        (folder / "cat" / f"{kind.lower()}.{kind}").unlink()
    saved = tmp_path / "model"
    DEIT.sparse(num_classes=3).save_pretrained(saved)
    line = "left out 4 files of other types: bee/1.nef, bee/2.nef, cat/notes.txt, ..."
    steps = ["--set", "epochs=1", "--set", "images=null", "--set", "batch_size=3"]
    for words in (
        ("eval", folder, "--workers", 0, "--json", tmp_path / "eval.json"),
        ("train", folder, "-o", tmp_path / "run", "--workers", 0, *steps),
        ("stream", folder),
        ("visualize", folder, "-o", tmp_path / "seen"),
    ):
        capsys.readouterr()
        assert command(*words, "-m", saved) == 0
        assert capsys.readouterr().out.splitlines().count(line) == 1, words[0]
    numbers = json.loads((tmp_path / "eval.json").read_text())
    assert numbers["images"] == 3
    assert len(numbers["left_out"]) == 4
