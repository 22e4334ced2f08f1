"""`dynamicvit calibrate`: a budget per image in a folder, and what it says of the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dynamicvit import DynamicViT
from dynamicvit.data import ImageData, eval_transform
from dynamicvit.evaluation.counts import calibrate_on
from families import DEIT
from pictures import noise_folders

Main = Callable[..., int]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = noise_folders(tmp_path_factory.mktemp("photos"), classes=2, each=40)
    (folder / "0" / "broken.png").write_bytes(b"none")
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    DEIT.sparse(policy="merged").save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*broken.png:UserWarning")
def test_it_writes_what_the_call_does_and_names_the_ends(
    command: Main, photos: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (photos, "--model", saved, "--images", 40, "--keep-ratio", 0.6, "-o", tmp_path / "out")
    assert command("calibrate", *words) == 0
    said = capsys.readouterr().out
    loaded = DynamicViT.from_pretrained(tmp_path / "out")
    assert loaded.per_image is not None
    assert loaded.keep_ratio == 0.6

    own = DynamicViT.from_pretrained(saved)
    own.keep_ratio = 0.6
    data = ImageData(photos, labeled=False, transform=eval_transform(own))
    found = calibrate_on(own, data, images=40)
    assert own.per_image == loaded.per_image
    assert not found.seen
    assert len(found.paths) == len(found.kept) >= 39
    assert "patches that" in said
    assert f"{found.kept[:, 0].min()}" in said
    easiest, hardest = found.by_count()[0], found.by_count()[-1]
    assert sum(easiest[1]) == found.kept.sum(dim=1).min()
    assert sum(hardest[1]) == found.kept.sum(dim=1).max()
    assert f"fewest: {easiest[0]} {easiest[1]}, " in said
    assert f"most: {hardest[0]} {hardest[1]}, " in said
    with torch.no_grad():
        images = torch.stack([data[i].image for i in range(1, 9)])
        kept = loaded.eval().forward_pruned(images).kept
        assert torch.equal(kept[-1], own.forward_pruned(images).kept[-1])


def test_the_same_images_where_there_are_no_others(saved: Path, photos: Path) -> None:
    model = DynamicViT.from_pretrained(saved)
    data = ImageData(photos / "1", labeled=False, transform=eval_transform(model))
    found = calibrate_on(model, data, images=40)
    assert found.seen
    assert len(found.paths) == 40


def test_bad_input_is_one_line(
    command: Main, photos: Path, saved: Path, tmp_path: Path, one_line: Callable[[], str]
) -> None:
    out = tmp_path / "out"
    dense = ("--model", "test_vit", "--no-pretrained", "-o", out)
    for words, said in (
        ((photos, "--model", saved, "--images", 8, "-o", out), "32 images or more, got 8"),
        ((photos, "--model", saved, "--cap", 0.5, "-o", out), "a cap is 1 or more"),
        ((photos, *dense), "needs keep scores that compare images, and lookahead gives none"),
        ((photos, "--model", "file.onnx", "-o", out), "is an exported file"),
        ((tmp_path / "nowhere", "--model", saved, "-o", out), "nowhere does not exist"),
        ((photos, "--model", saved, "-o", saved / "config.json"), "config.json"),
    ):
        (tmp_path / "file.onnx").touch()
        assert command("calibrate", *words) == 2, words
        assert said in one_line(), words
    assert not out.exists()
