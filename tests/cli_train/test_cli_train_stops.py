"""`dynamicvit train` when it is stopped, the disk is full, or the input is bad."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dynamicvit.cli
from dynamicvit import DynamicViT
from dynamicvit.checkpoints.runs import PREVIOUS
from dynamicvit.training import loop, run, student
from memory import TINY
from processes import FORKS, fork_readers
from run_folders import WRITTEN, files_in

Main = Callable[..., int]
Line = Callable[[], str]


def test_an_unreadable_image_is_named_and_counted_nowhere(
    two_blocks: Path,
    flat: Path,
    tmp_path: Path,
    main: Main,
    capsys: pytest.CaptureFixture[str],
    one_line: Line,
) -> None:
    bad = flat / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    out = tmp_path / "out"
    arguments = ("train", flat, "-m", two_blocks, "-o", out, *TINY)
    assert main(*arguments, "--strict") == 2
    assert one_line().startswith(f"{bad} can't be read as an image (")
    assert not out.exists()
    assert main(*arguments) == 0
    assert "left out 1 unreadable images" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())["training"]
    assert report["skipped"] == [str(bad)]
    assert report["images"] == 7


# ---------------------------------------------------------------- interrupted


def test_an_interrupted_run_goes_on(
    two_blocks: Path,
    flat: Path,
    tmp_path: Path,
    main: Main,
    capsys: pytest.CaptureFixture[str],
    one_line: Line,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = ("train", flat, "-m", two_blocks, *TINY[2:], "--set", "images=16")
    assert main(*arguments, "-o", whole) == 0

    def fit(*given, on_step, **options):
        def stop(progress):
            on_step(progress)
            if progress.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        return loop.fit(*given, on_step=stop, **options)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", fit)
        assert main(*arguments, "-o", out) == 128 + signal.SIGTERM
    assert one_line() == (f"interrupted; {out} is saved, the same command resumes")
    unfinished = ["checkpoint.best.pt", "checkpoint.pt", "log.jsonl", "recipe.yaml", "tensorboard"]
    assert files_in(out) == unfinished
    assert main(*arguments, "-o", out, "--set", "seed=1", "--set", "losses.token=1") == 2
    assert "another run: losses.token 4.0 -> 1.0, seed 0 -> 1; take" in one_line()
    assert main(*arguments, "-o", out) == 0
    assert f"resuming the run in {out}" in capsys.readouterr().out
    finished = sorted([*WRITTEN, PREVIOUS])
    assert files_in(out) == finished
    before = (out / "model.safetensors").read_bytes()
    assert main(*arguments, "-o", out, "--resume") == 0  # finished: there is nothing left to do
    assert files_in(out) == finished
    assert (out / "model.safetensors").read_bytes() == before
    resumed, expected = DynamicViT.from_pretrained(out), DynamicViT.from_pretrained(whole)
    for name, value in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_full_disk_is_one_line(
    two_blocks: Path,
    flat: Path,
    tmp_path: Path,
    main: Main,
    one_line: Line,
    monkeypatch,
) -> None:
    """In the middle of a run, and when all that is left is to write the model."""
    out = tmp_path / "out"
    arguments = ("train", flat, "-m", two_blocks, "-o", out, *TINY[2:], "--set", "images=16")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fit(*given, on_step, **options):
        def fill(progress):
            on_step(progress)
            if progress.step == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))

        return loop.fit(*given, on_step=fill, **options)

    def save(model, folder, **card):
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        return save_pretrained(model, folder, **card)

    save_pretrained = DynamicViT.save_pretrained
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    for name, patch in (
        ("can't be written (File too large); the last checkpoint is whole: make room", "train"),
        (f"{out}: can't be written", "save"),
    ):
        with monkeypatch.context() as patched:
            if patch == "train":
                patched.setattr(run, "fit", fit)
            else:
                patched.setattr(DynamicViT, "save_pretrained", save)
            try:
                assert main(*arguments) == 2
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert name in one_line()
        assert not list(out.glob(".dynamicvit-*"))
        assert not (out / "model.safetensors").exists()
    assert main(*arguments) == 0
    assert files_in(out) == sorted([*WRITTEN, PREVIOUS])


def test_interrupted_before_the_first_step(
    saved: Path, flat: Path, tmp_path: Path, main: Main, one_line: Line, monkeypatch
) -> None:
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(student, "load", interrupt)
    assert main("train", flat, "-m", saved, "-o", tmp_path / "out", *TINY) == 130
    assert one_line() == "interrupted; nothing half-written is left, run it again"
    assert not (tmp_path / "out").exists()


def main_in_a_session(said: Path, words: list[str]) -> None:
    """The command as a terminal runs it."""
    os.setsid()
    fork_readers()
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    sys.argv = ["dynamicvit", *words]
    dynamicvit.cli.main()


def test_ctrl_c_in_a_terminal(two_blocks: Path, flat: Path, tmp_path: Path) -> None:
    """A real signal to a real process with a worker that reads images."""
    out, said = tmp_path / "out", tmp_path / "said"
    words = ["train", flat, "-m", two_blocks, "-o", out, *TINY[2:], "--set", "images=400000"]
    words += ["--threads", "1"]
    process = FORKS.Process(target=main_in_a_session, args=(said, [*map(str, words)]))
    process.start()
    try:
        log = out / "log.jsonl"
        while process.is_alive() and not (log.exists() and log.read_text()):
            process.join(0.02)
        assert process.is_alive(), said.read_text()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to every process
        process.join(60)
    finally:
        process.kill()
    assert process.exitcode == 128 + signal.SIGINT, said.read_text()
    assert said.read_text() == (
        f"dynamicvit: interrupted; {out} is saved, the same command resumes\n"
    )
    assert (out / "checkpoint.pt").exists()


# ---------------------------------------------------------------- bad input


def test_bad_input_is_one_line_and_leaves_nothing(
    saved: Path, folder: Path, flat: Path, tmp_path: Path, main: Main, one_line: Line
) -> None:
    out = tmp_path / "new" / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    run_with_model = ("-m", saved)
    (tmp_path / "run").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for arguments, said in (
        ((tmp_path / "nowhere", *run_with_model), "nowhere does not exist"),
        ((tmp_path / "empty", *run_with_model), "empty holds no images"),
        ((flat,), "no model is named: give --model, --released, or a recipe of a model"),
        ((flat, "-m", "deit_tinny_patch16_224"), "no model 'deit_tinny_patch16_224'"),
        ((flat, "-m", tmp_path / "nowhere"), "no such file or folder"),
        ((flat, *run_with_model, "--recipe", "smal_data"), "no recipe 'smal_data'"),
        ((flat, *run_with_model, "--set", "keep_ratio=0"), "in (0, 1], got 0.0"),
        ((flat, *run_with_model, "--set", "keep_ratio=1.5"), "in (0, 1], got 1.5"),
        ((flat, *run_with_model, "--set", "keep_ratio=[0.5,0.7,0.3]"), "can't grow"),
        ((flat, *run_with_model, "--set", "stages=[1,2,4]"), "stage"),
        ((flat, *run_with_model, "--set", "images=0"), "images: Input should be greater than 0"),
        ((flat, *run_with_model, "--set", "batch_size=9"), "more than the 8 images"),
        ((flat, *run_with_model, "--recipe", "deit_small"), "losses.classification=0"),
        ((folder, *run_with_model, "--set", "hold_out=0.01"), "leaves one part empty"),
        ((folder, *run_with_model, "--class-map", "imagenet"), "not in the class map: 0, 1, 2"),
        ((flat, *run_with_model, "--class-map", "imagenet"), "no label is used; leave it out"),
        ((flat, *run_with_model, "--threads", 0), "threads are at least 1, got 0"),
        ((flat, *run_with_model, "--precision", "fp8"), "'fp8'"),
        ((flat, *run_with_model, "--resume"), "holds no checkpoint.pt to go on from"),
        ((flat, *run_with_model, "--stricct"), "No such option: --stricct"),
        ((flat, *run_with_model, "-o", tmp_path / "file"), "is not a folder"),
        ((flat, *run_with_model, "-o", tmp_path / "file" / "out"), "is not a folder"),
        ((flat, *run_with_model, "-o", saved), "holds a model: choose another folder"),
    ):
        keys = {str(word).partition("=")[0] for word in arguments}
        given = () if "-o" in arguments else ("-o", out)
        if keys.isdisjoint({"images", "batch_size"}):
            given += TINY
        assert main("train", *arguments, *given) == 2, arguments
        assert said in one_line(), arguments
        assert sorted(tmp_path.rglob("*")) == before, arguments


def test_images_that_cannot_be_read_at_all(
    two_blocks: Path, flat: Path, tmp_path: Path, main: Main, one_line: Line
) -> None:
    """Found while reading; a folder that was there before stays, without anything of the run."""
    for path in flat.iterdir():
        path.write_bytes(path.read_bytes()[:60])
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert main("train", flat, "-m", two_blocks, "-o", out, *TINY) == 2
    assert f"none of the images of {flat} that were drawn can be read" in one_line()
    assert files_in(out) == ["notes.txt"]


def test_no_permission_to_write(
    saved: Path, flat: Path, tmp_path: Path, main: Main, one_line: Line, monkeypatch
) -> None:
    def access(path: Path, mode: int) -> bool:  # root, who may run this, is refused nothing
        return not (mode & os.W_OK and Path(path) == tmp_path)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(student, "load", None)  # refused before the work
    assert main("train", flat, "-m", saved, "-o", tmp_path / "new" / "out") == 2
    assert f"no permission to write in {tmp_path}" in one_line()
    assert not (tmp_path / "new").exists()


def test_a_usage_error_is_one_line(main: Main, one_line: Line) -> None:
    for words, said in (
        (("train",), "Missing argument 'DATA'"),
        (("train", "photos"), "Missing option '--output' / '-o'"),
        (("trian",), "No such command 'trian'"),
        (("eval", "photos"), "Missing option '--model'"),
        (("eval", "photos", "-m", "x", "--batch-size", "many"), "--batch-size'"),
    ):
        assert main(*words) == 2
        line = one_line()
        assert said in line
        assert "many" not in words or "'many'" in line  # the value is named


def test_an_output_among_the_images(saved: Path, flat: Path, main: Main, one_line: Line) -> None:
    """It would be an image folder of the next run."""
    before = files_in(flat)
    for output in (flat, flat / "run"):
        assert main("train", flat, "-m", saved, "-o", output, *TINY) == 2
        assert f"{output} is among the images of {flat}" in one_line()
    assert files_in(flat) == before
