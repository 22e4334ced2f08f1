"""`dynamicvit train`: what it leaves behind, when all goes well and when it does not."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from dynamicvit import DynamicViT, sparsify
from dynamicvit.cli import app
from dynamicvit.cli import train as command
from dynamicvit.data import ImageData, eval_transform
from dynamicvit.training import loop
from dynamicvit.training.held_out import HeldOut

Main = Callable[..., int]

#: Two steps of four images.
TINY = ("--set", "images=8", "--set", "batch_size=4")
WRITTEN = [
    "README.md",
    "checkpoint.best.pt",
    "checkpoint.pt",
    "config.json",
    "curves.png",
    "log.jsonl",
    "model.safetensors",
    "recipe.yaml",
    "report.json",
    "tensorboard",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of six classes in a folder."""
    torch.manual_seed(0)
    backbone = timm.create_model(
        "deit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
        num_classes=6,
    )
    torch.nn.init.normal_(backbone.head.weight)
    folder = tmp_path_factory.mktemp("saved") / "model"
    sparsify(backbone).save_pretrained(folder)
    return folder


def draw_images(folder: Path, names: list[str]) -> Path:
    """Small images of noise."""
    generator = torch.Generator().manual_seed(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (5, 6, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).resize((60, 50)).save(path)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six classes of two images."""
    return draw_images(tmp_path / "images", [f"class{i % 6}/{i:02}.png" for i in range(12)])


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Eight images without labels."""
    return draw_images(tmp_path / "flat", [f"{i}.png" for i in range(8)])


@pytest.fixture
def main(command: Main) -> Main:
    """The command, with what every call has; gives the exit code."""
    return lambda *arguments: command(*arguments, "--workers", "0")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error, without the command's name."""
    error = capsys.readouterr().err
    assert error.startswith("dynamicvit: ")
    assert error.count("\n") == 1, error
    return error.removeprefix("dynamicvit: ").strip()


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- what a run leaves


def test_a_run_leaves_a_model_that_the_others_read(
    saved: Path, folder: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs" / "first"
    assert main("train", folder, "-m", saved, "-o", out, *TINY, "--set", "keep_ratio=0.5") == 0
    said = capsys.readouterr()
    assert "trained on 8 images" in said.out
    assert "kept in training 0.50/0.25/0.12" in said.out
    assert said.err == ""
    assert files_in(out) == WRITTEN
    assert len((out / "log.jsonl").read_text().splitlines()) == 2
    report = json.loads((out / "report.json").read_text())
    assert report["training"]["images"] == 8
    assert report["keep_ratios"] == [0.5, 0.25, 0.125]

    model = DynamicViT.from_pretrained(out)
    assert model.keep_ratio == 0.5
    before = DynamicViT.from_pretrained(saved).state_dict()
    after = model.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before)

    assert main("eval", folder, "-m", out, "--json", "-") == 0
    numbers = json.loads(capsys.readouterr().out)
    data = ImageData(folder, transform=eval_transform(model))
    with torch.no_grad():
        answers = model(torch.stack([data[index].image for index in range(12)])).argmax(1)
    expected = float((answers == torch.from_numpy(data.labels)).float().mean())
    assert numbers["top1"] == pytest.approx(expected)


def test_labels_are_not_needed(saved: Path, flat: Path, folder: Path, tmp_path: Path, main: Main):
    draw_images(folder, ["beside.png"])  # folders that are no classes don't matter either
    out = tmp_path / "out"
    more = ("--unlabeled", folder, "--set", "images=20", "--set", "batch_size=10")
    assert main("train", flat, "-m", saved, "-o", out, *more) == 0
    assert json.loads((out / "report.json").read_text())["training"]["images"] == 20


def test_images_with_and_without_labels_are_mixed(
    saved: Path, flat: Path, folder: Path, tmp_path: Path, main: Main
):
    out = tmp_path / "out"
    more = (
        "--unlabeled",
        flat,
        "--recipe",
        "deit_small",
        "--set",
        "epochs=1",
        "--set",
        "ema=null",
    )
    assert main("train", folder, "-m", saved, "-o", out, *more, "--set", "batch_size=4") == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(step["losses"]["distillation"] > 0 for step in log)
    assert any(step["losses"]["classification"] > 0 for step in log)


def test_labels_are_used(
    saved: Path, folder: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all that the paper's recipe has: mixup, averaged weights; and dropped paths."""
    out = tmp_path / "out"
    paper = ("--recipe", "deit_small", *TINY, "--set", "drop_path=0.2", "--precision", "bf16")
    assert main("train", folder, "-m", saved, "-o", out, *paper) == 0
    assert "class map: the 6 class folders in natural order" in capsys.readouterr().out
    for line in (out / "log.jsonl").read_text().splitlines():
        assert json.loads(line)["losses"]["classification"] > 0
    assert "drop_path: 0.2" in (out / "recipe.yaml").read_text()
    DynamicViT.from_pretrained(out)


def test_a_part_held_out_is_evaluated_and_not_trained_on(
    saved: Path,
    folder: Path,
    tmp_path: Path,
    main: Main,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained_on: list[str] = []

    def train(model, loader, *arguments, **options):
        trained_on.extend(data.path(i) for data in loader.data.datasets for i in range(len(data)))
        return loop.train(model, loader, *arguments, **options)

    monkeypatch.setattr(command, "training", _Replaced(loop, train=train))
    out = tmp_path / "out"
    assert main("train", folder, "-m", saved, "-o", out, *TINY, "--set", "hold_out=0.25") == 0
    said = capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    top1, best = report["held_out"]["top1"], report["training"]["best"]
    assert f"held-out top-1 {100 * top1:.2f} % after step 2\n" in said
    assert f"held-out top-1 {100 * top1:.2f} % of 3 images\n" in said
    assert (report["held_out"]["images"], report["held_out"]["labeled"]) == (3, 3)
    assert best == {"measure": "top1", "value": top1, "step": 2}
    assert len(set(trained_on)) == 9


def test_a_part_held_out_without_labels_is_judged_by_the_dense_network(
    saved: Path, flat: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = (*TINY, "--set", "hold_out=0.5", "--set", "learning_rate=1e-9")
    assert main("train", flat, "-m", saved, "-o", out, *words, "--set", "keep_ratio=1") == 0
    said = capsys.readouterr().out
    assert "held-out agreement with the dense network 100.00 % after step 1\n" in said
    assert "held-out agreement with the dense network 100.00 % of 4 images\n" in said
    report = json.loads((out / "report.json").read_text())
    assert (report["held_out"]["agreement"], report["held_out"]["top1"]) == (1.0, None)
    assert report["training"]["best"] == {"measure": "agreement", "value": 1.0, "step": 1}


def test_where_the_end_is_not_the_best_it_is_said(
    saved: Path,
    flat: Path,
    tmp_path: Path,
    main: Main,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = [0.75, 0.25, 0.25]  # the last is asked for once more, to be printed
    monkeypatch.setattr(HeldOut, "score", lambda *_: {"agreement": shares.pop(0)})
    words = (*TINY, "--set", "hold_out=0.5")
    assert main("train", flat, "-m", saved, "-o", tmp_path / "out", *words) == 0
    said = capsys.readouterr().out
    assert "it was 75.00 % after step 1: checkpoint.best.pt\n" in said


class _Replaced:
    """A module with some of its names replaced."""

    def __init__(self, module: object, **names: object) -> None:
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


def test_an_unreadable_image_is_named_and_counted_nowhere(
    saved: Path, flat: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = flat / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    out = tmp_path / "out"
    arguments = ("train", flat, "-m", saved, "-o", out, *TINY)
    assert main(*arguments, "--strict") == 2
    assert one_line(capsys).startswith(f"{bad} can't be read as an image (")
    assert not out.exists()
    assert main(*arguments) == 0
    assert "left out 1 unreadable images" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())["training"]
    assert report["skipped"] == [str(bad)]
    assert report["images"] == 7


# ---------------------------------------------------------------- interrupted


def test_an_interrupted_run_goes_on(
    saved: Path,
    flat: Path,
    tmp_path: Path,
    main: Main,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    arguments = ("train", flat, "-m", saved, *TINY, "--set", "images=16")
    assert main(*arguments, "-o", whole) == 0

    def train(*given, on_step, **options):
        def stop(progress):
            on_step(progress)
            if progress.step == 1:
                os.kill(os.getpid(), signal.SIGINT)

        return loop.train(*given, on_step=stop, **options)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(command, "training", _Replaced(loop, train=train))
        assert main(*arguments, "-o", out) == 130
    assert one_line(capsys) == (f"interrupted; {out} is saved, the same command goes on")
    unfinished = ["checkpoint.best.pt", "checkpoint.pt", "log.jsonl", "recipe.yaml", "tensorboard"]
    assert files_in(out) == unfinished
    assert main(*arguments, "-o", out, "--set", "seed=1", "--set", "losses.token=1") == 2
    assert "another run: losses.token 4.0 -> 1.0, seed 0 -> 1; take" in one_line(capsys)
    assert main(*arguments, "-o", out) == 0
    assert f"going on with the run in {out}" in capsys.readouterr().out
    finished = sorted([*WRITTEN, "checkpoint.previous.pt"])
    assert files_in(out) == finished
    before = (out / "model.safetensors").read_bytes()
    assert main(*arguments, "-o", out, "--resume") == 0  # finished: there is nothing left to do
    assert files_in(out) == finished
    assert (out / "model.safetensors").read_bytes() == before
    resumed, expected = DynamicViT.from_pretrained(out), DynamicViT.from_pretrained(whole)
    for name, value in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_full_disk_is_one_line(
    saved: Path, flat: Path, tmp_path: Path, main: Main, capsys, monkeypatch
) -> None:
    """In the middle of a run, and when all that is left is to write the model."""
    out = tmp_path / "out"
    arguments = ("train", flat, "-m", saved, "-o", out, *TINY, "--set", "images=16")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def train(*given, on_step, **options):
        def fill(progress):
            on_step(progress)
            if progress.step == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))

        return loop.train(*given, on_step=fill, **options)

    def save(model, folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        return save_pretrained(model, folder)

    save_pretrained = DynamicViT.save_pretrained
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    for name, patch in (
        ("can't be written (File too large); the last checkpoint is whole: make room", "train"),
        (f"{out}: can't be written", "save"),
    ):
        with monkeypatch.context() as patched:
            if patch == "train":
                patched.setattr(command, "training", _Replaced(loop, train=train))
            else:
                patched.setattr(DynamicViT, "save_pretrained", save)
            try:
                assert main(*arguments) == 2
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert name in one_line(capsys)
        assert not list(out.glob("*.partial"))
        assert not (out / "model.safetensors").exists()
    assert main(*arguments) == 0
    assert sorted([*WRITTEN, "checkpoint.previous.pt"]) == files_in(out)


def test_interrupted_before_the_first_step(
    saved: Path, flat: Path, tmp_path: Path, main: Main, capsys, monkeypatch
) -> None:
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "load", interrupt)
    assert main("train", flat, "-m", saved, "-o", tmp_path / "out", *TINY) == 130
    assert one_line(capsys) == "interrupted; nothing half-written is left, run it again"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_terminal(saved: Path, flat: Path, tmp_path: Path, asked: int) -> None:
    """A real signal to a real process with a worker that reads images."""
    out = tmp_path / "out"
    words = ["train", flat, "-m", saved, "-o", out, *TINY, "--set", "images=400000"]
    words += ["--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from dynamicvit.cli import main; main()", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        log = out / "log.jsonl"
        deadline = time.monotonic() + 120
        while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, asked)  # as a terminal does and SLURM, to every process
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 128 + asked, error
    assert error == (f"dynamicvit: interrupted; {out} is saved, the same command goes on\n")
    assert (out / "checkpoint.pt").exists()


# ---------------------------------------------------------------- bad input


def test_bad_input_is_one_line_and_leaves_nothing(
    saved: Path, folder: Path, flat: Path, tmp_path: Path, main: Main, capsys
) -> None:
    out = tmp_path / "new" / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    run, run_with_model = tmp_path / "run", ("-m", saved)
    run.mkdir()
    before = sorted(tmp_path.rglob("*"))
    for arguments, said in (
        ((tmp_path / "nowhere", *run_with_model), "nowhere does not exist"),
        ((tmp_path / "empty", *run_with_model), "empty holds no images"),
        ((flat,), "recipe small_data names no model: give --model, or --released"),
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
        ((folder, *run_with_model, "--class-map", "imagenet"), "no label is used; leave it out"),
        ((flat, *run_with_model, "--threads", 0), "threads are at least 1, got 0"),
        ((flat, *run_with_model, "--precision", "fp8"), "'fp8'"),
        ((flat, *run_with_model, "--resume"), "holds no checkpoint.pt to go on from"),
        ((flat, *run_with_model, "--shard"), "start several with torchrun"),
        ((flat, *run_with_model, "--stricct"), "No such option: --stricct"),
        ((flat, *run_with_model, "-o", tmp_path / "file"), "is not a folder"),
        ((flat, *run_with_model, "-o", tmp_path / "file" / "out"), "is not a folder"),
        ((flat, *run_with_model, "-o", saved), "holds a model: choose another folder"),
    ):
        assert main("train", *arguments[:1], "-o", out, *TINY, *arguments[1:]) == 2, arguments
        assert said in one_line(capsys), arguments
        assert sorted(tmp_path.rglob("*")) == before, arguments


def test_images_that_cannot_be_read_at_all(
    saved: Path, flat: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found while reading; a folder that was there before stays, without anything of the run."""
    for path in flat.iterdir():
        path.write_bytes(path.read_bytes()[:60])
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert main("train", flat, "-m", saved, "-o", out, *TINY) == 2
    assert f"none of the images of {flat} that were drawn can be read" in one_line(capsys)
    assert files_in(out) == ["notes.txt"]


def test_no_permission_to_write(
    saved: Path, flat: Path, tmp_path: Path, main: Main, capsys, monkeypatch
) -> None:
    def access(path: Path, mode: int) -> bool:  # root, who may run this, is refused nothing
        return not (mode & os.W_OK and Path(path) == tmp_path)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(command, "load", None)  # refused before the work
    assert main("train", flat, "-m", saved, "-o", tmp_path / "new" / "out") == 2
    assert f"no permission to write in {tmp_path}" in one_line(capsys)
    assert not (tmp_path / "new").exists()


def test_a_usage_error_is_one_line(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (("train",), "Missing argument 'DATA'"),
        (("train", "photos"), "Missing option '--output' / '-o'"),
        (("trian",), "No such command 'trian'"),
        (("eval", "photos"), "Missing option '--model'"),
        (("eval", "photos", "-m", "x", "--batch-size", "many"), "--batch-size'"),
    ):
        assert main(*words) == 2
        line = one_line(capsys)
        assert said in line
        assert "many" not in words or "'many'" in line  # the value is named


def test_options_without_a_sensible_opposite_have_none() -> None:
    for name in ("train", "eval", "bench", "visualize", "demo"):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [name, "--help"])
        assert result.exit_code == 0
        assert "--no-" not in result.output.replace("--no-pretrained", "")
