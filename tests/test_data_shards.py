"""WebDataset shards: every image once, whoever reads, from wherever a run goes on."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.utils.data import ConcatDataset

from dynamicvit.data import UNLABELED, ImageData, Loader, class_map_for, order, split
from dynamicvit.data.sources import shards
from dynamicvit.data.sources.tars import list_files
from dynamicvit.errors import InputError
from pictures import WORKERS, cut, encoded, flip, garble, grays, labels, write_image

webdataset = pytest.importorskip("webdataset", reason="pip install 'dynamicvit[data]'")

pytestmark = WORKERS


def write_shard(path: Path, levels: Sequence[int], **more: Callable[[int], object]) -> Path:
    """A shard with an image of each gray level, and for each further file what a level gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for gray in levels:
            files = {ending: of(gray) for ending, of in more.items()}
            writer.write({"__key__": f"image{gray:03}", "png": encoded(gray), **files})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of 4, 3 and 2 images; the tens of the gray level are the class."""
    root = tmp_path / "shards"
    for name, levels in {"2": [10, 11, 12, 20], "10": [21, 22, 30], "11": [31, 40]}.items():
        write_shard(root / f"train-{name}.tar", levels, cls=lambda gray: gray // 10)
    return root


LEVELS = [10, 11, 12, 20, 21, 22, 30, 31, 40]


def write_info(folder: Path, *, alt_label: str | None = None, **splits: dict[str, int]) -> None:
    described = {
        name: {
            "name": name,
            "filenames": list(lengths),
            "shard_lengths": list(lengths.values()),
            "num_samples": sum(lengths.values()),
            "alt_label": alt_label,
        }
        for name, lengths in splits.items()
    }
    (folder / "_info.json").write_text(json.dumps({"splits": described}))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_of_shards(folder: Path, workers: int) -> None:
    data = ImageData(f"wds/{folder}")
    assert len(data) == 9
    assert data.labeled
    data = pickle.loads(pickle.dumps(data))  # as for a spawned process
    batches = Loader(data, 4, num_workers=workers)
    assert grays(batches) == LEVELS
    assert labels(batches) == [level // 10 for level in LEVELS]
    assert data.path(4) == str(folder / "train-10.tar" / "image021.png")


def test_braces(folder: Path) -> None:
    assert grays(Loader(ImageData(f"wds/{folder}/train-{{10..11}}.tar"), 4)) == LEVELS[4:]
    assert grays(Loader(ImageData(f"wds/{folder}/train-2.tar"), 4)) == LEVELS[:4]
    with pytest.raises(InputError, match=r"2 shards .*train-3\.tar"):
        ImageData(f"wds/{folder}/train-{{2..4}}.tar")


def test_splits_and_lengths_of_an_info_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    headers = shards._read_headers
    monkeypatch.setattr(shards, "_read_headers", lambda p: read.append(p.name) or headers(p))
    write_info(folder, train={"train-2.tar": 4, "train-11.tar": 2}, test={"train-10.tar": 3})
    data = ImageData(f"wds/{folder}")
    assert set(read) == {"train-2.tar"}, "the lengths are known: no shard but the first is read"
    assert grays(Loader(data, 4)) == [10, 11, 12, 20, 31, 40]
    assert grays(Loader(ImageData(f"wds/{folder}@test"), 4)) == [21, 22, 30]
    with pytest.raises(InputError, match="'val'"):
        ImageData(f"wds/{folder}@val")


def test_a_shard_that_holds_other_than_it_should(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_info(folder, train={"train-2.tar": 3, "train-10.tar": 5})
    batches = list(Loader(ImageData(f"wds/{folder}"), 8))
    assert grays(batches) == [10, 11, 12, 21, 22, 30]
    shard = str(folder / "train-10.tar")
    assert batches[0].skipped == (shard, shard)
    assert "train-2.tar holds 4 images" in caplog.text
    assert "train-10.tar: holds 3 images, not 5" in caplog.text


# ---------------------------------------------------------------- labels


def test_classes_by_json_and_by_name(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [1, 2], json=lambda gray: {"label": gray + 5})
    assert labels(Loader(ImageData(f"wds/{tmp_path}/a.tar"), 2)) == [6, 7]
    write_shard(tmp_path / "b.tar", [1, 2], cls=lambda gray: ["cat", "dog"][gray - 1])
    named = ImageData(f"wds/{tmp_path}/b.tar", class_map={"cat": 3, "dog": 1})
    assert labels(Loader(named, 2)) == [3, 1]
    write_shard(tmp_path / "c.tar", [1, 2], cls=str, json=lambda gray: {"label": 9, "kind": 7})
    write_info(tmp_path, train={"c.tar": 2}, alt_label="kind")
    assert labels(Loader(ImageData(f"wds/{tmp_path}"), 2)) == [7, 7]


@pytest.mark.parametrize("label", [[1, 2], [0.5, 0.5]])
def test_several_and_soft_labels_are_refused_by_name(tmp_path: Path, label: list) -> None:
    write_shard(tmp_path / "a.tar", [1, 2], json=lambda gray: {"label": label})
    with pytest.raises(InputError, match="soft labels") as raised:
        ImageData(f"wds/{tmp_path}/a.tar")
    assert str(label) in str(raised.value)
    assert grays(Loader(ImageData(f"wds/{tmp_path}/a.tar", labeled=False), 2)) == [1, 2]


def test_shards_without_classes(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [1, 2], txt=lambda gray: "a caption")
    data = ImageData(f"wds/{tmp_path}")
    assert not data.labeled
    assert labels(Loader(data, 2)) == [UNLABELED] * 2
    with pytest.raises(InputError, match="no classes"):
        ImageData(f"wds/{tmp_path}", labeled=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_that_the_model_or_the_map_lacks_is_named(folder: Path, workers: int) -> None:
    data = ImageData(f"wds/{folder}")
    fitting = data.with_class_map(class_map_for(data, 5).index)
    assert labels(Loader(fitting, 9)) == [level // 10 for level in LEVELS]
    given = class_map_for(data, 9, {"1": 8, "2": 0, "3": 1, "4": 2})
    assert labels(Loader(data.with_class_map(given.index), 4))[:4] == [8, 8, 8, 0]
    with pytest.raises(InputError, match=r"index 8, .* 0 to 7"):
        class_map_for(data, 8, given.index)
    smaller = data.with_class_map(class_map_for(data, 4).index)
    with pytest.raises(
        InputError, match=r"train-11\.tar/image040.png: its class '4' is not"
    ) as error:
        list(Loader(smaller, 4, num_workers=workers))
    assert "classes that are numbers need none" in str(error.value)


# ---------------------------------------------------------------- what is broken


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        writer.write({"__key__": "good", "png": encoded(7), "cls": 1})
        writer.write({"__key__": "bad", "png": b"nothing", "cls": 1})
        writer.write({"__key__": "bare", "txt": "no image", "cls": 1})
        writer.write({"__key__": "odd", "png": encoded(8)})
    (batch,) = list(Loader(ImageData(f"wds/{path}"), 4))
    assert grays([batch]) == [7]
    assert batch.skipped == tuple(str(path / name) for name in ("bad.png", "bare", "odd.png"))


def cut_in_an_image(content: bytearray, at: int) -> bytearray:
    """Behind the header and block of the class, and the image's header."""
    return content[: at + 3 * 512 + 9]


def wrong_size(content: bytearray, at: int) -> bytearray:
    """A header whose checksum is right."""
    content[at + 124 : at + 136] = b"no number  \0"
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    return content


Damage = Callable[[bytearray, int], bytearray]


def damage_third_sample(path: Path, damage: Damage) -> None:
    start = min(part.start for part in shards._read_headers(path).samples[2].parts.values())
    path.write_bytes(damage(bytearray(path.read_bytes()), start - 512))
    shards._read_headers.cache_clear()


LONG = f"{'folder' * 15}/{'long' * 20}/"  # a header's field has 100 letters


def with_long_names(path: Path, format: int = tarfile.GNU_FORMAT) -> None:
    """Rewrite a shard with names that only tarfile reads."""
    with tarfile.open(path) as old, tarfile.open(f"{path}.new", "w", format=format) as new:
        for member in old:
            content = old.extractfile(member)
            member.name = LONG + member.name
            new.addfile(member, content)
    Path(f"{path}.new").rename(path)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_names_that_do_not_fit_one_field(folder: Path, format: int) -> None:
    shard = folder / "train-2.tar"
    with_long_names(shard, format)
    data = ImageData(f"wds/{shard}")
    assert grays(Loader(data, 4)) == LEVELS[:4]
    assert labels(Loader(data, 4)) == [1, 1, 1, 2]
    assert data.path(1) == f"{shard}/{LONG}image011.png"


@pytest.mark.parametrize("damage", [cut_in_an_image, cut, garble, flip, wrong_size])
@pytest.mark.parametrize("with_info", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_a_shard_that_breaks_in_the_middle(
    folder: Path,
    damage: Damage,
    with_info: bool,
    plain: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if with_info:
        write_info(folder, train={"train-2.tar": 4, "train-10.tar": 3, "train-11.tar": 2})
    broken = folder / "train-2.tar"
    if not plain:
        with_long_names(broken)
        shards._read_headers.cache_clear()
    damage_third_sample(broken, damage)
    batches = Loader(ImageData(f"wds/{folder}"), 3)
    read = list(batches)
    list(batches)
    assert grays(read) == [10, 11, *LEVELS[4:]]
    assert labels(read) == [1, 1, 2, 2, 3, 3, 4]
    lost = [name for batch in read for name in batch.skipped]
    assert lost == [str(broken)] * (2 if with_info else 1)
    [record] = caplog.records  # one for all images and epochs
    assert f"{broken}: breaks off after 2 images" in record.getMessage()
    with pytest.raises(InputError, match=r"train-2\.tar"):
        list(Loader(ImageData(f"wds/{folder}", strict=True), 3))


def test_a_header_that_tarfile_takes_for_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in "abcd":
            member = tarfile.TarInfo(f"{name}.png")
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    damage_third_sample(path, wrong_size)
    files, problem = list_files(path)
    assert [file.name for file in files] == ["a.png", "b.png"]
    assert problem == "invalid header"


def test_a_shard_that_is_no_tar_or_goes_away(folder: Path) -> None:
    (folder / "train-10.tar").write_bytes(b"no tar at all" * 100)
    data = ImageData(f"wds/{folder}")
    (folder / "train-11.tar").unlink()
    for cached in (True, False):
        if not cached:
            shards._read_headers.cache_clear()
        (batch,) = list(Loader(data, 9))
        assert grays([batch]) == LEVELS[:4]
        skipped = {Path(name).relative_to(folder).parts[0] for name in batch.skipped}
        assert skipped == {"train-10.tar", "train-11.tar"}


def test_no_permission_is_said_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shards, "list_files", refuse)
    shards._read_headers.cache_clear()
    with pytest.raises(InputError, match=r"train-2\.tar .*Permission denied"):
        ImageData(f"wds/{folder}")


def test_places_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    webdataset.TarWriter(str(tmp_path / "none.tar")).close()
    for place, named in {
        f"{tmp_path}/empty": ".tar",
        f"{tmp_path}/none.tar": "no images",
        f"{tmp_path}/nowhere": "1 shards",
        f"{tmp_path}/none.tar@train": "_info.json",
    }.items():
        with pytest.raises(InputError, match=named) as raised:
            ImageData(f"wds/{place}")
        assert "\n" not in str(raised.value)
    (tmp_path / "empty" / "a.tar").touch()
    with pytest.raises(InputError, match=f"wds/{tmp_path}/empty"):
        ImageData(tmp_path / "empty")


# ---------------------------------------------------------------- order


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six shards of five images, of which two at a time are shuffled."""
    monkeypatch.setattr(order, "WINDOW", 10)
    for number in range(6):
        levels = [10 * number + place for place in range(5)]
        write_shard(tmp_path / f"{number}.tar", levels, cls=lambda gray: gray // 10)
    return tmp_path


def drawn(data: ImageData, epoch: int, start: int = 0, workers: int = 0) -> list[int]:
    batches = Loader(data, 5, shuffle=True, num_workers=workers)
    batches.set_epoch(epoch, start)
    return grays(batches)


def test_shards_are_shuffled_in_windows(many: Path) -> None:
    data = ImageData(f"wds/{many}")
    orders = [drawn(data, epoch) for epoch in range(3)]
    for found in orders:
        assert sorted(found) == [10 * number + place for number in range(6) for place in range(5)]
        windows = [found[start : start + 10] for start in (0, 10, 20)]
        assert all(len({gray // 10 for gray in window}) == 2 for window in windows)
        assert any(window[:5] != sorted(window[:5]) for window in windows)
    assert len({gray // 10 for found in orders for gray in found[:10]}) > 2
    assert drawn(data, 1, workers=2) == orders[1]


def test_resuming_inside_an_epoch_is_exact_and_logged(
    many: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ImageData(f"wds/{many}")
    whole = drawn(data, 4)
    assert drawn(data, 4, start=1) == whole[5:]
    [record] = caplog.records
    batches = Loader(data, 5, shuffle=True)
    batches.set_epoch(4, 1)
    numbers = {gray // 10 for gray in whole[:5]} & {gray // 10 for gray in whole[5:10]}
    assert set(batches.reopened) == {str(many / f"{number}.tar") for number in numbers}
    assert f"{len(numbers)} shards" in record.getMessage()
    batches.set_epoch(4, 2)
    assert batches.reopened == ()  # where a window ends


def test_shards_beside_a_folder_without_labels(many: Path, tmp_path: Path) -> None:
    for gray in range(100, 130):
        write_image(tmp_path / "flat" / f"{gray}.png", gray)
    both = ConcatDataset([ImageData(f"wds/{many}"), ImageData(tmp_path / "flat")])
    batches = Loader(both, 10, shuffle=True)
    read = list(batches)
    assert sorted(grays(read)) == sorted([*drawn(both.datasets[0], 0), *range(100, 130)])
    for batch in read:  # mixed throughout, and each image with its own label
        unlabeled = batch.labels == UNLABELED
        assert 0 < unlabeled.sum() < 10
        expected = [UNLABELED if gray >= 100 else gray // 10 for gray in grays([batch])]
        assert batch.labels.tolist() == expected
    batches.set_epoch(0, 3)
    assert torch.equal(next(iter(batches)).images, read[3].images)
    seen = {gray // 10 for gray in grays(read[:3]) if gray < 100}
    unseen = {gray // 10 for gray in grays(read[3:]) if gray < 100}
    assert {Path(name).stem for name in batches.reopened} == {str(n) for n in seen & unseen}


def test_a_part_held_out_keeps_its_shards(many: Path) -> None:
    rest, held = split(ImageData(f"wds/{many}"), 0.2)
    assert len(held) == 6
    assert sorted(drawn(rest, 0) + drawn(held, 0)) == sorted(drawn(ImageData(f"wds/{many}"), 0))
