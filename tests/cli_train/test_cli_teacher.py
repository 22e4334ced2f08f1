"""`dynamicvit train --teacher`: another network teaches its logits, and says so when it can't."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from dynamicvit import DynamicViT, count_macs
from dynamicvit.training.pace import Pace
from families import NUM_CLASSES

Main = Callable[..., int]

#: Three steps of four images, of a model with as many classes as the folder.
THREE_STEPS = ("--set", "images=12", "--set", "batch_size=4", "--workers", "0")
LOGITS_ALONE = [
    *("--set", "masking=full", "--set", "losses.guidance=0"),
    *("--set", "losses.token=0", "--set", "losses.feature=0"),
]


def teacher_file(path: Path, name: str = "test_resnet", classes: int = NUM_CLASSES, seed: int = 0):
    """Weights of a small network of another family, for images of 160 px."""
    torch.manual_seed(seed)
    save_file(timm.create_model(name, num_classes=classes).state_dict(), path)
    return path


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    return teacher_file(tmp_path / "teacher.safetensors")


def by(teacher: Path, name: str = "test_resnet") -> list[object]:
    return ["--teacher", name, "--teacher-checkpoint", teacher]


def distillation(folder: Path) -> list[float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["losses"]["distillation"] for line in lines]


def test_it_teaches_and_is_written_down(
    two_blocks: Path, teacher: Path, folder: Path, tmp_path: Path, command: Main
) -> None:
    """Without labels, on labeled and unlabeled images."""
    own, out = tmp_path / "own", tmp_path / "out"
    words = ["train", folder, "--unlabeled", folder, "-m", two_blocks, *THREE_STEPS]
    assert command(*words, "-o", own) == 0
    assert command(*words, "-o", out, *by(teacher), "--set", "teacher.temperature=2") == 0
    expected = {"model": "test_resnet", "hard": False, "temperature": 2.0}
    assert yaml.safe_load((out / "recipe.yaml").read_text())["teacher"] == expected
    report = json.loads((out / "report.json").read_text())
    assert report["teacher"] == {**expected, "checkpoint": str(teacher)}
    assert json.loads((own / "report.json").read_text())["teacher"]["model"] is None
    assert distillation(out)[0] != pytest.approx(distillation(own)[0], rel=0.01)
    learned = [DynamicViT.from_pretrained(folder).state_dict() for folder in (own, out)]
    assert any(not torch.equal(value, learned[1][name]) for name, value in learned[0].items())


def test_labels_and_a_hard_teacher(
    two_blocks: Path, teacher: Path, folder: Path, tmp_path: Path, command: Main
) -> None:
    """As in DeiT: the paper's recipe with its mixup, the teacher's class beside the label."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: deit_small\nepochs: 1\nteacher: {model: test_resnet, hard: true}\n")
    words = [
        "train",
        folder,
        "-m",
        two_blocks,
        "--recipe",
        recipe,
        *THREE_STEPS[2:],
        "-o",
        tmp_path / "out",
    ]
    assert command(*words, "--teacher-checkpoint", teacher) == 0
    last = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])["losses"]
    assert min(last["classification"], last["distillation"], last["token"]) > 0


def test_the_same_command_goes_on_and_another_teacher_is_refused(
    two_blocks: Path,
    teacher: Path,
    folder: Path,
    tmp_path: Path,
    command: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = ["train", folder, "-m", two_blocks, *THREE_STEPS, "-o", out]
    for _ in range(2):
        assert command(*words, *by(teacher)) == 0
    assert "resuming the run" in capsys.readouterr().out
    other = teacher_file(tmp_path / "other.safetensors", seed=1)
    for changed, said in (
        ([], "teacher.model test_resnet -> None"),
        (by(other), "weights of the teacher"),
    ):
        assert command(*words, *changed) == 2
        error = capsys.readouterr().err
        assert f"belongs to another run: {said}" in error
        assert error.count("\n") == 1


def test_a_teacher_that_no_loss_looks_at_is_not_loaded(
    two_blocks: Path,
    folder: Path,
    tmp_path: Path,
    command: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["train", folder, "-m", two_blocks, *THREE_STEPS, "-o", tmp_path / "out"]
    assert command(*words, "--teacher", "test_resnet", "--set", "losses.distillation=0") == 0
    said = capsys.readouterr().out
    assert "teacher test_resnet is not asked: losses.distillation is 0" in said
    assert set(distillation(tmp_path / "out")) == {0.0}


def test_a_dry_run_says_who_teaches_what(
    two_blocks: Path,
    teacher: Path,
    command: Main,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamicvit.training.plan.time_steps", lambda *_, **__: Pace(1, None, 3, 2))

    def plan(*words: object) -> str:
        assert command("train", "--dry-run", "-m", two_blocks, *words) == 0
        return capsys.readouterr().out

    assert "teacher    the dense model, for distillation, token, feature, guidance" in plan()
    said = plan(*by(teacher))
    network = timm.create_model("test_resnet", num_classes=NUM_CLASSES)
    size = f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"
    cost = f"{count_macs(network, 160) / 1e9:.2f} G at 160x160"
    assert f"teacher    test_resnet: {size}, {cost}, for distillation\n" in said
    assert "           the dense model, for token, feature, guidance" in said
    alone = plan(*by(teacher), *LOGITS_ALONE)
    assert "the dense model" not in alone
    assert "  model: test_resnet" in alone
    nobody = ["--set", "losses.ratio=1", "--set", "losses.distillation=0", *LOGITS_ALONE]
    assert "teacher    none is asked" in plan(*nobody)


def test_bad_teachers_are_one_line_and_leave_nothing(
    two_blocks: Path,
    teacher: Path,
    folder: Path,
    tmp_path: Path,
    command: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    five = teacher_file(tmp_path / "five.safetensors", classes=5)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(teacher.read_bytes()[:1000])
    before = sorted(tmp_path.rglob("*"))
    for words, said in (
        (["--teacher", "resnet5"], "no model 'resnet5'"),
        (["--teacher", "dynamicvit_deit_tiny_patch16_224"], "dense network, deit_tiny_patch16_224"),
        (["--teacher", "lvvit-s-0.7"], "dense network, lvvit_s"),
        (["--teacher", two_blocks], "give timm's name of the network"),
        (["--teacher-checkpoint", teacher], f"teacher checkpoint {teacher}"),
        (by(teacher, "test_vit"), "does not fit test_vit"),
        (by(tmp_path / "nowhere.pth"), "nowhere.pth: no such file"),
        (by(broken), "truncated or not safetensors"),
        (by(five), "the teacher has 5 classes, the student 7"),
        (["--set", "teacher.hard=maybe"], "teacher.hard: Input should be a valid boolean"),
    ):
        line = ["train", folder, "-m", two_blocks, *THREE_STEPS, "-o", tmp_path / "out", *words]
        assert command(*line) == 2, words
        error = capsys.readouterr().err
        assert error.startswith("dynamicvit: ")
        assert said in error, words
        assert error.count("\n") == 1, error
        assert sorted(tmp_path.rglob("*")) == before
