"""Add-ons: prediction modules alone in a file, put on any copy of their backbone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dynamicvit import DynamicViT, InputError, load, sparsify
from dynamicvit.checkpoints.addon import ADDON_NAME, save_addon
from dynamicvit.core.networks import DenseNetwork
from families import BY_NAME, DEIT, Family, randomize
from pictures import noise_folders
from real import ImageNet

Main = Callable[..., int]


@pytest.fixture
def addon(tmp_path: Path) -> Path:
    save_addon(DEIT.sparse(policy="merged"), tmp_path / ADDON_NAME)
    return tmp_path / ADDON_NAME


def said_by(file: Path) -> dict:
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["dynamicvit"])


HF = [BY_NAME["hf_vit"]] if "hf_vit" in BY_NAME else []


# ---------------------------------------------------------------- what it gives


@pytest.mark.parametrize("family", [DEIT, BY_NAME["siglip"], *HF], ids=lambda family: family.name)
def test_a_copy_of_the_backbone_becomes_the_model(family: Family, tmp_path: Path) -> None:
    """And its dense answers are its own, to the bit; whether it comes as a folder or a network."""
    model, images = family.sparse((0.7, 0.4), (1, 3), policy="merged"), family.images()
    save_addon(model, tmp_path / ADDON_NAME)
    sparsify(family.backbone(), method="dynamicvit").save_pretrained(tmp_path / "folder")
    dense = family.dense(family.backbone(), images)
    for place in (family.backbone(), tmp_path / "folder"):
        made = load(place, addon=tmp_path / ADDON_NAME)
        assert made.schedule == model.schedule
        assert torch.equal(made(images), model(images))
        assert torch.equal(family.dense(made.backbone, images), dense)
        assert torch.equal(DenseNetwork(made)(images), dense)


def test_that_of_a_real_network_takes_less_than_a_megabyte(tmp_path: Path) -> None:
    real = ImageNet("deit", 4)
    model = sparsify(copy.deepcopy(real.backbone), method="dynamicvit")
    randomize(model.predictors)
    save_addon(model, tmp_path / ADDON_NAME)
    assert (tmp_path / ADDON_NAME).stat().st_size < 1e6
    made = load(real.backbone, addon=tmp_path / ADDON_NAME)
    with torch.no_grad():
        assert torch.equal(made(real.images), model.eval()(real.images))
        assert torch.equal(made.backbone(real.images), real.dense)


def test_it_holds_the_modules_alone_and_says_of_what(addon: Path) -> None:
    model = DEIT.sparse(policy="merged")
    tensors, said = load_file(addon), said_by(addon)
    assert tensors.keys() == {n for n in model.state_dict() if n.startswith("predictors.")}
    assert said["schedule"]["stages"] == list(model.schedule.stages)
    assert (said["method"], said["schedule"]["policy"]) == ("dynamicvit", "merged")
    assert said["written_by"].startswith("dynamicvit ")
    assert said["backbone"]["architecture"] == DEIT.model
    assert addon.stat().st_mode & 0o044


def test_its_budget_and_policy_can_be_changed_but_not_what_it_was_trained_for(addon: Path) -> None:
    made = load(DEIT.backbone(), addon=addon, keep_ratio=0.5, policy="removed")
    assert (made.keep_ratio, made.policy) == (0.5, "removed")
    for wrong in ({"stages": (2,)}, {"method": "tome"}):
        with pytest.raises(InputError, match=ADDON_NAME):
            load(DEIT.backbone(), addon=addon, **wrong)


def test_the_image_size_of_its_training_comes_with_it(tmp_path: Path) -> None:
    """Though positions that were resized are other weights."""
    model = DEIT.sparse()
    weights = said_by_save(model, tmp_path / "small.safetensors")
    model.bound.set_image_size(96, 128)
    save_addon(model, tmp_path / ADDON_NAME, weights)
    images = torch.randn(2, 3, 96, 128)
    made = load(DEIT.backbone(), addon=tmp_path / ADDON_NAME)
    assert torch.equal(made(images), model(images))


def said_by_save(model: DynamicViT, file: Path) -> str:
    save_addon(model, file)
    return said_by(file)["backbone"]["fingerprint"]


# ---------------------------------------------------------------- what is refused


def changed(backbone: nn.Module) -> nn.Module:
    """By the least that a weight can change."""
    weight = backbone.blocks[2].mlp.fc1.weight.data
    weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    return backbone


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: changed(DEIT.backbone()),
        lambda: DEIT.backbone(depth=5),
        lambda: BY_NAME["siglip"].backbone(),
    ],
)
def test_another_backbone_is_told_by_its_weights(
    backbone: Callable[[], nn.Module], addon: Path
) -> None:
    network = backbone()
    before = copy.deepcopy(network.state_dict())
    expected = said_by(addon)["backbone"]["fingerprint"][:8]
    with pytest.raises(InputError, match=f"{DEIT.model} with weights {expected}") as error:
        load(network, addon=addon)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def rewrite(file: Path, change: Callable[[dict, dict], object]) -> None:
    tensors, said = load_file(file), said_by(file)
    change(tensors, said)
    save_file(tensors, file, metadata={"dynamicvit": json.dumps(said)})


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, said: tensors.popitem(),
        lambda tensors, said: tensors.update(other=torch.ones(1)),
        lambda tensors, said: tensors.update({"predictors.0.norm.bias": torch.ones(3)}),
        lambda tensors, said: tensors.update({"predictors.0.norm.bias": torch.ones(48) / 0}),
        lambda tensors, said: said.pop("backbone"),
        lambda tensors, said: said.pop("method"),
        lambda tensors, said: said.pop("schedule"),
        lambda tensors, said: said.update(backbone=[]),
        lambda tensors, said: said.update(method="none of ours"),
        lambda tensors, said: said.update(schedule={"stages": [1]}),
        lambda tensors, said: said.update(schedule={"stages": [9], "keep_ratios": [0.5]}),
        lambda tensors, said: said["schedule"].update(policy="eaten"),
        lambda tensors, said: said["backbone"].pop("fingerprint"),
        lambda tensors, said: said["backbone"].update(fingerprint=7),
        lambda tensors, said: said["backbone"].update(architecture=["x"]),
        lambda tensors, said: said["backbone"].update(image_size="large"),
        lambda tensors, said: said["backbone"].update(image_size=[64, 81]),
    ],
)
def test_a_damaged_one_is_refused_in_a_line(
    change: Callable[[dict, dict], object], addon: Path
) -> None:
    rewrite(addon, change)
    with pytest.raises(InputError) as error:
        load(DEIT.backbone(), addon=addon)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(addon: Path, tmp_path: Path) -> None:
    model = DEIT.sparse()
    model.save_pretrained(tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "state.pth")
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "half.safetensors").write_bytes(addon.read_bytes()[:-100])
    for name in (
        "model/model.safetensors",
        "state.pth",
        "text.safetensors",
        "half.safetensors",
        "-",
    ):
        with pytest.raises(InputError, match=str(tmp_path / name)):
            load(DEIT.backbone(), addon=tmp_path / name)
    with pytest.raises(InputError, match="--addon"):
        load("deit_tiny_patch16_224", checkpoint=addon)
    with pytest.raises(InputError, match="sparsify"):
        load(DEIT.backbone())


def test_methods_without_weights_need_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'tome'"):
        save_addon(sparsify(DEIT.backbone(), method="tome"), tmp_path / ADDON_NAME)
    with pytest.raises(InputError, match=r"\.safetensors"):
        save_addon(DEIT.sparse(), tmp_path / "addon.pth")
    assert not [*tmp_path.iterdir()]


# ---------------------------------------------------------------- the commands


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A folder of a model whose backbone is that of the add-on, with other modules."""
    DEIT.sparse(seed=0).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def test_training_leaves_one_that_the_commands_take(
    dense: Path,
    tmp_path: Path,
    command: Main,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamicvit.training.run.draw_run", lambda output: None)
    folder, out = noise_folders(tmp_path / "images", classes=7, each=2), tmp_path / "run"
    words = ("-m", dense, "-o", out, "--workers", "0", "--image-size", "64x80")
    tiny = ("--set", "images=8", "--set", "batch_size=4", "--keep-ratio", "0.5")
    assert command("train", folder, *words, "--freeze-backbone", *tiny) == 0
    said = capsys.readouterr().out
    assert f"{out / ADDON_NAME}" in said
    before = DynamicViT.from_pretrained(dense)
    after, made = DynamicViT.from_pretrained(out), load(dense, addon=out / ADDON_NAME)
    assert made.keep_ratio == 0.5
    for part in (after, made):
        same = [torch.equal(a, b) for a, b in pairs(part.backbone, before.backbone)]
        assert all(same)
    assert all(torch.equal(a, b) for a, b in pairs(made.predictors, after.predictors))
    assert not all(torch.equal(a, b) for a, b in pairs(made.predictors, before.predictors))
    with_it = ("-m", dense, "--addon", out / ADDON_NAME)
    assert command("eval", folder, *with_it, "--workers", "0", "--json", "-") == 0
    one = json.loads(capsys.readouterr().out)
    assert command("eval", folder, "-m", out, "--workers", "0", "--json", "-") == 0
    other = json.loads(capsys.readouterr().out)
    assert one["keep_ratios"] == other["keep_ratios"] == [0.5, 0.25, 0.125]
    assert (one["top1"], one["top5"]) == (other["top1"], other["top5"])
    assert command("info", *with_it, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["keep_ratios"] == [0.5, 0.25, 0.125]


def pairs(one: nn.Module, other: nn.Module):
    return zip(one.state_dict().values(), other.state_dict().values(), strict=True)


@pytest.mark.parametrize("name", ["eval", "predict", "visualize", "export", "bench", "info"])
def test_every_command_refuses_that_of_another_backbone(
    name: str, addon: Path, tmp_path: Path, command: Main, one_line: Callable[[], str]
) -> None:
    DEIT.sparse(seed=3).save_pretrained(tmp_path / "other")
    images = noise_folders(tmp_path / "images", classes=7, each=1)
    output = {"predict": "p.csv", "export": "m.onnx", "visualize": "pictures"}.get(name)
    words = [] if name in ("export", "bench", "info") else [images]
    words += [] if output is None else ["-o", tmp_path / output]
    assert command(name, *words, "-m", tmp_path / "other", "--addon", addon) == 2
    assert said_by(addon)["backbone"]["fingerprint"][:8] in one_line()
    assert output is None or not (tmp_path / output).exists()


def test_a_video_takes_it_for_one_model(
    addon: Path, dense: Path, tmp_path: Path, command: Main, one_line: Callable[[], str]
) -> None:
    images = noise_folders(tmp_path / "images", classes=1, each=2) / "0"
    assert command("stream", images, "-m", dense, "--addon", addon) == 0
    two = ("-m", dense, "-m", tmp_path, "--target-latency", "9s")
    assert command("stream", images, *two, "--addon", addon) == 2
    assert f"--addon {addon}" in one_line()


def test_an_exported_file_takes_none(
    addon: Path, exported: Callable[..., Path], command: Main, one_line: Callable[[], str]
) -> None:
    assert command("info", "-m", exported("torch"), "--addon", addon) == 2
    assert "--addon" in one_line()
