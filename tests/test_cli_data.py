"""Every kind of source on the command line, in one run and beside each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from families import DEIT
from pictures import encoded, truncated_jpeg, write_image

Main = Callable[..., int]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny model of three classes in a folder."""
    DEIT.sparse(num_classes=3).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def main(command: Main) -> Main:
    return lambda *arguments: command(*arguments, "--workers", "0")


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Six images of classes 0 to 2 in two shards, of which one breaks off."""
    webdataset = pytest.importorskip("webdataset", reason="pip install 'dynamicvit[data]'")
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / "shards" / f"{shard}.tar")) as writer:
            for image in range(3):
                writer.write({"__key__": f"{image}", "png": encoded(80 * image), "cls": image})
    whole = (tmp_path / "shards" / "0.tar").read_bytes()
    (tmp_path / "shards" / "2.tar").write_bytes(whole[: len(whole) // 2])
    return f"wds/{tmp_path}/shards"


def test_training_on_shards_and_unlabeled_sources(
    saved: Path, shards: str, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets", reason="pip install 'dynamicvit[data]'")
    table = {"image": [{"bytes": encoded(gray)} for gray in (5, 6)]}
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict(table, features=features).save_to_disk(tmp_path / "table")
    write_image(tmp_path / "flat" / "1.png", 7)
    truncated_jpeg(tmp_path / "flat" / "2.jpg")
    out = tmp_path / "run"
    more = ["--unlabeled", f"hfds/{tmp_path}/table", "--unlabeled", tmp_path / "flat"]
    # Six, two and the break of the third shard, two, two: one batch of all.
    steps = ["--set", "epochs=1", "--set", "images=null", "--set", "batch_size=13"]
    assert main("train", shards, *more, "-m", saved, "-o", out, *steps) == 0
    report = json.loads((out / "report.json").read_text())["training"]
    broken, truncated = str(tmp_path / "shards" / "2.tar"), str(tmp_path / "flat" / "2.jpg")
    assert report["images"] == 11
    assert set(report["skipped"]) == {broken, truncated}
    capsys.readouterr()

    assert main("eval", shards, "-m", out, "--json", "-") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["data"] == shards
    assert numbers["class_map"] == "the numbers given"
    assert numbers["labeled"] == numbers["images"] == 8
    assert numbers["skipped"] == [broken]
