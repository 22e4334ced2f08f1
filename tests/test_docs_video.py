"""docs/video.md does what it says, on small clips."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")

import timm

from clips import write_clip
from exports import NEEDED, ignore_deprecations

PAGE = Path(__file__).resolve().parents[1] / "docs" / "video.md"
COMMANDS = [
    line
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("dynamicvit ") and "CLIPS" in line + "CLIPS" * ("clip.mp4" in line)
]
#: The float file is one that the int8 one begins with, so that a graph is converted once.
CHANGED = {"--frames 8": "--frames 4", "60%": "85%", "v.onnx": "v.xml"}
TINY = dict(embed_dim=48, num_heads=3, depth=2, img_size=32)
#: Few steps, after which no answer is a matter of rounding.
FEW = ("images=4", "batch_size=2", "dense.images=128", "dense.learning_rate=0.01")
FEW += ("dense.backbone_lr_scale=1", "stages=[1]")
SET = [word for value in FEW for word in ("--set", value)]
MORE = {
    **dict.fromkeys(("eval", "predict"), ("--workers", "0")),
    "train": (*SET, "--no-pretrained", "--workers", "0"),
    "compare": ("--no-timing", "--methods", "rlt", "--workers", "0"),
    "tune": ("--evaluations", "12", "--images", "32"),
    "export": ("--batch", "1"),  # a known size is written twice as fast
}

pytestmark = [ignore_deprecations, pytest.mark.usefixtures("traced_once")]


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for split, each in (("train", 16), ("test", 2)):
        for name, right in (("dark", 0), ("light", 240)):
            (tmp_path / "CLIPS" / split / name).mkdir(parents=True)
            for index in range(each):
                file = tmp_path / "CLIPS" / split / name / f"{index}.mp4"
                write_clip(file, 6 + index % 4, size=(40, 32), right=right)
    write_clip(tmp_path / "clip.mp4", 6)
    create = timm.create_model

    def small(name: str, **given: Any) -> Any:
        return create(name, **{**TINY, **given})

    monkeypatch.setattr(timm, "create_model", small)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.extended)])
def test_the_commands(clips: Path, command: Callable[..., int], whole: bool) -> None:
    """The whole page has int8 files too."""
    for package in (*NEEDED["openvino"], "nncf"):
        pytest.importorskip(package)
    assert len(COMMANDS) == 10
    for line in COMMANDS:
        if "int8" in line and not whole:
            continue
        for said, small in CHANGED.items():
            line = line.replace(said, small)
        words = shlex.split(line)[1:]
        assert command(*words, *MORE.get(words[0], ())) == 0, line
    assert {path.name for path in (clips / "pictures").iterdir()} == {
        "clip_dynamicvit.png",
        "clip_dynamicvit.gif",
    }
    table = (clips / "clips.csv").read_text().splitlines()
    assert len(table) == 1 + 4
    assert (clips / "tuned" / "schedule.json").is_file()
