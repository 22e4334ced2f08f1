"""benchmarks/frontier.py: it makes each model once, by the commands users have, and reports it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_model

from pictures import noise_folders

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
MODEL = "test_vit"  # timm's, for tests: 64 wide, 160 px


@pytest.mark.extended
def test_the_frontier_is_made_once_and_goes_on(
    command: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    frontier: Any = import_module("frontier")
    commands: list[list[str]] = []

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert words[:3] == [sys.executable, "-m", "dynamicvit"]
        commands.append(words[3:])
        return subprocess.CompletedProcess(words, command(*words[3:]))

    monkeypatch.setattr(frontier.subprocess, "run", run)
    images = noise_folders(tmp_path / "images", classes=2, each=2)
    classes = tmp_path / "classes.txt"
    classes.write_text("\n".join(sorted(path.name for path in images.iterdir())))
    weights = tmp_path / "weights.safetensors"
    save_model(timm.create_model(MODEL), str(weights))
    out = tmp_path / "out"
    wanted = [images, images, "--unlabeled", images]
    wanted += ["--model", MODEL, "--checkpoint", weights, "--class-map", classes, "-o", out]
    wanted += ["--images", 4, "--set", "batch_size=4", "--set", "augment.mixup_prob=0"]
    # Not from other processes: here the commands run in threads, from which none should be forked.
    wanted += ["--precision", "fp32", "--workers", 0, "--threads", 1]
    words = ["frontier.py", *map(str, wanted), "--keep-ratios", "0.5"]
    monkeypatch.setattr(sys, "argv", words)
    frontier.main()
    assert sorted(command[0] for command in commands) == ["eval"] * 3 + ["train"] * 2

    with (out / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mode"] for row in rows] == ["dense", "label-free", "with labels"]
    assert float(rows[0]["agreement"]) == 100
    assert float(rows[0]["gmacs"]) > float(rows[1]["gmacs"]) > 0
    assert [row["images_seen"] for row in rows] == ["0", "4", "4"]
    log = (out / "with-labels-0.5" / "log.jsonl").read_text()
    assert json.loads(log)["losses"]["classification"] > 0
    assert "| label-free | 0.5 |" in capsys.readouterr().out

    commands.clear()
    monkeypatch.setattr(sys, "argv", words)
    frontier.main()
    assert commands == []
