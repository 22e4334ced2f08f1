"""`dynamicvit eval`: what it prints and writes, and what bad input leaves behind."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config

import dynamicvit.cli
from dynamicvit import DynamicViT, sparsify
from dynamicvit.cli import evaluate as command
from dynamicvit.data import ImageData, eval_transform
from dynamicvit.utils.distributed import Processes
from pictures import noise_folders
from processes import run_two

Main = Callable[..., int]


@pytest.fixture(scope="module")
def model() -> DynamicViT:
    torch.manual_seed(0)
    backbone = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=4,
        num_heads=2,
        num_classes=6,
    )
    torch.nn.init.normal_(backbone.head.weight)
    return sparsify(backbone, keep_ratio=0.7, policy="removed", method="dynamicvit").eval()


@pytest.fixture(scope="module")
def saved(model: DynamicViT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six classes of two images."""
    return noise_folders(tmp_path / "images", classes=6, each=2, size=(50, 60))


@pytest.fixture
def main(command: Main) -> Main:
    """The command, with what every call has; gives the exit code."""
    return lambda *arguments: command("eval", *arguments, "--workers", "0")


@pytest.fixture
def numbers(main: Main, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """The command's numbers, as ``--json -`` prints them."""

    def run(*arguments: object) -> dict:
        assert main(*arguments, "--json", "-") == 0
        return json.loads(capsys.readouterr().out)  # nothing but JSON on standard output

    return run


def answers(model: DynamicViT, folder: Path, **settings: object) -> list[torch.Tensor]:
    """By hand: for each image the sparse and the dense answer, and the label."""
    data = ImageData(folder, transform=eval_transform(model, **settings))
    images = torch.stack([data[index].image for index in range(len(data))])
    with torch.no_grad():
        sparse = model.eval()(images).argmax(1)
        return [sparse, model.backbone(images).argmax(1), torch.from_numpy(data.labels)]


def test_the_numbers_are_right(
    model: DynamicViT, saved: Path, folder: Path, numbers: Callable[..., dict]
) -> None:
    sparse, dense, labels = answers(model, folder)
    assert (sparse != dense).any(), "else agreement tests nothing"
    found = numbers(folder, "--model", saved, "--compare-dense", "--batch-size", 5)
    assert found["images"] == found["labeled"] == 12
    assert found["top1"] == pytest.approx(float((sparse == labels).float().mean()))
    assert found["dense_top1"] == pytest.approx(float((dense == labels).float().mean()))
    assert found["agreement"] == pytest.approx(float((sparse == dense).float().mean()))
    assert found["keep_ratios"] == pytest.approx([0.7, 0.49, 0.343])
    assert found["image_size"] == [32, 32]
    assert found["crop_pct"] == resolve_model_data_config(model)["crop_pct"]
    alone = numbers(folder, "--model", saved, "--dense", "--compare-dense")
    assert alone["agreement"] == 1
    assert alone["top1"] == found["dense_top1"]
    assert alone["keep_ratios"] == []


def test_a_model_that_merges(model: DynamicViT, folder: Path, tmp_path: Path, numbers) -> None:
    merging = DynamicViT(
        copy.deepcopy(model.backbone), replace(model.schedule, policy="merged"), model.predictors
    ).eval()
    merging.save_pretrained(tmp_path / "merging")
    sparse, _, labels = answers(merging, folder)
    assert (sparse != answers(model, folder)[0]).any(), "else it shows nothing"
    found = numbers(folder, "--model", tmp_path / "merging")
    assert found["policy"] == "merged"
    assert found["top1"] == pytest.approx(float((sparse == labels).float().mean()))
    assert numbers(folder, "--model", tmp_path / "merging", "--dense")["policy"] is None


@pytest.mark.usefixtures("native_bf16")
def test_image_size_crop_and_precision(
    model: DynamicViT, saved: Path, folder: Path, numbers: Callable[..., dict], monkeypatch
) -> None:
    seen: list[tuple[torch.Tensor, bool]] = []
    forward = DynamicViT.forward

    def spy(self: DynamicViT, images: torch.Tensor) -> torch.Tensor:
        seen.append((images, torch.is_autocast_enabled("cpu")))
        return forward(self, images)

    monkeypatch.setattr(DynamicViT, "forward", spy)
    options = ("--image-size", 48, "--crop-pct", 0.5, "--precision", "bf16", "--compare-dense")
    found = numbers(folder, "--model", saved, *options)
    assert found["image_size"] == [48, 48]
    expected = ImageData(folder, transform=eval_transform(model, 48, 0.5))[0].image
    [(images, autocast)] = seen
    assert torch.equal(images[0], expected)
    assert autocast


def test_agreement_with_other_dense_weights(
    model: DynamicViT, folder: Path, tmp_path: Path, numbers, monkeypatch
) -> None:
    """As after training: the model's own backbone is no longer what it was trained from."""
    trained, original = tmp_path / "trained", tmp_path / "original.safetensors"
    model.save_pretrained(trained)
    save_file(model.backbone.state_dict(), original)
    asked = []

    def load_dense(name: str, checkpoint: Path) -> torch.nn.Module:
        asked.append((name, checkpoint))
        backbone = copy.deepcopy(model.backbone)
        with torch.no_grad():  # answers the worst class
            for parameter in backbone.get_classifier().parameters():
                parameter.neg_()
        return backbone

    monkeypatch.setattr(command, "load_dense", load_dense)
    found = numbers(folder, "--model", trained, "--dense-checkpoint", original)
    assert asked == [("vit_tiny_patch16_224", original)]
    own = numbers(folder, "--model", trained, "--compare-dense")
    assert found["agreement"] < own["agreement"]


def test_a_class_map_file(saved: Path, folder: Path, tmp_path: Path, numbers) -> None:
    by_line = tmp_path / "names.txt"
    by_line.write_text("".join(f"{number}\n" for number in (5, 4, 3, 2, 1, 0)))
    found = numbers(folder, "--model", saved, "--class-map", by_line)
    assert found["class_map"] == f"{by_line} (6 ids)"
    turned = tmp_path / "turned"
    for number in range(6):  # the same labels by renamed folders
        (turned / f"{5 - number}").mkdir(parents=True)
        for path in (folder / f"{number}").iterdir():
            path.rename(turned / f"{5 - number}" / path.name)
    assert numbers(turned, "--model", saved)["top1"] == found["top1"]


def test_images_without_labels(saved: Path, folder: Path, numbers, main: Main, one_line) -> None:
    found = numbers(folder, "--model", saved, "--unlabeled", "--compare-dense")
    assert found["top1"] is None
    assert found["images"] == 12
    assert found["class_map"] is None
    flat = folder / "0"
    assert numbers(flat, "--model", saved, "--compare-dense")["images"] == 2
    assert main(flat, "--model", saved) == 2
    assert "--compare-dense" in one_line()


def test_unreadable_images_are_named_and_not_counted(
    saved: Path, folder: Path, numbers, main: Main, one_line, capsys
) -> None:
    bad = folder / "0" / "0.png"
    bad.write_bytes(bad.read_bytes()[:100])
    found = numbers(folder, "--model", saved)
    assert found["images"] == 11
    assert found["skipped"] == [str(bad)]
    assert main(folder, "--model", saved) == 0
    said = capsys.readouterr().out
    for part in ("class map", "70, 49, 34.3 %", "top-1", "top-5"):
        assert part in said
    assert "agreement" not in said
    assert str(bad) in said.replace("\n", "")
    assert main(folder, "--model", saved, "--strict") == 2
    assert str(bad) in one_line()


def test_bad_input_is_one_line_and_exit_code_2(
    saved: Path, folder: Path, tmp_path: Path, main: Main, one_line: Callable[[], str]
) -> None:
    out = tmp_path / "numbers.json"
    (tmp_path / "empty").mkdir()
    common = ("--model", saved, "--json", out)
    for arguments, said in (
        ((tmp_path / "nowhere", *common), "nowhere"),
        ((tmp_path / "empty", *common), "empty"),
        ((folder, "--model", "deit_tinny_patch16_224", "--json", out), "deit_tinny_patch16_224"),
        ((folder, "--model", tmp_path / "nowhere", "--json", out), "nowhere"),
        ((folder, *common, "--keep-ratio", 1.5), "1.5"),
        ((folder, *common, "--crop-pct", 2), "crop_pct"),
        ((folder, *common, "--dense", "--tile", 16), "--tile 16"),
        ((folder, *common, "--dense", "--keep-ratio", 0.5), "--keep-ratio 0.5"),
        ((folder, *common, "--image-size", 30), "8x8"),
        ((folder, *common, "--class-map", "imagenet"), "class map"),
        ((folder, *common, "--class-map", tmp_path / "no.txt"), "no.txt"),
        ((folder, *common, "--dense-checkpoint", tmp_path / "no.safetensors"), "no.safetensors"),
        ((folder, "--model", saved, "--json", tmp_path), f"--json {tmp_path}"),
        ((folder, "--model", saved, "--json", tmp_path / "no" / "x.json"), f"{tmp_path / 'no'}"),
    ):
        assert main(*arguments) == 2
        assert said in one_line(), arguments
    assert not list(tmp_path.glob("numbers*"))


def test_no_permission_to_write(
    saved: Path, folder: Path, tmp_path: Path, main: Main, one_line, monkeypatch
) -> None:
    def access(path: Path, mode: int) -> bool:  # root, who may run this, is refused nothing
        return not (mode == os.W_OK and Path(path) == tmp_path)

    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr("dynamicvit.cli.evaluated.evaluate", None)  # refused before the work
    assert main(folder, "--model", saved, "--json", tmp_path / "x.json") == 2
    assert "no permission" in one_line()


def test_the_json_file_replaces_the_old_one_when_all_is_done(
    saved: Path, folder: Path, tmp_path: Path, main: Main
) -> None:
    out = tmp_path / "numbers.json"
    out.write_text('{"written_by": "dynamicvit 0.2.0"}')
    assert main(folder, "--model", saved, "--crop-pct", 7, "--json", out) == 2
    assert out.read_text() == '{"written_by": "dynamicvit 0.2.0"}'
    assert main(folder, "--model", saved, "--json", out) == 0
    assert json.loads(out.read_text())["images"] == 12
    assert [path.name for path in tmp_path.glob("numbers*")] == ["numbers.json"]


def main_printing_to(printed: Path, words: list[str]) -> None:
    """The command in one of two processes."""
    sys.argv = ["dynamicvit", *words]
    sys.stdout = sys.stderr = (printed / f"{os.environ['RANK']}.txt").open("w")
    dynamicvit.cli.main()


@pytest.mark.extended
def test_two_processes_count_each_image_once_and_one_of_them_prints(
    saved: Path, folder: Path, tmp_path: Path, numbers: Callable[..., dict]
) -> None:
    (folder / "0" / "0.png").write_bytes(b"no image")
    (folder / "1" / "1.png").unlink()  # batches of 4, 4 and 3
    words = [str(folder), "--model", str(saved), "--compare-dense", "--batch-size", "4"]
    out = tmp_path / "numbers.json"
    shared = ["eval", *words, "--workers", "0", "--json", str(out)]
    run_two(main_printing_to, tmp_path, shared)
    main, other = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert main.count("class map:") == 1
    assert not other
    found, alone = json.loads(out.read_text()), numbers(*words)
    assert (found["images"], found["processes"], alone["processes"]) == (10, 2, 1)
    assert found["divergence"] == pytest.approx(alone["divergence"])  # in another order
    own = {"processes": 0, "seconds": 0, "images_per_second": 0, "divergence": 0}
    assert found | own == alone | own


def test_random_weights_are_the_main_processs(
    saved: Path, folder: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_equal = []
    monkeypatch.setattr(Processes, "equalize", lambda _, model: made_equal.append(model))
    assert main(folder, "--model", saved) == 0
    assert [type(model) for model in made_equal] == [DynamicViT]


@pytest.mark.usefixtures("native_bf16")
def test_the_precision_that_accelerate_asks_for(
    saved: Path, folder: Path, main: Main, numbers, one_line, monkeypatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert numbers(folder, "--model", saved)["precision"] == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert main(folder, "--model", saved) == 2
    assert "fp16" in one_line()
