"""Files without an end, or dead ones, are refused or left out, named, in seconds."""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dynamicvit import InputError
from dynamicvit.data import ImageData, Loader
from dynamicvit.data.decoding import MOST_ELONGATED, read_image
from dynamicvit.data.sources.tars import list_files
from dynamicvit.streaming import open_frames
from dynamicvit.utils.inputs import read_bytes
from pictures import encoded


@pytest.fixture(autouse=True)
def in_seconds() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 20


def endless(folder: Path, ending: str) -> dict[str, Path]:
    """Files that never end, or are none."""
    found = {name: folder / f"{name}{ending}" for name in ("pipe", "device", "loop", "sparse")}
    os.mkfifo(found["pipe"])
    found["device"].symlink_to("/dev/zero")
    found["loop"].symlink_to(found["loop"].name)
    with open(found["sparse"], "wb") as file:
        file.truncate(1 << 40)
    return found


def test_endless_images_are_left_out_and_named(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "good.png").write_bytes(encoded(10))
    bad = endless(tmp_path / "a", ".png")
    bad["line"] = tmp_path / "a" / "line.png"
    Image.new("L", (1, 60000)).save(bad["line"])
    images = ImageData(tmp_path)
    [batch] = Loader(images, 16, num_workers=0)
    assert len(batch) == 2
    assert {Path(path).stem for path in batch.skipped} >= {"pipe", "device", "sparse", "line"}
    for name, path in bad.items():
        with pytest.raises(InputError, match=str(path)):
            read_image(path)
        if name != "loop":
            assert name in {Path(each).stem for each in batch.skipped}


def test_an_image_may_be_long_but_not_a_line(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    for length, fine in ((MOST_ELONGATED, True), (MOST_ELONGATED + 1, False)):
        Image.new("L", (length, 1)).save(path)
        if fine:
            assert read_image(path).size == (length, 1)
        else:
            with pytest.raises(InputError, match=f"{length}x1 pixels"):
                read_image(path)


def test_endless_sources_are_refused(tmp_path: Path) -> None:
    for path in endless(tmp_path, ".tar").values():
        for name in (path, f"wds/{path}"):
            with pytest.raises(InputError, match=path.name):
                ImageData(name)
    for path in endless(tmp_path, ".mp4").values():
        with pytest.raises(InputError, match=path.name):
            open_frames(str(path))


COMMANDS = (
    ("eval", "{}", "--model", "test_vit", "--no-pretrained"),
    ("eval", "photos", "--model", "{}"),
    ("eval", "photos", "--model", "test_vit", "--no-pretrained", "--checkpoint", "{}"),
    ("eval", "photos", "--model", "test_vit", "--no-pretrained", "--class-map", "{}"),
    ("train", "photos", "-m", "test_vit", "--no-pretrained", "-o", "run", "--recipe", "{}"),
    ("predict", "{}", "-o", "out.csv", "--model", "test_vit", "--no-pretrained"),
    ("visualize", "{}", "--model", "test_vit", "--no-pretrained", "-o", "run"),
    ("convert", "{}", "-o", "run"),
    ("stream", "{}", "--model", "test_vit", "--no-pretrained"),
    ("backbones", "--check", "{}"),
)
ENDINGS = {"--class-map": ".txt", "--recipe": ".yaml", "visualize": ".png", "stream": ".mp4"}


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: f"{words[0]} {words.index('{}')}")
def test_every_command_refuses_endless_files(
    tmp_path: Path,
    words: tuple[str, ...],
    command: Callable[..., int],
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dynamicvit.cli.backbones.BACKBONES", ())
    for label in range(1000 if "--class-map" in words else 1):
        (tmp_path / "photos" / str(label)).mkdir(parents=True)
    (tmp_path / "photos" / "0" / "good.png").write_bytes(encoded(10))
    option = words[words.index("{}") - 1]
    ending = ENDINGS.get(option, ENDINGS.get(words[0], ".pth"))
    for path in endless(tmp_path, ending).values():
        assert command(*(word.replace("{}", path.name) for word in words)) == 2
        error = capsys.readouterr().err.splitlines()
        assert path.name in error[-1], error
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "out.csv").exists()


# ---------------------------------------------------------------- tars and shards


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def sized(tar: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """The tar with another size, and kind, of its first file."""
    header = bytearray(tar[:512])
    header[124:136], header[156:157] = size.ljust(12, b"\0"), kind
    total = sum(header) - sum(header[148:156]) + 8 * 32
    header[148:156] = f"{total:06o}\0 ".encode()
    return bytes(header) + tar[512:]


WHOLE = tar_of({"a/0.png": encoded(1), "b/1.png": encoded(2)})
SIZES = (b"-7777777777", b"77777777777", b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-1", b"x")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"g", b"S"])
def test_impossible_headers(tmp_path: Path, size: bytes, kind: bytes) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(sized(WHOLE, size, kind))
    for name in (path, f"wds/{path}"):
        with pytest.raises(InputError, match=r"x\.tar"):
            Loader(ImageData(name, strict=True), 2, num_workers=0).__iter__().__next__()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damage_of_a_tar_is_seen_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(WHOLE) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.tar"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(WHOLE)))])
    list_files(path)
    for name in (str(path), f"wds/{path}"):
        try:
            images = ImageData(name, labeled=False)
            for row in range(min(4, len(images))):
                images.path(row)
                images[row]
        except InputError:
            continue


def test_tars_in_tars_without_end(tmp_path: Path) -> None:
    inner = WHOLE
    for _ in range(12):
        inner = tar_of({"x.tar": inner})
    (tmp_path / "deep.tar").write_bytes(inner)
    with pytest.raises(InputError, match=r"deep\.tar"):
        ImageData(tmp_path / "deep.tar")


@pytest.mark.parametrize(
    "braces",
    [
        "{0..99999999999}",
        "{0..99999999999999999999}",
        "{0..9999}{0..9999}",
        "{a,b}" * 40,
        "{0..9}" * 30,
        "{" * 5000,
        "{0..9",
        "{}" * 2000,
    ],
)
def test_braces_without_end(tmp_path: Path, braces: str) -> None:
    with pytest.raises(InputError, match="wds/"):
        ImageData(f"wds/{tmp_path}/{braces}.tar")


NESTED = "[" * 100_000
INFOS = st.one_of(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    )
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=INFOS, lengths=INFOS | st.just([10**11]) | st.just([-1]), key=INFOS)
def test_any_info_of_shards(tmp_path: Path, names: object, lengths: object, key: object) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of({"0.png": encoded(1), "0.cls": b"0"}))
    split = {"num_samples": 1, "filenames": names, "shard_lengths": lengths, "alt_label": key}
    for named in (names, ["0.tar"]):
        info = {"splits": {"train": {**split, "filenames": named, "name": "train"}}}
        (tmp_path / "_info.json").write_text(json.dumps(info))
        try:
            images = ImageData(f"wds/{tmp_path}")
        except InputError:
            continue
        assert named == ["0.tar"]
        assert len(images) in (1, 2, 3, 4)


@pytest.mark.parametrize("text", [NESTED, "", "{}", '{"splits": 1}', "null"])
def test_a_broken_info_of_shards(tmp_path: Path, text: str) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of({"0.png": encoded(1), "0.json": NESTED.encode()}))
    assert not ImageData(f"wds/{tmp_path}").labeled
    (tmp_path / "_info.json").write_text(text)
    with pytest.raises(InputError, match=str(tmp_path)):
        ImageData(f"wds/{tmp_path}")


def test_a_limit_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10))
    assert read_bytes(tmp_path / "file", 10) == bytes(10)
    with pytest.raises(OSError, match="10 bytes are too many, 9 at most"):
        read_bytes(tmp_path / "file", 9)
