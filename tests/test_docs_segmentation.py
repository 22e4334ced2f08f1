"""docs/segmentation.md does what it says, on a dozen small images."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchmetrics")
pytest.importorskip("av")

import timm

from clips import write_clip
from exports import NEEDED, ignore_deprecations
from families import DEIT
from masks import write_scenes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "segmentation.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = [line for line in TEXT.splitlines() if line.startswith("dynamicvit ")]
#: The float file is one that the int8 one begins with, so that a graph is converted once.
CHANGED = {"--image-size 384": "--image-size 48", "street.onnx": "street.xml"}
TINY = (
    *("--set", "images=4", "--set", "batch_size=2", "--set", "dense.images=4"),
    *("--set", "dense.batch_size=2", "--set", "dense.drop_path=0", "--set", "stages=[1]"),
    *("--workers", "0"),
)
MORE = {
    **dict.fromkeys(("eval", "predict"), ("--workers", "0")),
    "train": TINY,
    "bench": ("--samples", "2", "--batch-size", "1", "--precision", "fp32", "--threads", "1"),
    "compare": ("--no-timing", "--methods", "tome", "--workers", "0"),
    "export": ("--batch", "1"),  # a known size is written twice as fast
}


pytestmark = [ignore_deprecations, pytest.mark.usefixtures("traced_once")]


@pytest.fixture
def street(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "STREET", 12, "train")
    write_scenes(tmp_path / "STREET", 3, "test")
    (tmp_path / "STREET" / "images" / "test" / "0.png").rename(tmp_path / "street.jpg")
    (tmp_path / "STREET" / "masks" / "test" / "0.png").unlink()
    write_scenes(tmp_path / "more", 2)
    (tmp_path / "more" / "images").rename(tmp_path / "PHOTOS")
    write_clip(tmp_path / "clip.mp4", 3)
    DEIT.sparse(depth=2, stages=(1,), img_size=(48, 48)).save_pretrained(
        tmp_path / "vit_tiny_patch16_224"
    )
    return tmp_path


def test_the_commands(
    street: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., int]
) -> None:
    for package in (*NEEDED["openvino"], "nncf"):
        pytest.importorskip(package)
    monkeypatch.chdir(street)
    assert len(COMMANDS) == 10 + 2
    for line in COMMANDS:
        for said, small in CHANGED.items():
            line = line.replace(said, small)
        words = shlex.split(line)[1:]
        assert command(*words, *MORE.get(words[0], ())) == 0, line
    assert (street / "pictures" / "street_dynamicvit.png").is_file()
    assert sorted(path.name for path in (street / "masks").iterdir()) == [
        "0.png",
        "1.png",
        "predictions.csv",
    ]
    assert (street / "overlay.mp4").stat().st_size > 0


def test_the_code(street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(street)
    small = DEIT.backbone(img_size=(32, 32))
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: small)
    names = {"images": torch.randn(2, 3, 32, 32)}
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.M):
        block = block.replace("num_classes=10", "num_classes=3").replace('"hair"', '"class 1"')
        block = block.replace("dense=dense)", "dense=dense, workers=0)")
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    maps = names["maps"]
    assert [tuple(one.shape) for one in maps] == [(576, 384)] * 2  # type: ignore[attr-defined]
