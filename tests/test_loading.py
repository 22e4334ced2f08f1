"""Models by name, folder and file, as the commands take them."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from dynamicvit import (
    DynamicViT,
    InputError,
    UnsupportedBackboneError,
    load,
    load_dense,
    sparsify,
)
from dynamicvit.checkpoints.loading import set_drop_path, set_image_size
from dynamicvit.core.schedule import Policy
from dynamicvit.costs import DENSE
from dynamicvit.utils import connection
from families import BY_NAME, NUM_CLASSES
from released_state import WIDTH, deit_shapes, filled, lvvit_shapes, released_state

NAME = "vit_tiny_patch16_224"


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let timm build every network small, and never ask the network."""
    create = timm.create_model

    def create_small(name: str, pretrained: bool = False, **kwargs: object) -> nn.Module:
        if pretrained:
            raise OSError("[Errno -2] Name or service not known\nand more")
        small = {"depth": 4, "embed_dim": 16, "num_heads": 2, "img_size": 32}
        return create(name, **{**small, **kwargs})

    monkeypatch.setattr(timm, "create_model", create_small)
    monkeypatch.setattr("dynamicvit.utils.connection._answers", lambda url: True)


def dense(num_classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=num_classes).eval()


def test_a_timm_name_with_random_weights() -> None:
    for name in (NAME, "dynamicvit_" + NAME, "vit_tiny_patch16_224.augreg_in21k"):
        model = load(name, pretrained=False, num_classes=3)
        assert isinstance(model, DynamicViT)
        assert not model.training
        assert not model.backbone.training
        assert model.method.name == (
            "dynamicvit" if name.startswith("dynamicvit_") else "lookahead"
        )
        assert model.keep_ratio == 0.7
        assert model.schedule.stages == (1, 2, 3)
        assert model.num_classes == 3
    model = load(NAME, pretrained=False, keep_ratio=[0.9, 0.3], stages=[0, 2], method="dynamicvit")
    assert model.schedule.keep_ratios == (0.9, 0.3)
    assert model.schedule.stages == (0, 2)


@pytest.mark.parametrize("keep_ratio", [0, 0.0, -0.5, ()])
def test_a_ratio_that_keeps_nothing_is_not_the_default(keep_ratio: Any) -> None:
    with pytest.raises(InputError, match="ratio"):
        load("deit_tiny_patch16_224", pretrained=False, keep_ratio=keep_ratio)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_dense_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    original = dense()
    path = tmp_path / f"dense.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": original.state_dict(), "epoch": 1}, path)
    else:
        save_file(original.state_dict(), path)
    images = torch.randn(2, 3, 32, 32)
    model = load(NAME, checkpoint=path)
    assert model.num_classes == 5  # the file's, not ImageNet's 1,000
    torch.testing.assert_close(model.backbone(images), original(images))
    torch.testing.assert_close(load_dense(NAME, path)(images), original(images))
    assert not load_dense(NAME, path).training

    other = load(NAME, checkpoint=path, num_classes=7)  # weights kept, classifier fresh
    assert other(images).shape == (2, 7)
    weight = "blocks.3.mlp.fc2.weight"
    torch.testing.assert_close(other.backbone.state_dict()[weight], original.state_dict()[weight])
    assert load_dense(NAME, path, num_classes=7)(images).shape == (2, 7)


def test_a_sparse_state_dict_from_a_file(tmp_path: Path) -> None:
    original = sparsify(dense(), keep_ratio=0.5, stages=[1, 3], method="dynamicvit").eval()
    torch.save(original.state_dict(), tmp_path / "sparse.pth")
    images = torch.randn(2, 3, 32, 32)
    given = {"checkpoint": tmp_path / "sparse.pth", "policy": "merged"}
    model = load(NAME, keep_ratio=0.5, stages=[1, 3], **given)
    torch.testing.assert_close(model(images), original(images))
    with pytest.raises(InputError, match=r"sparse.pth: .*missing predictors\.2"):
        load(NAME, **given)  # three stages by default
    with pytest.raises(InputError, match=r"sparse.pth: holds prediction modules"):
        load_dense(NAME, tmp_path / "sparse.pth")
    with pytest.raises(InputError, match=r"unexpected predictors.1.norm.weight"):
        load(NAME, stages=[2], **given)


def test_a_saved_folder(tmp_path: Path) -> None:
    original = sparsify(dense(), keep_ratio=0.5, stages=[1, 3], method="dynamicvit").eval()
    original.save_pretrained(tmp_path / "saved")
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load(tmp_path / "saved")(images), original(images))
    assert load(str(tmp_path / "saved"), keep_ratio=0.9).keep_ratio == 0.9
    assert load(tmp_path / "saved", stages=[1, 3], num_classes=4).num_classes == 4
    with pytest.raises(InputError, match=r"\(1, 3\).* \(1, 2\)"):
        load(tmp_path / "saved", stages=[1, 2])

    with torch.no_grad():
        original.backbone.head.weight.add_(1.0)
    torch.save(original.state_dict(), tmp_path / "newer.pth")
    newer = load(tmp_path / "saved", checkpoint=tmp_path / "newer.pth")
    torch.testing.assert_close(newer(images), original(images))


def test_what_becomes_of_dropped_tokens_is_the_models_own(tmp_path: Path) -> None:
    assert load(NAME, pretrained=False, method="dynamicvit").policy == "merged"
    assert load(NAME, pretrained=False, method="evit").policy == "removed"
    sparsify(dense(), policy="removed", method="dynamicvit").save_pretrained(tmp_path)
    for arguments in ({}, {"keep_ratio": 0.3, "num_classes": 4}):
        assert load(tmp_path, **arguments).policy == "removed"
    assert load(tmp_path, policy="merged").policy == "merged"
    with pytest.raises(InputError, match=r"'dynamicvit'.*'tome' is for a dense model"):
        load(tmp_path, method="tome")


def test_a_saved_dense_model_drops_what_it_is_asked_to(tmp_path: Path) -> None:
    """As a name of timm's does; asked nothing it stays dense."""
    DynamicViT(dense(), DENSE, []).save_pretrained(tmp_path)
    assert load(tmp_path).schedule.stages == ()
    assert load(tmp_path, keep_ratio=0.6).schedule == sparsify(dense(), 0.6).schedule
    moved = load(tmp_path, stages=[1, 3], method="class-attention")
    assert moved.schedule.stages == (1, 3)
    assert load(tmp_path, policy="merged").policy == "merged"


@pytest.mark.parametrize("policy", ["removed", "merged"])
def test_weights_without_their_config_keep_policy_method_and_schedule(
    tmp_path: Path, policy: Policy
) -> None:
    original = sparsify(dense(), 0.5, stages=[1, 3], policy=policy, method="dynamicvit").eval()
    original.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    model = load(NAME, checkpoint=tmp_path / "model.safetensors")
    assert model.schedule == original.schedule
    torch.testing.assert_close(model(images), original(images))
    # A run's checkpoint says it by its recipe; it goes before the config of another folder.
    state = {"model": original.state_dict(), "counters": {}}
    recipe = {"keep_ratio": 0.5, "stages": [1, 3], "policy": policy}
    torch.save({**state, "recipe": recipe}, tmp_path / "run.pt")
    assert load(NAME, checkpoint=tmp_path / "run.pt").schedule == original.schedule
    other = "merged" if policy == "removed" else "removed"
    sparsify(dense(), 0.5, stages=[1, 3], policy=other, method="dynamicvit").save_pretrained(
        tmp_path / "other"
    )
    assert load(tmp_path / "other", checkpoint=tmp_path / "run.pt").policy == policy
    # A plain state dict can't say it.
    torch.save(original.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(InputError, match=r"plain.pth does not say.*--policy"):
        load(NAME, checkpoint=tmp_path / "plain.pth", stages=[1, 3])


def test_the_weights_of_another_method_bring_it(tmp_path: Path) -> None:
    sparsify(dense(), 0.5, method="static").save_pretrained(tmp_path)
    model = load(NAME, checkpoint=tmp_path / "model.safetensors")
    assert (model.method.name, model.policy) == ("static", "removed")


def test_a_folder_that_only_shares_a_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    assert load(NAME, pretrained=False).depth == 4
    (tmp_path / "results").mkdir()
    with pytest.raises(InputError, match=r"results: has no config.json"):
        load("results")


def test_a_released_file(tmp_path: Path) -> None:
    path = tmp_path / "released.safetensors"
    save_file(released_state(), path, metadata={"num_heads": "2", "rho": "0.6"})
    model = load(path)
    assert model.keep_ratio == 0.6
    assert model.num_classes == 5
    assert load(path, keep_ratio=0.3, num_classes=9).keep_ratio == 0.3
    with pytest.raises(InputError, match="3 prediction modules, but 2 stages"):
        load(path, stages=[1, 2])
    for other, kind in (
        (dense(), "a dense network"),
        (sparsify(dense(), method="dynamicvit"), "own state dict"),
    ):
        save_file(other.state_dict(), path)
        with pytest.raises(InputError, match=f"{kind}.* give its timm name"):
            load(path)


def released_file(path: Path, **metadata: str) -> dict[str, torch.Tensor]:
    """A file of the released implementation that fits ``NAME``, and its tensors."""
    state = filled(deit_shapes(WIDTH, patch=16, mlp_ratio=4))
    if path.suffix == ".safetensors":
        save_file(state, path, metadata=metadata)
    else:
        torch.save({"model": state}, path)
    return state


def test_released_weights_for_a_timm_name(tmp_path: Path) -> None:
    path = tmp_path / "dynamic-vit_16_r0.5.pth"
    state = released_file(path)
    model = load(NAME, checkpoint=path)
    expected = state["score_predictor.1.out_conv.2.weight"]
    assert torch.equal(model.predictors[1].mlp[2].weight, expected)
    assert model.pretrained_cfg["crop_pct"] == 224 / 256  # as the released code evaluates
    assert load(NAME, pretrained=False).pretrained_cfg["crop_pct"] == 0.9


def test_released_weights_tell_their_ratio_or_are_refused(tmp_path: Path) -> None:
    named, silent = tmp_path / "dynamic-vit_16_r0.5.pth", tmp_path / "mine.pth"
    says = tmp_path / "dynamic-vit_16_r0.6.safetensors"
    released_file(named)
    released_file(silent)
    released_file(says, rho="0.4")
    saved = tmp_path / "saved"
    load(NAME, checkpoint=named, keep_ratio=0.9).save_pretrained(saved)
    for model in (NAME, saved):
        assert load(model, checkpoint=named).keep_ratio == 0.5
        assert load(model, checkpoint=says).keep_ratio == 0.4
        assert load(model, checkpoint=silent, keep_ratio=0.3).keep_ratio == 0.3
        with pytest.raises(InputError, match=r"mine.pth: .*--keep-ratio"):
            load(model, checkpoint=silent)
    released_file(says, rho="0.4", stages="[0, 1, 2]")
    assert load(NAME, checkpoint=says).schedule.stages == (0, 1, 2)
    with pytest.raises(InputError, match=r"moved to \(0, 1, 2\)"):
        load(saved, checkpoint=says)


def test_another_image_size() -> None:
    model = load(NAME, pretrained=False)
    assert set_image_size(model, None) == (32, 32)
    for size, expected in ((64, (64, 64)), ((32, 48), (32, 48))):
        assert set_image_size(model, size) == expected
        assert model(torch.randn(2, 3, *expected)).shape == (2, 1000)
    with pytest.raises(InputError, match="32x48"):
        model(torch.randn(2, 3, 32, 32))
    backbone = dense()
    assert set_image_size(backbone, 64) == (64, 64)
    assert backbone(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    for wrong in (65, 0, -16, (64, 65)):
        with pytest.raises(InputError, match="16x16"):
            set_image_size(model, wrong)
    assert set_image_size(model, None) == (32, 48)


def test_a_size_that_the_backbone_pads() -> None:
    model = sparsify(
        timm.create_model(NAME, dynamic_img_size=True, dynamic_img_pad=True), method="dynamicvit"
    )
    assert set_image_size(model, (50, 70)) == (50, 70)
    assert model.forward_pruned(torch.randn(1, 3, 50, 70)).grid == (4, 5)
    strict = sparsify(timm.create_model(NAME, dynamic_img_pad=True), method="dynamicvit")
    with pytest.raises(InputError, match="16x16"):
        set_image_size(strict, (50, 70))


def test_dropped_paths_are_those_of_timm() -> None:
    model = load(NAME, pretrained=False)
    expected = timm.create_model(NAME, drop_path_rate=0.3)
    set_drop_path(model, 0.3)

    def rates(backbone: nn.Module) -> list[float]:
        return [
            getattr(path, "drop_prob", 0.0)
            for block in backbone.blocks
            for path in (block.drop_path1, block.drop_path2)
        ]

    assert rates(model.backbone) == pytest.approx(rates(expected))
    set_drop_path(model, 0.0)
    assert rates(model.backbone) == [0.0] * 8


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("loader", [load, load_dense])
def test_unknown_names_are_told_what_there_is(loader: Callable[[str], nn.Module]) -> None:
    for name in ("deit_tny_patch16_224", "deit-s-07", "xyzzy"):
        with pytest.raises(InputError, match=rf"'{name}'.*timm.list_models.* deit-s-0\.7, "):
            loader(name)
    with pytest.raises(InputError, match=r"'fb_in1' of deit_tiny_.*deit_tiny_patch16_224.fb_in1k"):
        loader("deit_tiny_patch16_224.fb_in1")


@pytest.mark.parametrize(
    "name", ["./nothing", "/no/such/folder", "a/b/c", "runs/last.pth", "best.safetensors"]
)
def test_absent_paths(name: str) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        load(name)


def test_a_name_on_the_hub_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def no_network(repo_id: str, filename: str, **kwargs: object) -> str:
        requested.append(repo_id)
        raise OSError("no network")

    monkeypatch.setattr("dynamicvit.core.hub.hf_hub_download", no_network)
    for name in ("someone/a-model", "hf-hub:someone/a-model"):
        with pytest.raises(InputError, match=r"someone/a-model.*\(no network\)"):
            load(name)
    assert requested == ["someone/a-model"] * 2


def test_a_hub_that_cannot_be_reached_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.undo()
    monkeypatch.setattr(connection, "getproxies", dict)
    monkeypatch.setattr(connection.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    for asked in (lambda: load("nosuch/name"), lambda: load(NAME)):
        began = time.monotonic()
        with pytest.raises(InputError, match=f"127.0.0.1:{port} can't be reached"):
            asked()
        assert time.monotonic() - began < 10  # the Hub's client tries for longer than 20 s
    assert not connection.constants.HF_HUB_OFFLINE, "as it was"


def test_a_server_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(connection, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(connection.constants, "ENDPOINT", url)
        with connection.hub_if_reachable() as problem:
            assert problem is None


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("deit_tiny_patch16_244", "deit_tiny_patch16_224"), ("deit-s-07", "deit-s-0.7")],
)
def test_a_mistyped_name_is_answered_with_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"did you mean {meant}\\?"):
        load(typed)


def test_an_unfinished_run_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "dense").mkdir()
    for part, total in ((tmp_path / "dense", 30), (tmp_path, 1200)):
        (part / "checkpoint.pt").touch()
        steps = ({"step": step, "steps": total} for step in range(6))
        (part / "log.jsonl").write_text("".join(f"{json.dumps(step)}\n" for step in steps))
        with pytest.raises(InputError, match=f"unfinished run.* step 6 of {total:,}") as error:
            load(tmp_path)
        assert f"-o {tmp_path}" in str(error.value)
        assert ("dense model" in str(error.value)) == (part != tmp_path)


def test_a_run_gives_the_dense_model_it_was_made_from(tmp_path: Path) -> None:
    original = dense()
    DynamicViT(original, DENSE, []).save_pretrained(tmp_path / "run" / "dense")
    sparsify(dense(), keep_ratio=0.5, stages=[1, 3], method="dynamicvit").save_pretrained(
        tmp_path / "run"
    )
    images = torch.randn(2, 3, 32, 32)
    for folder in (tmp_path / "run", tmp_path / "run" / "dense"):
        torch.testing.assert_close(load_dense(NAME, folder)(images), original(images))


def test_a_download_that_fails_says_what_else_works() -> None:
    for loader, random in ((load, True), (load_dense, False)):
        with pytest.raises(InputError, match=r"not known.*--checkpoint FILE") as error:
            loader(NAME)
        assert ("--no-pretrained" in str(error.value)) == random
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------ dense networks


def test_a_dense_network_of_any_family_has_the_classes_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    for name in ("test_resnet", "test_convnext", "test_efficientnet"):  # fc, head.fc, classifier
        original = timm.create_model(name, num_classes=6).eval()
        path = tmp_path / f"{name}.safetensors"
        save_file(original.state_dict(), path)
        teacher, images = load_dense(name, path), torch.randn(2, 3, 64, 64)
        assert not teacher.training
        assert torch.equal(teacher(images), original(images))
    with pytest.raises(InputError, match=r"test_resnet.safetensors: does not fit test_vit"):
        load_dense("test_vit", tmp_path / "test_resnet.safetensors")


def test_a_model_that_drops_tokens_is_not_dense(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    sparsify(dense(), method="dynamicvit").save_pretrained(saved)
    for name, told in (
        (f"dynamicvit_{NAME}", rf"drops tokens.* {NAME}$"),
        ("deit-s-0.7", "drops tokens.* deit_small_patch16_224$"),
        (str(saved), "saved is not a folder of a transformers model"),
        (str(tmp_path / "nowhere"), "nowhere: no such file or folder"),
    ):
        with pytest.raises(InputError, match=told):
            load_dense(name)


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_a_classifier_of_transformers_is_taken_if_it_is_dense(tmp_path: Path) -> None:
    family = BY_NAME["hf_vit"]
    original, images = family.backbone(), family.images()
    original.save_pretrained(tmp_path / "dense")
    teacher = load_dense(str(tmp_path / "dense"))
    torch.testing.assert_close(teacher(images), family.dense(original, images))
    assert teacher.num_classes == NUM_CLASSES
    with pytest.raises(InputError, match=r"x\.pth"):
        load_dense(str(tmp_path / "dense"), "x.pth")
    sparsify(original, method="dynamicvit").save_pretrained(tmp_path / "sparse")
    with pytest.raises(InputError, match="sparse drops tokens"):
        load_dense(str(tmp_path / "sparse"))


# ------------------------------------------------------------------ checkpoints that don't fit


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "deep.pth"
    torch.save(timm.create_model(NAME, depth=6).state_dict(), path)
    with pytest.raises(InputError, match=r"deep.pth: .*unexpected blocks.4.norm1.weight"):
        load(NAME, checkpoint=path)
    torch.save(timm.create_model(NAME, embed_dim=32).state_dict(), path)
    with pytest.raises(InputError, match=r"cls_token \(1, 1, 32\) instead of \(1, 1, 16\)"):
        load_dense(NAME, path)
    torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"missing cls_token.*unexpected conv.weight"):
        load(NAME, checkpoint=path)


def refused(
    checkpoint: dict, path: Path, name: str | Path = NAME, dense: bool = False, **given: Any
) -> str:
    """The error of a checkpoint that does not fit."""
    torch.save(checkpoint, path)
    with pytest.raises(InputError) as error:
        load_dense(str(name), path) if dense else load(name, checkpoint=path, keep_ratio=1, **given)
    message = str(error.value)
    assert message.startswith(f"{path}: does not fit {name}: ")
    assert "\n" not in message
    assert len(message) < 600 + len(str(path)) + len(str(name))
    return message


def of_the_paper(shapes: dict, pruned: bool = True) -> dict[str, torch.Tensor]:
    names = [name for name in shapes if pruned or not name.startswith("score_predictor")]
    return {name: torch.zeros(()).expand(shapes[name]) for name in names}


def test_a_checkpoint_of_another_size_names_the_network_it_fits(tmp_path: Path) -> None:
    path, fits = tmp_path / "other.pth", "deit_tiny_patch16_224, for images of 224 px"
    tiny = deit_shapes(192, depth=12, mlp_ratio=4, side=14, patch=16)
    assert refused(of_the_paper(tiny, pruned=False), path, dense=True).endswith(fits)
    assert refused(of_the_paper(tiny), path, "lvvit_s").endswith(fits)


@pytest.mark.parametrize(
    ("name", "side", "fits"),
    [
        ("lvvit_t", 24, "lvvit_t, for images of 384 px"),  # which timm would build for 224 px
        ("lvvit_s", 24, "lvvit_s.token_labeling_in1k_384, for images of 384 px"),
        ("lvvit_s.token_labeling_in1k_384", 14, "lvvit_s, for images of 224 px"),
    ],
)
def test_a_checkpoint_for_another_image_size_names_the_weights_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, side: int, fits: str
) -> None:
    monkeypatch.undo()
    build = timm.create_model

    def on_meta(*args: object, **kwargs: object) -> nn.Module:
        with torch.device("meta"):
            return build(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", on_meta)
    width, depth = (240, 12) if name == "lvvit_t" else (384, 16)
    shapes = lvvit_shapes(width, depth, side=side, patch=16, stem=64)
    message = refused(of_the_paper(shapes, pruned=False), tmp_path / "other.pth", name, dense=True)
    assert f"pos_embed (1, {side**2 + 1}, {width}) instead of" in message
    assert message.endswith(fits)


def test_missing_weights_are_listed_under_the_files_own_names(tmp_path: Path) -> None:
    path, state = tmp_path / "part.pth", released_file(tmp_path / "released.pth")
    state["norm.w"] = state.pop("norm.weight")
    assert refused(state, path).endswith("missing norm.weight; unexpected norm.w")
    ours = load("dynamicvit_" + NAME, pretrained=False).state_dict()
    del ours["backbone.norm.bias"]
    assert refused(ours, path, policy="merged").endswith("missing backbone.norm.bias")


def test_a_checkpoint_without_classes(tmp_path: Path) -> None:
    state = dense().state_dict() | {"head.weight": torch.zeros(0, WIDTH)}
    torch.save(state, tmp_path / "none.pth")
    with pytest.raises(InputError, match=r"none.pth: head.weight .*\(0, 16\)"):
        load(NAME, checkpoint=tmp_path / "none.pth")


def test_a_model_that_cannot_be_sparsified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(UnsupportedBackboneError, match="ResNet is not supported"):
        load("resnet10t", pretrained=False)
