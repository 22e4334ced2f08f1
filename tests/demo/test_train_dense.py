"""The training of the demo's dense model, for two steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dynamicvit.demo import train_dense
from dynamicvit.demo.dense import load_dense
from dynamicvit.demo.scenes import GRID, Scenes


def test_it_writes_weights_that_load_and_the_command_that_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "dense.safetensors"
    monkeypatch.setattr(train_dense, "top1", lambda *_: 50.0)
    train_dense.main(["--out", str(out), "--images", "4", "--batch-size", "2", "--lr", "0.0012"])
    load_dense(out)
    with safe_open(out, framework="pt") as file:
        facts = file.metadata()
    assert "--lr 0.0012 " in facts["command"]
    assert facts["images_seen"] == "4"


def test_a_window_holds_the_digit() -> None:
    _, _, digit = Scenes("train").batch(range(50))
    window = train_dense.window_around(digit, 6, torch.Generator().manual_seed(0))
    assert window is not None
    assert window.shape == (50, 1 + 36)
    inside = torch.zeros(50, 1 + GRID * GRID, dtype=torch.bool).scatter(1, window, True)
    assert bool((inside[:, 1:] | ~digit).all())
    assert bool(inside[:, 0].all())
    assert train_dense.window_around(digit, GRID, torch.Generator()) is None
