"""Hugging Face's and torchvision's data sets, and the strings that name sources."""

from __future__ import annotations

import pickle
import struct
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import ConcatDataset

from dynamicvit.data import UNLABELED, ImageData, Loader, class_map_for
from dynamicvit.errors import InputError
from pictures import (
    WORKERS,
    cut,
    encoded,
    flip,
    garble,
    grays,
    labels,
    truncated_jpeg,
    write_image,
)

pytestmark = WORKERS


# ---------------------------------------------------------------- names


def test_names_that_are_incomplete_or_not_supported() -> None:
    for name, instead in {
        "wds/": "wds/PLACE@SPLIT",
        "hfds/pets@": "hfds/PLACE@SPLIT",
        "torch/mnist": "torch/mnist/FOLDER",
        "tfds/mnist": "wds/",
    }.items():
        with pytest.raises(InputError, match=instead) as raised:
            ImageData(name)
        assert name in str(raised.value)


def test_a_path_is_always_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "torch" / "cats@home" / "1.png", 1)
    monkeypatch.chdir(tmp_path)
    for root in (Path("torch/cats@home"), "./torch/cats@home", f"{tmp_path}/torch/cats@home"):
        assert len(ImageData(root)) == 1
    write_image(tmp_path / "torch" / "cats" / "x" / "1.png", 1)
    with pytest.raises(InputError, match=r"\./torch/cats/x"):
        ImageData("torch/cats/x")


@pytest.mark.parametrize(("prefix", "package"), [("wds", "webdataset"), ("hfds", "datasets")])
def test_a_missing_package_is_named(
    prefix: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"{package} .*\[data\]"):
        ImageData(f"{prefix}/{tmp_path}")


# ---------------------------------------------------------------- Hugging Face

LEVELS = [10, 20, 11, 30]
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with a cache of its own."""
    library = pytest.importorskip("datasets", reason="pip install 'dynamicvit[data]'")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    return library


def table(datasets: Any, label: Any, column: str = "img", labels: Sequence[Any] = ()) -> Any:
    """A data set of the four levels, with the column `label` of a given kind if any."""
    features = {"id": datasets.Value("int64"), column: datasets.Image()}
    content: dict[str, Any] = {"id": range(4), column: [{"bytes": encoded(g)} for g in LEVELS]}
    if label is not None:
        features["label"], content["label"] = label, list(labels)
    return datasets.Dataset.from_dict(content, features=datasets.Features(features))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_saved_to_disk(datasets: Any, tmp_path: Path, workers: int) -> None:
    saved = tmp_path / "saved"
    table(datasets, datasets.ClassLabel(names=CLASSES), labels=[0, 1, 0, 2]).save_to_disk(saved)
    data = ImageData(f"hfds/{saved}")
    assert data.classes == tuple(CLASSES)
    batches = Loader(data, 3, num_workers=workers)
    assert grays(batches) == LEVELS
    assert labels(batches) == [0, 1, 0, 2]
    assert class_map_for(data, 3).origin == "the 3 classes in their order"
    with pytest.raises(InputError, match="3 classes and the model 1000"):
        class_map_for(data, 1000)
    mapped = ImageData(f"hfds/{saved}", class_map={"cat": 7, "bee": 5, "ant": 9})
    assert mapped.labels.tolist() == [9, 5, 9, 7]
    with pytest.raises(InputError, match=r"1 classes .*: cat"):
        ImageData(f"hfds/{saved}", class_map={"bee": 5, "ant": 9})
    with pytest.raises(InputError, match="without splits"):
        ImageData(f"hfds/{saved}@train")
    with pytest.raises(InputError, match=f"hfds/{saved}"):
        ImageData(saved)


def test_splits_saved_to_disk(datasets: Any, tmp_path: Path) -> None:
    whole = table(datasets, datasets.ClassLabel(names=CLASSES), labels=[0, 1, 0, 2])
    splits = {"train": whole.select([0, 3]), "test": whole.select([1, 2])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert grays(Loader(ImageData(f"hfds/{tmp_path}/saved"), 3)) == [10, 30]
    data = ImageData(f"hfds/{tmp_path}/saved@test")
    assert grays(Loader(data, 3)) == [20, 11]
    assert labels(Loader(data, 3)) == [1, 0]
    with pytest.raises(InputError, match=r"'val'.* train, test"):
        ImageData(f"hfds/{tmp_path}/saved@val")


def test_a_folder_that_load_dataset_reads(datasets: Any, tmp_path: Path) -> None:
    for name, gray in {"bee": 20, "ant": 10}.items():
        write_image(tmp_path / "pets" / "train" / name / "1.png", gray)
        write_image(tmp_path / "pets" / "test" / name / "1.png", gray + 1)
    (tmp_path / "pets" / "train" / "bee" / "1.png").write_bytes(b"nothing")
    data = ImageData(f"hfds/{tmp_path}/pets")
    assert data.classes == ("ant", "bee")
    (batch,) = list(Loader(data, 3))
    assert grays([batch]) == [10]
    (skipped,) = batch.skipped
    assert skipped.endswith("pets/train/bee/1.png")
    assert grays(Loader(ImageData(f"hfds/{tmp_path}/pets@test"), 3)) == [11, 21]


@pytest.mark.parametrize(
    ("kind", "given", "classes", "expected"),
    [
        ("int64", [4, 2, 4, None], (), [4, 2, 4, UNLABELED]),
        ("int64", [0, -1, 0, 1], (), [0, UNLABELED, 0, 1]),
        ("bool", [True, False, True, None], (), [1, 0, 1, UNLABELED]),
        ("string", ["b", "a10", "a9", None], ("a9", "a10", "b"), [2, 1, 0, UNLABELED]),
        (None, [], (), [UNLABELED] * 4),
    ],
)
def test_kinds_of_labels(
    datasets: Any, tmp_path: Path, kind: str | None, given: list, classes: tuple, expected: list
) -> None:
    label = kind and datasets.Value(kind)
    table(datasets, label, labels=given).save_to_disk(tmp_path / "saved")
    data = ImageData(f"hfds/{tmp_path}/saved")
    assert data.classes == classes
    assert data.labeled == (kind is not None)
    assert labels(Loader(data, 4)) == expected


def test_one_of_several_label_columns(datasets: Any, tmp_path: Path) -> None:
    both = table(datasets, None)
    for column, given in {"fine": [2, 0, 1, 2], "coarse": [1, 0, 0, 1]}.items():
        kind = datasets.ClassLabel(names=[f"{column}{n}" for n in range(3)])
        both = both.add_column(column, given).cast_column(column, kind)
    both.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": both}).save_to_disk(tmp_path / "splits")
    for name in (f"hfds/{tmp_path}/one:fine", f"hfds/{tmp_path}/splits@test:fine"):
        data = ImageData(name)
        assert data.classes == ("fine0", "fine1", "fine2")
        assert labels(Loader(data, 4)) == [2, 0, 1, 2]
    assert ImageData(f"hfds/{tmp_path}/splits@test:id").labels.tolist() == [0, 1, 2, 3]
    assert not ImageData(f"hfds/{tmp_path}/one", labeled=False).labeled
    for name, said in (
        (f"hfds/{tmp_path}/one", "fine, coarse: .*@SPLIT:fine"),
        (f"hfds/{tmp_path}/splits@test", r"fine, coarse: .*@test:fine"),
        (f"hfds/{tmp_path}/splits@test:course", "'course'.* id, img, fine, coarse"),
        (f"hfds/{tmp_path}/splits@test:img", "'img' holds Image"),
        (f"hfds/{tmp_path}/splits@test:", "PLACE@SPLIT:COLUMN"),
    ):
        with pytest.raises(InputError, match=said):
            ImageData(name)


def test_a_slice_is_no_column(datasets: Any, tmp_path: Path) -> None:
    for gray in (10, 11, 20, 21):
        write_image(tmp_path / "pets" / "train" / ("ant", "bee")[gray // 20] / f"{gray}.png", gray)
    assert grays(Loader(ImageData(f"hfds/{tmp_path}/pets@train[:50%]"), 4)) == [10, 11]
    data = ImageData(f"hfds/{tmp_path}/pets@train[1:]:label")
    assert (data.classes, data.labels.tolist()) == (("ant", "bee"), [0, 1, 1])


def test_several_and_soft_labels_are_refused_by_name(datasets: Any, tmp_path: Path) -> None:
    kinds = {
        "several": (datasets.List(datasets.ClassLabel(names=CLASSES)), [[0], [0, 2], [], [1]]),
        "soft": (datasets.List(datasets.Value("float32")), [[0.5, 0.5]] * 4),
        "numbers": (datasets.Value("float32"), [0.5, 1.5, 2.5, 3.5]),
    }
    for name, (kind, given) in kinds.items():
        source = f"hfds/{tmp_path}/{name}"
        table(datasets, kind, labels=given).save_to_disk(tmp_path / name)
        said = "several labels" if name == "several" else "soft labels"
        with pytest.raises(InputError, match=rf"{name} has {said}.* 'label'"):
            ImageData(source)
        with pytest.raises(InputError, match=rf"{name}:label: column 'label' holds {said}"):
            ImageData(f"{source}:label")
        assert grays(Loader(ImageData(source, labeled=False), 4)) == LEVELS


def test_classes_that_are_numbers(datasets: Any, tmp_path: Path) -> None:
    table(datasets, datasets.Value("int64"), labels=[4, 2, 4, -1]).save_to_disk(tmp_path / "saved")
    data = ImageData(f"hfds/{tmp_path}/saved")
    fitting = class_map_for(data, 5)
    assert fitting.origin == "the numbers given"
    assert data.with_class_map(fitting.index).labels.tolist() == [4, 2, 4, UNLABELED]
    with pytest.raises(InputError, match=r"index 4, .* 0 to 3"):
        class_map_for(data, 4)
    mapped = ImageData(data.root, class_map={4: 7, 2: 8, 3: 9})
    assert mapped.labels.tolist() == [7, 8, 7, UNLABELED]
    assert data.with_class_map({"4": 0, "2": 1}).labels.tolist() == [0, 1, 0, UNLABELED]
    with pytest.raises(InputError, match="class map: 2"):
        data.with_class_map({"4": 0})


def test_rows_that_cannot_be_read(datasets: Any, tmp_path: Path) -> None:
    good = table(datasets, None)
    rows = [{"bytes": b"nothing", "path": "odd.png"}, None]
    bad = datasets.Dataset.from_dict({"id": range(2), "img": rows}, features=good.features)
    datasets.concatenate_datasets([bad, good]).save_to_disk(tmp_path / "saved")
    (batch,) = list(Loader(ImageData(f"hfds/{tmp_path}/saved"), 7))
    assert grays([batch]) == LEVELS
    assert batch.skipped == tuple(f"hfds/{tmp_path}/saved#{row}" for row in ("0 odd.png", 1))


def test_which_column_holds_the_images(datasets: Any, tmp_path: Path) -> None:
    both = table(datasets, None, column="image").add_column("other", range(4))
    both.cast_column("other", datasets.Value("int64")).save_to_disk(tmp_path / "one")
    assert len(ImageData(f"hfds/{tmp_path}/one")) == 4
    table(datasets, None).remove_columns("img").save_to_disk(tmp_path / "none")
    with pytest.raises(InputError, match="0 columns of images among id"):
        ImageData(f"hfds/{tmp_path}/none")


# ---------------------------------------------------------------- torchvision


def write_mnist(root: Path, levels: Sequence[int], targets: Sequence[int]) -> None:
    """MNIST's own files; the images of the test split are one level brighter."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, more in (("train", 0), ("t10k", 1)):
        pixels = b"".join(bytes([level + more]) * 28 * 28 for level in levels)
        header = struct.pack(">IIII", 0x803, len(levels), 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + pixels)
        header = struct.pack(">II", 0x801, len(targets))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + bytes(targets))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_set_of_torchvision(tmp_path: Path, workers: int) -> None:
    write_mnist(tmp_path, [10, 20, 30], [3, 0, 9])
    data = ImageData(f"torch/mnist/{tmp_path}")
    assert len(data.classes) == 10
    batches = Loader(data, 2, num_workers=workers)
    assert grays(batches) == [10, 20, 30]
    assert labels(batches) == [3, 0, 9]
    assert next(iter(batches)).images.shape == (2, 3, 28, 28)
    assert grays(Loader(ImageData(f"torch/mnist/{tmp_path}@test"), 2)) == [11, 21, 31]
    assert data.path(1) == f"torch/mnist/{tmp_path}#1"


def test_torchvisions_image_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "ant" / "1.png", 10)
    bad = truncated_jpeg(tmp_path / "bee" / "1.jpg")
    write_image(tmp_path / "bee" / "2.png", 20)
    (batch,) = list(Loader(ImageData(f"torch/image_folder/{tmp_path}"), 4))
    assert grays([batch]) == [10, 20]
    assert batch.labels.tolist() == [0, 1]
    assert batch.skipped == (str(bad),)


def test_sets_that_cannot_be_opened(datasets: Any, tmp_path: Path) -> None:
    table(datasets, None).save_to_disk(tmp_path / "broken")
    (file,) = (tmp_path / "broken").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:300])
    for name in ("torch/mnist/none", "torch/nonsense/x", "hfds/nowhere", f"hfds/{tmp_path}/broken"):
        with pytest.raises(InputError, match=f"^{name} can't be opened ") as raised:
            ImageData(name)
        assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- tars that break


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("damage", [cut, garble, flip])
def test_a_tar_that_breaks_in_the_middle_is_refused(
    tmp_path: Path, damage: Callable[[bytearray, int], bytearray], inner: bool
) -> None:
    path = tmp_path / ("cat.tar" if inner else "all.tar")
    with tarfile.open(path, "w") as archive:
        for gray in (1, 2, 3):
            archive.add(write_image(tmp_path / "cat" / f"{gray}.png", gray), f"cat/{gray}.png")
    with tarfile.open(path) as archive:
        header = archive.getmembers()[2].offset
    content = damage(bytearray(path.read_bytes()), header)
    path.write_bytes(content)
    if inner:
        with tarfile.open(tmp_path / "all.tar", "w") as archive:
            archive.add(path, "cat.tar")
    with pytest.raises(InputError, match=r"cat/2\.png|can't be read") as raised:
        ImageData(tmp_path / "all.tar")
    assert "all.tar" in str(raised.value)


def test_a_tar_of_tars_that_breaks_between_them_is_refused(tmp_path: Path) -> None:
    outer = tmp_path / "all.tar"
    with tarfile.open(outer, "w") as archive:
        for name in ("ant", "bee"):
            with tarfile.open(tmp_path / f"{name}.tar", "w") as inner:
                inner.add(write_image(tmp_path / f"{name}.png", 1), "1.png")
            archive.add(tmp_path / f"{name}.tar", f"{name}.tar")
    assert len(ImageData(outer)) == 2
    with tarfile.open(outer) as archive:
        header = archive.getmembers()[1].offset
    outer.write_bytes(garble(bytearray(outer.read_bytes()), header))
    with pytest.raises(InputError, match=r"all\.tar is damaged after ant\.tar"):
        ImageData(outer)


# ---------------------------------------------------------------- together


def test_all_kinds_in_one_epoch(datasets: Any, tmp_path: Path) -> None:
    write_mnist(tmp_path, [100, 101], [3, 0])
    table(datasets, datasets.Value("int64"), labels=[4, 2, 4, 1]).save_to_disk(tmp_path / "saved")
    write_image(tmp_path / "flat" / "50.png", 50)
    sources = [f"torch/mnist/{tmp_path}", f"hfds/{tmp_path}/saved", f"{tmp_path}/flat"]
    data = ConcatDataset([ImageData(source) for source in sources])
    batches = list(Loader(data, 1))  # the sizes differ
    assert grays(batches) == [100, 101, *LEVELS, 50]
    assert labels(batches) == [3, 0, 4, 2, 4, 1, UNLABELED]
    sent = pickle.loads(pickle.dumps(data))  # to workers, where processes are not forked
    assert grays(Loader(sent, 1)) == grays(batches)
