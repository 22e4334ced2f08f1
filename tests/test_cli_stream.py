"""`dynamicvit stream` as it is typed, on a generated video."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamicvit import DynamicViT, sparsify
from dynamicvit.data import eval_transform
from dynamicvit.streaming import open_frames
from exports import small
from families import DEIT, NUM_CLASSES
from pictures import write_image

pytest.importorskip("av")

from clips import write_clip

Main = Callable[..., int]

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*fork:DeprecationWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
)


@pytest.fixture(scope="module")
def model() -> DynamicViT:
    return small()


@pytest.fixture(scope="module")
def saved(model: DynamicViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def file(exported: Callable[..., Path]) -> Path:
    return exported("torch")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 12)


def lines_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@torch.no_grad()
def expected(model: DynamicViT, clip: Path) -> list[int]:
    """The class of each frame, by the model called directly."""
    transform = eval_transform(model)
    return [int(model(transform(frame.read())[None]).argmax()) for frame in open_frames(str(clip))]


@pytest.mark.parametrize("kind", ["saved", "file"])
def test_each_frame_of_a_video(
    model: DynamicViT, kind: str, clip: Path, tmp_path: Path, command: Main, capsys, request
) -> None:
    out = tmp_path / "lines.jsonl"
    name = request.getfixturevalue(kind)
    assert command("stream", clip, "-m", name, "--fps", 0, "-o", out, "--top", 3) == 0
    start, *frames, end = lines_in(out)
    assert (start["event"], start["fps"], start["levels"][0]["keep_ratio"]) == ("start", None, 0.7)
    assert [line["index"] for line in frames] == list(range(12))
    assert [line["time"] for line in frames] == pytest.approx([i / 30 for i in range(12)], abs=1e-3)
    assert [line["classes"][0]["index"] for line in frames] == expected(model, clip)
    for line in frames:
        assert len(line["classes"]) == 3
        assert line["waiting_ms"] == line["dropped"] == 0
        assert line["latency_ms"] == line["computing_ms"] > 0
    assert (end["event"], end["ended"], end["frames"], end["dropped"]) == ("end", "complete", 12, 0)
    printed = capsys.readouterr().out
    assert f"{clip}: 12 frames" in printed
    assert "0 dropped" in printed


def test_a_target_that_is_too_low_is_told(
    saved: Path, clip: Path, tmp_path: Path, command: Main, capsys
) -> None:
    out = tmp_path / "lines.jsonl"
    words = ("--target-latency", "0.001ms", "--keep-ratio", 0.8, "--keep-ratio", 0.4, "--fps", 0)
    assert command("stream", clip, "-m", saved, "-o", out, *words) == 0
    start, *_, end = found = lines_in(out)
    assert [level["keep_ratio"] for level in start["levels"]] == [0.8, 0.4]
    assert {line["keep_ratio"] for line in found if line["event"] == "frame"} == {0.4}
    [missed] = [line for line in found if line["event"] == "missed"]
    assert missed["index"] == 9  # ten frames are needed
    assert end["within_target"] == 0
    printed = capsys.readouterr().out
    assert "ρ 0.4" in printed
    assert "target 0.001 ms" in printed


def test_several_models_are_the_ratios_of_a_target(
    saved: Path, clip: Path, tmp_path: Path, command: Main
) -> None:
    DEIT.sparse(0.4).save_pretrained(tmp_path / "less")
    out = tmp_path / "lines.jsonl"
    words = ("-m", tmp_path / "less", "-m", saved, "--target-latency", "60s", "--fps", 0)
    assert command("stream", clip, *words, "-o", out) == 0
    start, first, *_ = lines_in(out)
    assert [level["keep_ratio"] for level in start["levels"]] == pytest.approx([0.7, 0.4])
    assert first["keep_ratio"] == pytest.approx(0.7)


def test_standard_output_is_only_json_lines(saved: Path, clip: Path, command: Main, capsys) -> None:
    assert command("stream", clip, "-m", saved, "--fps", 0, "--top", 99, "--json", "-") == 0
    printed = capsys.readouterr()
    _, *frames, _ = [json.loads(line) for line in printed.out.splitlines()]
    assert len(frames) == 12
    assert "12 frames" in printed.err
    assert len(frames[0]["classes"]) == NUM_CLASSES
    assert all(each["name"] == f"class {each['index']}" for each in frames[0]["classes"])


def test_an_image_that_can_not_be_read_is_named_and_the_next_come(
    saved: Path, tmp_path: Path, command: Main, capsys
) -> None:
    photos = tmp_path / "photos"
    for name in ("1.png", "2.png", "10.png"):
        write_image(photos / name, 100, (90, 70))
    (photos / "2.png").write_text("no image")
    out = tmp_path / "lines.jsonl"
    assert command("stream", photos, "-m", saved, "-o", out) == 2
    start, first, second, third, end = lines_in(out)
    assert start["fps"] is None
    assert (first["file"], third["file"]) == (str(photos / "1.png"), str(photos / "10.png"))
    assert "time" not in first
    assert second["event"] == "unreadable"
    assert (end["frames"], end["unreadable"]) == (2, 1)
    error = capsys.readouterr().err
    assert error.startswith(f"dynamicvit: {photos / '2.png'}")
    assert error.count("\n") == 1


def test_a_broken_video_gives_its_frames_and_one_line(
    saved: Path, tmp_path: Path, command: Main, capsys
) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, 30, fps=10, noise=True, movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    out = tmp_path / "lines.jsonl"
    assert command("stream", path, "-m", saved, "--fps", 0, "-o", out) == 2
    _, *frames, end = lines_in(out)
    assert len(frames) == end["frames"] > 5
    assert end["ended"] == "broken"
    error = capsys.readouterr().err
    assert error.startswith(f"dynamicvit: {path} ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_summary(
    saved: Path, tmp_path: Path, command: Main, capsys, signum: int
) -> None:
    clip = write_clip(tmp_path / "clip.mkv", 200, fps=10)
    out = tmp_path / "lines.jsonl"

    def interrupt() -> None:
        while not out.exists() or len(lines_in(out)) < 3:
            time.sleep(0.02)
        os.kill(os.getpid(), signum)

    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    assert command("stream", clip, "-m", saved, "-o", out) == 128 + signum
    watcher.join(5)
    *_, end = lines_in(out)
    assert (end["event"], end["ended"]) == ("end", "interrupted")
    assert 2 <= end["frames"] < 190
    assert f"{end['frames']} frames" in capsys.readouterr().err
    assert not [each for each in threading.enumerate() if each.name == "dynamicvit-frames"]


def test_who_stops_reading_the_lines_ends_it(
    saved: Path, clip: Path, command: Main, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        words = ("stream", clip, "-m", saved, "--fps", 0, "-o", "-")
        assert command(*words) == 128 + signal.SIGPIPE
    error = capsys.readouterr().err
    assert error.startswith("dynamicvit: stopped")
    assert error.count("\n") == 1


def test_bad_input_is_one_line_and_exit_code_2(
    saved: Path,
    file: Path,
    exported: Callable[..., Path],
    clip: Path,
    tmp_path: Path,
    command: Main,
    capsys,
) -> None:
    out = tmp_path / "lines.jsonl"
    of_model = ("stream", clip, "-m", saved, "-o", out)
    ratios = ("--keep-ratio", 0.5, "--keep-ratio", 0.7)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    pairs = exported("torch", batch=2)
    for words, named in (
        (("stream", clip, "-o", out), "--model"),
        (("stream", tmp_path / "none.mp4", "-m", saved), "none.mp4"),
        (("stream", text, "-m", saved), "text.mp4"),
        ((*of_model, "--target-latency", "20"), "'20'"),
        ((*of_model, "--target-latency", "0ms"), "0ms"),
        ((*of_model, *ratios), "0.5, 0.7"),
        ((*of_model, "-m", file), f"{saved}, {file}"),
        ((*of_model, "-m", file, "--target-latency", "1s", *ratios), "--keep-ratio 0.5"),
        ((*of_model, "-m", file, "--checkpoint", "a.pth"), "a.pth"),
        ((*of_model, "--keep-ratio", 1.5), "1.5"),
        (("stream", clip, "-m", file, "--keep-ratio", 0.5), f"{file}"),
        (("stream", clip, "-m", file, "--precision", "bf16"), "fp32"),
        (("stream", clip, "-m", pairs), f"{pairs} takes 2 images"),
        ((*of_model, "--fps", -1), "got -1"),
        ((*of_model, "--queue", 0), "queue"),
        ((*of_model, "--top", 0), "top"),
        ((*of_model, "--threads", 0), "threads"),
        ((*of_model, "--crop-pct", 2), "crop_pct"),
        (("stream", clip, "-m", saved, "-o", tmp_path), f"{tmp_path} is a folder"),
    ):
        assert command(*words) == 2, words
        error = capsys.readouterr().err
        assert error.startswith("dynamicvit: ")
        assert error.count("\n") == 1, error
        assert named in error, words
    assert [path.name for path in tmp_path.iterdir()] == ["text.mp4"]


def test_untrained_prediction_modules_are_reported(
    clip: Path, tmp_path: Path, command: Main, capsys
) -> None:
    sparsify(DEIT.backbone(depth=2), stages=[1], method="dynamicvit").save_pretrained(tmp_path)
    assert command("stream", clip, "-m", tmp_path, "--fps", 0) == 0
    assert "untrained" in capsys.readouterr().err
