"""The training of the demo's dense model: what a stopped run may go on with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from dynamicvit.demo import train_dense


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> None:
    quick = ["--images", "2", "--batch-size", "2", "--score-scenes", "2", "--log-every", "1"]
    monkeypatch.setattr(sys, "argv", ["train_dense", "--out", str(out), *quick, *arguments])
    train_dense.main()


def test_going_on_with_other_arguments_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or the command that is stored with the weights would be false."""
    out, checkpoint = tmp_path / "dense.safetensors", tmp_path / "dense.checkpoint.pt"
    monkeypatch.setattr(train_dense, "top1", lambda *_: 50.0)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(train_dense, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(stopped, out, "--lr", "0.00123456789")
    assert checkpoint.exists()
    capsys.readouterr()
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, out, "--lr", "0.001")
    assert refused.value.code == 2
    message = capsys.readouterr().err
    assert "'lr': 0.00123456789" in message
    assert len(message.splitlines()) == 1
    assert checkpoint.exists()
    assert not out.exists()
    run(monkeypatch, out, "--lr", "0.00123456789")
    with safe_open(out, framework="pt") as file:
        assert "--lr 0.00123456789 " in file.metadata()["command"]
    assert not checkpoint.exists()
