"""`dynamicvit predict` and `eval --save-kept`: every image in order, whatever happens."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dynamicvit
from dynamicvit.data import ImageData, class_names, eval_transform
from exports import small
from families import DEIT
from pictures import WORKERS, noise_folders, truncated_jpeg, write_image
from processes import run_two

pytestmark = WORKERS

Main = Callable[..., int]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    DEIT.sparse(num_classes=3).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images, of which the second and the last can't be read."""
    root = noise_folders(tmp_path / "images", classes=2, each=3)
    truncated_jpeg(root / "0" / "0b.jpg")
    truncated_jpeg(root / "1" / "9.jpg")
    return root


NAMES = ["0/0.png", "0/0b.jpg", "0/1.png", "0/2.png", "1/0.png", "1/1.png", "1/2.png", "1/9.jpg"]
BAD = {1, 7}


@pytest.fixture
def main(command: Main) -> Main:
    return lambda *arguments: command("predict", *arguments, "--workers", "0")


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table; empty values are None, numbers are numbers."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    words = ("image", "error", "class_1", "class_2", "class_3")
    return [
        {
            name: None if value == "" else value if name in words else json.loads(value)
            for name, value in row.items()
        }
        for row in rows
    ]


def expected(saved: Path, folder: Path, top: int) -> list[dict[str, Any]]:
    """By hand, one image at a time."""
    model = dynamicvit.load(saved)
    data = ImageData(folder, transform=eval_transform(model))
    rows = []
    for index, name in enumerate(NAMES):
        row: dict[str, Any] = {"image": str(folder / name)}
        if index not in BAD:
            with torch.no_grad():
                output = model.forward_pruned(data[index].image[None])
            chances = output.logits[0].softmax(0)
            for rank, best in enumerate(chances.sort(descending=True).indices[:top].tolist(), 1):
                row[f"class_{rank}"] = class_names(model)[best]
                row[f"index_{rank}"] = best
                row[f"probability_{rank}"] = pytest.approx(float(chances[best]), abs=2e-6)
            for stage, kept in enumerate(output.kept, 1):
                row[f"kept_{stage}"] = pytest.approx(float(kept.float().mean()), abs=1e-6)
        rows.append(row)
    return rows


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_every_image_in_order(
    ending: str, saved: Path, folder: Path, tmp_path: Path, command: Main, capsys, caplog
) -> None:
    out = tmp_path / f"out.{ending}"
    words = (folder, "--model", saved, "-o", out, "--top", 2, "--batch-size", 3, "--workers", 2)
    assert command("predict", *words) == 0
    assert "8 images (2 unreadable)" in capsys.readouterr().out
    assert str(folder / NAMES[1]) in caplog.text
    rows = read(out)
    for row, wanted in zip(rows, expected(saved, folder, 2), strict=True):
        assert (row.pop("error") is not None) == ("class_1" not in wanted)
        assert {name: value for name, value in row.items() if value is not None} == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", out.name]


def test_the_function_has_the_commands_defaults(
    saved: Path, folder: Path, tmp_path: Path, main: Main
) -> None:
    assert main(folder, "--model", saved, "-o", tmp_path / "out.jsonl") == 0
    found = dynamicvit.predict(saved, folder)
    assert list(found.rows) == read(tmp_path / "out.jsonl")
    assert found.unreadable == tuple(str(folder / NAMES[index]) for index in sorted(BAD))
    assert (found.images, found.resumed) == (8, 0)
    dynamicvit.predict(saved, folder, tmp_path / "again.csv")
    assert read(tmp_path / "again.csv") == list(found.rows)


def test_sources_of_every_kind(saved: Path, folder: Path, tmp_path: Path, main: Main) -> None:
    pytest.importorskip("torchvision")
    one = write_image(tmp_path / "one.PNG", 90)
    out = tmp_path / "out.jsonl"
    images = (folder / "0", one, f"torch/image_folder/{folder}")
    assert main(*images, "--model", saved, "-o", out) == 0
    names = [row["image"] for row in read(out)]
    assert names[:5] == [str(folder / name) for name in NAMES[:4]] + [str(one)]
    assert len(names) == 13


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_name_that_is_no_utf8_is_escaped(
    suffix: str, saved: Path, folder: Path, tmp_path: Path, main: Main
) -> None:
    odd = os.fsdecode(os.fsencode(folder) + b"/\xff.png")
    write_image(Path(odd), 9)
    out = tmp_path / f"odd{suffix}"
    assert main(folder, "-m", saved, "-o", out) == 0
    assert f"{folder}/\\udcff.png" in [row["image"] for row in read(out)]


def test_an_exported_file(exported: Callable[..., Path], tmp_path: Path, main: Main) -> None:
    folder = noise_folders(tmp_path / "images", classes=1, each=3, size=(64, 80))
    out = tmp_path / "out.jsonl"
    assert main(folder, "--model", exported("torch"), "-o", out, "--batch-size", 2) == 0
    rows = dynamicvit.predict(small(), folder).rows
    for ours, theirs in zip(read(out), rows, strict=True):
        assert ours.pop("error") is theirs.pop("error") is None
        for name, value in theirs.items():
            if "class" not in name:
                assert ours[name] == (value if name == "image" else pytest.approx(value, abs=1e-4))


# ---------------------------------------------------------------- stopping


def stopped(main: Main, after: int, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of a run that gets SIGTERM while a batch is classified."""
    real, batches = dynamicvit.DynamicViT.forward_pruned, []

    def forward(model: Any, images: Any) -> Any:
        batches.append(len(images))
        if len(batches) == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(model, images)

    with monkeypatch.context() as patch:
        patch.setattr(dynamicvit.DynamicViT, "forward_pruned", forward)
        return main(*words)


def test_a_stopped_run_resumes(
    saved: Path, folder: Path, tmp_path: Path, main: Main, capsys, one_line, monkeypatch
) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    words = (folder, "--model", saved, "--batch-size", 2)
    assert main(*words, "-o", whole) == 0
    capsys.readouterr()
    assert stopped(main, 2, monkeypatch, *words, "-o", out) == 128 + signal.SIGTERM
    assert "stopped after 4 of 8 images" in capsys.readouterr().err
    assert not out.exists()
    draft = tmp_path / "out.csv.part"
    draft.write_bytes(draft.read_bytes()[:-5])  # as if killed while it wrote the fourth row
    done: list[int] = []
    found = dynamicvit.predict(
        saved, folder, out, batch_size=2, workers=0, progress=done.append, image_size=DEIT.size
    )
    assert done == [2, 2, 2, 2]
    assert found.resumed == 2
    assert out.read_text() == whole.read_text()
    assert not draft.exists()


def test_a_draft_of_something_else_is_refused(
    saved: Path, folder: Path, tmp_path: Path, main: Main, capsys, one_line, monkeypatch
) -> None:
    out = tmp_path / "out.csv"
    words = (folder, "--model", saved, "-o", out, "--batch-size", 2)
    assert stopped(main, 2, monkeypatch, *words) == 128 + signal.SIGTERM
    capsys.readouterr()
    draft = tmp_path / "out.csv.part"
    before = draft.read_bytes()
    other = tmp_path / "other"
    DEIT.sparse(num_classes=3, seed=5).save_pretrained(other)
    for arguments, said in (
        ((folder, "--model", other), "another model"),
        ((folder, "--model", saved, "--keep-ratio", 0.5), "0.5"),
        ((folder, "--model", saved, "--top", 1), "another columns"),
        ((folder / "0", "--model", saved), str(folder / "0")),
    ):
        assert main(*arguments, "-o", out) == 2
        assert said in one_line()
    (folder / "0" / "2.png").rename(folder / "0" / "3.png")
    assert main(*words) == 2
    assert "2.png" in one_line()
    assert draft.read_bytes() == before


def test_bad_input_is_one_line(
    saved: Path, folder: Path, tmp_path: Path, main: Main, one_line
) -> None:
    out = tmp_path / "out.csv"
    bad = truncated_jpeg(tmp_path / "bad" / "1.jpg")
    for arguments, said in (
        ((folder, "-m", saved, "-o", tmp_path / "out.xlsx"), ".parquet"),
        ((folder, "-m", saved, "-o", tmp_path / "no" / "out.csv"), str(tmp_path / "no")),
        ((tmp_path / "nowhere.jpg", "-m", saved, "-o", out), "nowhere.jpg"),
        ((folder, "-m", saved, "-o", out, "--top", 0), "got 0"),
        ((folder, "-m", saved, "-o", out, "--batch-size", 0), "batch"),
        ((folder, "-m", tmp_path / "gone", "-o", out), "gone"),
        ((folder, "-m", saved, "-o", out, "--strict"), NAMES[1]),
    ):
        assert main(*arguments) == 2
        assert said in one_line(), arguments
    (tmp_path / "out.csv.part").unlink()
    assert main(bad, "-m", saved, "-o", out) == 2
    assert not list(tmp_path.glob("out.csv*"))


def in_fork(words: list[str]) -> None:
    sys.argv = ["dynamicvit", *words]
    dynamicvit.cli.main()


def test_two_processes_write_the_same(
    saved: Path, folder: Path, tmp_path: Path, main: Main
) -> None:
    words = [folder, "--model", saved, "--batch-size", 4, "--workers", 0, "-o"]
    run_two(in_fork, ["predict", *map(str, words), str(tmp_path / "two.csv")])
    assert main(*words[:-3], "-o", tmp_path / "one.csv") == 0
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()


# ---------------------------------------------------------------- eval --save-kept


def masks(saved: Path, folder: Path) -> tuple[np.ndarray, list[int]]:
    """By hand: what is kept of each readable image, and the class predicted for it."""
    model = dynamicvit.load(saved)
    data = ImageData(folder, transform=eval_transform(model))
    images = torch.stack([data[index].image for index in range(8) if index not in BAD])
    with torch.no_grad():
        output = model.forward_pruned(images)
    kept = torch.stack(output.kept, 1).reshape(len(images), -1, *output.grid)
    return kept.numpy(), output.logits.argmax(1).tolist()


def test_the_kept_patches_of_a_data_set(
    saved: Path, folder: Path, tmp_path: Path, command: Main
) -> None:
    kept, predicted = masks(saved, folder)
    readable = [str(folder / name) for index, name in enumerate(NAMES) if index not in BAD]
    class_map = tmp_path / "classes.txt"
    class_map.write_text("0\n1\n")
    words = ["eval", folder, "-m", saved, "--class-map", class_map, "--batch-size", 4]
    out = tmp_path / "kept.npz"
    for _ in range(2):  # an own result is replaced
        assert command(*words, "--workers", 0, "--save-kept", out) == 0
    with np.load(out) as found:
        assert found["image"].tolist() == readable
        assert found["label"].tolist() == [0, 0, 0, 1, 1, 1]
        assert found["predicted"].tolist() == predicted
        assert found["kept"].shape == (6, 3, 4, 5)
        assert (found["kept"] == kept).all()
    pytest.importorskip("pyarrow")
    out = tmp_path / "kept.parquet"
    assert command(*words, "--workers", 0, "--save-kept", out) == 0
    rows = read(out)
    assert [row["image"] for row in rows] == readable
    for row, mask in zip(rows, kept, strict=True):
        assert [row[f"kept_{stage}"] for stage in (1, 2, 3)] == mask.reshape(3, -1).tolist()


def test_kept_patches_that_cannot_be_saved(
    saved: Path, folder: Path, tmp_path: Path, command: Main, one_line
) -> None:
    for out, more, said in (
        (tmp_path / "kept.csv", (), ".npz, .parquet"),
        (tmp_path / "no" / "kept.npz", (), "no"),
        (tmp_path / "kept.npz", ("--dense",), "--dense"),
    ):
        assert command("eval", folder, "-m", saved, "--save-kept", out, *more) == 2
        assert said in one_line()
    assert not list(tmp_path.glob("kept*"))


def test_shares_are_those_of_the_schedule(saved: Path, folder: Path) -> None:
    """Of N patches each stage keeps the rounded-down or -up share; here of 20."""
    [row] = dynamicvit.predict(saved, folder / "0" / "0.png").rows
    ratios = dynamicvit.load(saved).schedule.keep_ratios
    for stage, ratio in enumerate(ratios, 1):
        assert math.isclose(row[f"kept_{stage}"], ratio, abs_tol=1 / 20)
