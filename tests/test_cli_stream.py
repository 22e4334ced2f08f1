"""`dynamicvit stream` as it is typed, on a generated video."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamicvit import DynamicViT, sparsify
from dynamicvit.data import eval_transform
from dynamicvit.runtimes import export
from dynamicvit.streaming import loop as module
from dynamicvit.streaming import open_frames
from families import DEIT, NUM_CLASSES
from memory import shallow
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
    return shallow()


@pytest.fixture(scope="module")
def saved(model: DynamicViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def file(model: DynamicViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    export(model, path)
    return path


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


def test_each_frame_of_a_video(
    model: DynamicViT, saved: Path, clip: Path, tmp_path: Path, command: Main, capsys
) -> None:
    out = tmp_path / "lines.jsonl"
    assert command("stream", clip, "-m", saved, "--fps", 0, "-o", out, "--top", 3) == 0
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
    said = capsys.readouterr().out
    assert f"{clip}: 12 frames in" in said
    assert "0 dropped" in said
    assert "p95" in said


def test_an_exported_file_gives_the_same(
    model: DynamicViT, file: Path, clip: Path, tmp_path: Path, command: Main
) -> None:
    out = tmp_path / "lines.jsonl"
    assert command("stream", clip, "-m", file, "--fps", 0, "-o", out) == 0
    _, *frames, _ = lines_in(out)
    assert [line["classes"][0]["index"] for line in frames] == expected(model, clip)


def test_a_slow_classifier_drops_frames_at_the_videos_own_rate(
    saved: Path, clip: Path, tmp_path: Path, command: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels_of = module.levels_of

    def slow(*arguments: Any, **options: Any) -> list[Any]:
        [level] = levels_of(*arguments, **options)

        def classify(images: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            return level.classify(images)

        return [replace(level, classify=classify)]

    monkeypatch.setattr(module, "levels_of", slow)
    out = tmp_path / "lines.jsonl"
    assert command("stream", clip, "-m", saved, "-o", out, "--queue", 1) == 0
    start, *frames, end = lines_in(out)
    assert start["fps"] == 30
    shown = [line["index"] for line in frames]
    assert shown == sorted(set(shown))
    assert end["dropped"] > 0
    assert end["frames"] + end["dropped"] == 12


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
    assert missed["index"] == 9  # the tenth is the first that says something
    assert end["within_target"] == 0
    said = capsys.readouterr().out
    assert "not even ρ 0.4 holds the target" in said
    assert "target 0.001 ms" in said


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
    assert command("stream", clip, "-m", saved, "--fps", 0, "--json", "-") == 0
    printed = capsys.readouterr()
    assert len([json.loads(line) for line in printed.out.splitlines()]) == 14
    assert "12 frames in" in printed.err


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
    assert error.startswith(f"dynamicvit: {photos / '2.png'} can't be read as an image (")
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
    assert error.startswith(f"dynamicvit: {path} is cut off: ")
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
    assert capsys.readouterr().err.startswith(f"dynamicvit: stopped after {end['frames']} frames")
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
    saved: Path, file: Path, clip: Path, tmp_path: Path, command: Main, capsys
) -> None:
    out = tmp_path / "lines.jsonl"
    of_model = ("stream", clip, "-m", saved, "-o", out)
    ratios = ("--keep-ratio", 0.5, "--keep-ratio", 0.7)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    pairs = tmp_path / "pairs.pt2"
    export(shallow(), pairs, batch=2)
    for words, said in (
        (("stream", clip, "-o", out), "Missing option '--model'"),
        (("stream", tmp_path / "none.mp4", "-m", saved), "none.mp4: no such file"),
        (("stream", text, "-m", saved), "can't be opened as a video"),
        ((*of_model, "--target-latency", "20"), "written 20ms or 0.5s, got '20'"),
        ((*of_model, "--target-latency", "0ms"), "positive and written 20ms"),
        ((*of_model, *ratios), "--target-latency chooses among 0.5, 0.7"),
        ((*of_model, "-m", file), "--target-latency chooses among"),
        ((*of_model, "-m", file, "--target-latency", "1s", *ratios), "a keep ratio each"),
        ((*of_model, "-m", file, "--checkpoint", "a.pth"), "goes with one model"),
        ((*of_model, "--keep-ratio", 1.5), "a keep ratio is a number in (0, 1], got 1.5"),
        (("stream", clip, "-m", file, "--keep-ratio", 0.5), "is fixed: leave --keep-ratio out"),
        (("stream", clip, "-m", file, "--precision", "bf16"), "runs in fp32"),
        (("stream", clip, "-m", pairs), "takes 2 images at a time, and a stream has one"),
        ((*of_model, "--fps", -1), "frames per second are positive"),
        ((*of_model, "--queue", 0), "at least 1 frame waits in the queue, got 0"),
        ((*of_model, "--top", 0), "an answer has at least 1 class, got 0"),
        ((*of_model, "--threads", 0), "threads are at least 1, got 0"),
        ((*of_model, "--crop-pct", 2), "crop_pct must be in (0, 1], got 2.0"),
        (("stream", clip, "-m", saved, "-o", tmp_path), "is a folder: give a file"),
    ):
        assert command(*words) == 2, words
        error = capsys.readouterr().err
        assert error.startswith("dynamicvit: ")
        assert error.count("\n") == 1, error
        assert said in error, words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.pt2", "text.mp4"]


def test_untrained_prediction_modules_are_owned_up_to(
    clip: Path, tmp_path: Path, command: Main, capsys
) -> None:
    sparsify(DEIT.backbone(depth=2), stages=[1]).save_pretrained(tmp_path)
    assert command("stream", clip, "-m", tmp_path, "--fps", 0) == 0
    assert f"prediction modules of {tmp_path} are untrained" in capsys.readouterr().err


def test_classes_without_names_have_numbers(saved: Path, clip: Path, command: Main, capsys) -> None:
    assert command("stream", clip, "-m", saved, "--fps", 0, "--top", 99, "-o", "-") == 0
    line = json.loads(capsys.readouterr().out.splitlines()[1])
    assert len(line["classes"]) == NUM_CLASSES
    assert all(each["name"] == f"class {each['index']}" for each in line["classes"])
