"""`dynamicvit convert`: what it prints and writes, and what bad input leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dynamicvit import DynamicViT, InputError, load
from dynamicvit.checkpoints.released import RELEASES
from dynamicvit.cli import convert as command_file
from released_state import filled, lvvit_shapes, lvvit_state, released_state, shapes_of

Main = Callable[..., int]

# Python warns where a process with threads forks; that is torch's affair.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def main(command: Main) -> Main:
    return lambda *arguments: command("convert", *arguments)


@pytest.fixture
def refused(main: Main, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a refused call prints."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main(*arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert len(printed.err) < 600
        return printed.err

    return run


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small DeiT, in a file as the authors' are named."""
    path = tmp_path / "dynamic-vit_16_r0.6.pth"
    torch.save({"model": released_state()}, path)
    return path


def pictures(folder: Path, classes: int, size: int) -> Path:
    for index in range(classes):
        path = folder / f"class{index}" / "a.png"
        path.parent.mkdir(parents=True)
        noise = torch.randint(256, (size, size, 3), dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(path)
    return folder


def test_a_full_size_file_becomes_a_folder_that_eval_runs(
    tmp_path: Path, main: Main, command: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = shapes_of(RELEASES["deit-256-0.7"])
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state["head.bias"][3] = 1.0  # whatever it sees, it is class 3
    file, out = tmp_path / "dynamic-vit_256_r0.7.pth", tmp_path / "new" / "folder"
    torch.save({"model": state}, file)
    assert main(file, "--out", out) == 0
    printed = capsys.readouterr().out
    for told in (
        "DeiT-256",
        "3, 6, 9",
        "70, 49, 34.3 %",
        "from its name",
        "10.30 M",
        "1.37 GMACs",
    ):
        assert told in printed
    assert sorted(path.name for path in out.parent.iterdir()) == ["folder"]
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    images = pictures(tmp_path / "images", classes=1, size=230)
    mapped = tmp_path / "classes.txt"
    mapped.write_text("\n".join(["a", "b", "c", "class0", *map(str, range(996))]))
    words = ("--model", out, "--class-map", mapped, "--workers", 0, "--json", "-")
    assert command("eval", images, *words) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["top1"] == 1.0
    assert numbers["keep_ratios"] == pytest.approx([0.7, 0.49, 0.343])


def deeper_lvvit() -> dict[str, torch.Tensor]:
    return filled(lvvit_shapes(width=24, depth=8, side=4, patch=8, classes=3))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (released_state, ("--num-heads", 4)),
        (deeper_lvvit, ("--num-heads", 3, "--residual-divisor", 3)),
    ],
)
def test_the_folder_holds_the_same_model(
    tmp_path: Path, main: Main, state: Callable[[], dict], words: tuple
) -> None:
    file, out = tmp_path / "mine.pth", tmp_path / "out"
    torch.save({"model": state(), "epoch": 29}, file)
    assert main(file, "--out", out, "--keep-ratio", 0.5, *words) == 0
    heads = dict(zip(words[::2], words[1::2], strict=True))
    direct = command_file.recognize(
        file, 0.5, heads["--num-heads"], residual_divisor=heads.get("--residual-divisor")
    ).build()
    loaded = load(out)
    assert loaded.pretrained_cfg["crop_pct"] == pytest.approx(224 / 256)
    size = direct.backbone.patch_embed.img_size
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(loaded(images), direct(images), rtol=0, atol=0)
    assert loaded.keep_ratio == 0.5


def test_the_moving_average_is_taken_on_demand(
    tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    state = released_state()
    average = {name: value + 1 for name, value in state.items()}
    file, out = tmp_path / "dynamic-vit_16_r0.7.pth", tmp_path / "out"
    torch.save({"model": state, "model_ema": average}, file)
    for words, expected in (((), state), (("--ema",), average)):
        assert main(file, "--out", out, "--num-heads", 2, *words) == 0
        assert "model_ema" in capsys.readouterr().out
        weight = DynamicViT.from_pretrained(out).backbone.norm.weight
        assert torch.equal(weight, expected["norm.weight"])


# ------------------------------------------------------------------ bad input


def test_where_it_can_not_write(tmp_path: Path, small: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert refused(small, "--out", out).startswith(f"dynamicvit: --out {out}: ")
    assert (tmp_path / "file").read_text() == "mine"


def test_either_a_file_or_a_release(
    tmp_path: Path, small: Path, refused: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    for words in ((), (small, "--released", "deit-s-0.7")):
        assert "--released" in refused(*words, "--out", out)
    assert "'deit-x'" in refused("--released", "deit-x", "--out", out)
    assert "absent.pth: no such file" in refused(tmp_path / "absent.pth", "--out", out)
    assert "1.5" in refused(small, "--out", out, "--keep-ratio", 1.5, "--num-heads", 2)
    assert "num_heads" in refused(small, "--out", out)
    assert not out.exists()


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_nothing_half_written(
    tmp_path: Path, small: Path, main: Main, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    out = tmp_path / "out"
    if existing:
        out.mkdir()
        (out / "config.json").write_text("older")

    def full(tensors: object, path: Path, **kwargs: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("dynamicvit.core.hub.save_file", full)
    assert main(small, "--out", out, "--num-heads", 2) == 2
    if existing:
        assert [path.name for path in out.iterdir()] == ["config.json"]
        assert (out / "config.json").read_text() == "older"
    else:
        assert list(tmp_path.iterdir()) == [small]


def test_a_release_is_converted_from_the_cache(
    tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / RELEASES["lvvit-s-0.5"].file_name
    torch.save({"model": lvvit_state()}, cached)
    requested = []

    def from_cache(name: str) -> Path:
        requested.append(name)
        return cached

    monkeypatch.setattr(command_file, "download", from_cache)
    words = ("--num-heads", 2, "--residual-divisor", 2)
    assert main("--released", "lvvit-s-0.5", "--out", tmp_path / "out", *words) == 0
    assert requested == ["lvvit-s-0.5"]
    assert load(tmp_path / "out").keep_ratio == 0.5


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "DATA"),
        ("bench",),
        ("visualize", "IMAGE"),
        ("train", "DATA", "--output", "OUT"),
    ],
    ids=lambda words: words[0],
)
def test_every_command_takes_a_release(
    tmp_path: Path,
    command: Main,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = pictures(tmp_path / "images", classes=2, size=16)
    paths = {"DATA": data, "IMAGE": data / "class0" / "a.png", "OUT": tmp_path / "out"}
    words = [paths.get(word, word) for word in words]

    def no_network(name: str) -> Path:
        raise InputError(f"{name} is not cached")

    monkeypatch.setattr("dynamicvit.checkpoints.loading.download", no_network)
    monkeypatch.setattr("dynamicvit.cli.options.download", no_network)
    assert command(*words, "--released", "deit-s-0.7") == 2
    assert capsys.readouterr().err == "dynamicvit: deit-s-0.7 is not cached\n"
    for more, told in (
        (("--model", "deit-s-0.7"), "deit-s-0.7"),
        (("--model", "x", "--released", "deit-s-0.7"), "--model x and --released deit-s-0.7"),
        (("--released", "deit"), "'deit'"),
        ((), "--released"),
    ):
        assert command(*words, *more) == 2
        assert told in capsys.readouterr().err


def test_a_release_is_not_what_else_has_its_name(
    tmp_path: Path,
    command: Main,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cached = tmp_path / "cache" / RELEASES["deit-s-0.7"].file_name
    cached.parent.mkdir()
    torch.save({"model": released_state(width=64)}, cached)
    monkeypatch.setattr("dynamicvit.cli.options.download", lambda name: cached)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deit-s-0.7").mkdir()
    images = pictures(tmp_path / "images", classes=5, size=16)
    quick = ("--workers", 0, "--json", "-")
    assert command("eval", images, "--released", "deit-s-0.7", *quick) == 0
    assert json.loads(capsys.readouterr().out)["keep_ratios"] == pytest.approx([0.7, 0.49, 0.343])
    assert command("eval", images, "--model", "deit-s-0.7", *quick) == 2
    assert "deit-s-0.7: has no config.json" in capsys.readouterr().err


def test_a_release_is_fine_tuned(
    tmp_path: Path, command: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / RELEASES["deit-s-0.7"].file_name
    state = released_state(width=64)
    torch.save({"model": state}, cached)
    monkeypatch.setattr("dynamicvit.cli.options.download", lambda name: cached)
    images, out = pictures(tmp_path / "images", classes=5, size=16), tmp_path / "out"
    words = ("--output", out, "--workers", 0, "--set", "images=4", "--set", "batch_size=2")
    assert command("train", images, "--released", "deit-s-0.7", *words) == 0
    before, after = state["score_predictor.0.in_conv.1.weight"], load(out).predictors[0]
    assert not torch.equal(after.project.weight, before)
    torch.testing.assert_close(after.project.weight, before, atol=0.01, rtol=0)
