"""What is read from the authors' files, and what is refused."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dynamicvit import DynamicViT, InputError
from dynamicvit.checkpoints.released import recognize
from released_state import (
    DEPTH,
    HEADS,
    WIDTH,
    deit_shapes,
    lvvit_shapes,
    lvvit_state,
    meta,
    released_state,
)
from shared import shared


def built(*arguments: Any, **words: Any) -> DynamicViT:
    return recognize(*arguments, **words).build()


# ------------------------------------------------------------------ golden tensors


@pytest.mark.parametrize(
    ("name", "stages"), [("deit_rho07", (3, 6, 9)), ("lvvit_s_rho07", (4, 8, 12))]
)
def test_a_golden_file_tells_all_by_itself(name: str, stages: tuple[int, ...]) -> None:
    """Losses and gradients of the same files are in test_parity.py."""
    path = shared(f"golden/{name}.safetensors")
    with safe_open(path, framework="pt") as file:
        images, logits = file.get_tensor("input"), file.get_tensor("eval.logits")
    model = built(path)
    assert not model.training
    assert model.schedule.stages == stages
    assert model.keep_ratio == pytest.approx(0.7)
    with torch.no_grad():
        torch.testing.assert_close(model(images), logits, atol=1e-4, rtol=0)


# ------------------------------------------------------------------ what shapes and metadata tell


def test_shapes_tell_the_network() -> None:
    state = released_state(side=3)
    model = built(state, keep_ratio=0.5, num_heads=HEADS)
    assert model.depth == DEPTH
    assert model.schedule.stages == (1, 2, 3)
    assert model.schedule.keep_ratios == (0.5, 0.25, 0.125)
    assert model.backbone.patch_embed.img_size == (12, 12)
    assert model.backbone.patch_embed.patch_size == (4, 4)
    assert model.backbone.blocks[0].mlp.fc1.out_features == 3 * WIDTH
    assert model.backbone.blocks[0].attn.num_heads == HEADS
    assert model(torch.randn(1, 3, 12, 12)).shape == (1, 5)
    ours = model.state_dict()
    assert len(ours) == len(state)
    assert torch.equal(ours["predictors.2.mlp.4.bias"], state["score_predictor.2.out_conv.4.bias"])


def test_shapes_tell_an_lvvit() -> None:
    state = lvvit_state()
    model = built(state, keep_ratio=0.5, num_heads=HEADS, residual_divisor=3.0)
    backbone = model.backbone
    assert backbone.patch_embed.img_size == (8, 8)
    assert backbone.patch_embed.patch_size == (4, 4)
    assert backbone.patch_embed.conv1.out_channels == 6
    assert backbone.blocks[0].attn.qkv.bias is None
    assert backbone.blocks[3].ls2.divisor == 3.0
    ours = model.state_dict()
    assert len(ours) == len(state)
    assert torch.equal(ours["backbone.aux_head.weight"], state["aux_head.weight"])
    variance = "patch_embed.bn2.running_var"
    assert torch.equal(ours[f"backbone.{variance}"], state[variance])
    other = built(state, keep_ratio=0.5, num_heads=HEADS, residual_divisor=1.0)
    images = torch.randn(1, 3, 8, 8)
    assert not torch.allclose(model(images), other(images), atol=1e-3)


def test_what_a_size_outside_the_paper_leaves_open() -> None:
    model = built(released_state(width=128), keep_ratio=0.7)
    assert model.backbone.blocks[0].attn.num_heads == 2
    with pytest.raises(InputError, match=r"DeiT 16 wide.*num_heads"):
        built(released_state(), keep_ratio=0.7)
    with pytest.raises(InputError, match="num_heads must divide the width 16, got 3"):
        built(released_state(), keep_ratio=0.7, num_heads=3)
    with pytest.raises(InputError, match=r"LV-ViT 16 wide with 4.*num_heads"):
        built(lvvit_state(), keep_ratio=0.7)
    with pytest.raises(InputError, match=r"16 wide.*residual_divisor"):
        built(lvvit_state(), keep_ratio=0.7, num_heads=HEADS)
    with pytest.raises(InputError, match="residual_divisor must be positive, got 0"):
        built(lvvit_state(), keep_ratio=0.7, num_heads=HEADS, residual_divisor=0)


def test_a_deit_divides_no_residual_branches(tmp_path: Path) -> None:
    for divisor in (2.0, -1.0):
        with pytest.raises(InputError, match=rf"residual_divisor .*got {divisor}"):
            built(released_state(), 0.7, HEADS, residual_divisor=divisor)
    built(released_state(), 0.7, HEADS, residual_divisor=1.0)
    path = tmp_path / "small.safetensors"
    said = {"num_heads": "2", "rho": "0.6"}
    save_file(released_state(), path, metadata=said | {"kind": "lvvit_s"})  # not its layout
    built(path)
    save_file(released_state(), path, metadata=said | {"residual_divisor": "2"})
    with pytest.raises(InputError, match=r"residual_divisor .*got 2"):
        built(path)


def test_a_small_lvvit_says_what_it_is_a_kind_of(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    for metadata, divisor in (
        ({"kind": "lvvit_l"}, 3.0),
        ({"kind": "lvvit_l", "residual_divisor": "1.5"}, 1.5),
    ):
        save_file(lvvit_state(), path, metadata={"num_heads": "2", "rho": "0.6", **metadata})
        assert built(path).backbone.blocks[0].ls1.divisor == divisor


def test_metadata_answers_and_arguments_go_first(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    metadata = {"num_heads": "4", "rho": "0.6", "stages": "[0, 2]"}
    save_file(released_state(num_stages=2), path, metadata=metadata)
    model = built(path)
    assert model.backbone.blocks[0].attn.num_heads == 4
    assert model.schedule.stages == (0, 2)
    assert model.keep_ratio == 0.6
    told = built(path, keep_ratio=[0.9, 0.1], num_heads=2, stages=[1, 3])
    assert told.backbone.blocks[0].attn.num_heads == 2
    assert told.schedule.stages == (1, 3)
    assert told.schedule.keep_ratios == (0.9, 0.1)

    save_file(released_state(), path, metadata={"num_heads": "2", "rho": "much"})
    with pytest.raises(InputError, match="metadata has rho='much'"):
        built(path)


@pytest.mark.parametrize(
    ("name", "ratio"),
    [
        ("dynamic-vit_384_r0.7.pth", 0.7),
        ("dynamic-vit_lv-s_r0.5 (1).pth", 0.5),
        ("dynamicvit-lvvit-s-0.5.pth", 0.5),
        ("dynamic-vit_384.pth", None),
        ("my_dynamic-vit_384_r0.7.pth", None),
        ("checkpoint-0.7.pth", None),
    ],
)
def test_the_name_of_a_file_may_tell_the_ratio(
    tmp_path: Path, name: str, ratio: float | None
) -> None:
    torch.save({"model": released_state()}, tmp_path / name)
    assert built(tmp_path / name, keep_ratio=0.9, num_heads=HEADS).keep_ratio == 0.9
    if ratio is None:
        with pytest.raises(InputError, match="keep_ratio"):
            built(tmp_path / name, num_heads=HEADS)
    else:
        assert built(tmp_path / name, num_heads=HEADS).keep_ratio == ratio


def test_as_many_stages_as_prediction_modules() -> None:
    with pytest.raises(InputError, match="2 prediction modules, but 3 stages"):
        built(released_state(num_stages=2), keep_ratio=0.7, num_heads=HEADS)


def test_a_training_checkpoint_with_a_namespace(tmp_path: Path) -> None:
    state = released_state()
    arguments = argparse.Namespace(lr=1e-3, base_rate=0.7)
    torch.save({"model": state, "epoch": 29, "args": arguments}, tmp_path / "checkpoint.pth")
    model = built(str(tmp_path / "checkpoint.pth"), keep_ratio=0.7, num_heads=HEADS)
    assert torch.equal(model.state_dict()["backbone.cls_token"], state["cls_token"])


# ------------------------------------------------------------------ bad input


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "evil.pth"
    torch.save(
        {"model": released_state(), "extra": Malicious(tmp_path / "ran")},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(InputError, match=r"evil.pth: .*posix.mkdir") as error:
        built(path, keep_ratio=0.7, num_heads=HEADS)
    assert_one_line(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    if suffix == "pth":
        torch.save({"model": released_state()}, path)
    else:
        save_file(released_state(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(InputError, match=r"cut.*truncated or not") as error:
        built(path, keep_ratio=0.7, num_heads=HEADS)
    assert_one_line(error)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    for content, told in (([1, 2], "list"), ({"epoch": 3}, "'epoch' is int")):
        torch.save(content, path)
        with pytest.raises(InputError, match=told):
            built(path)
    path.write_text("hello")
    with pytest.raises(InputError, match=r"other.pth: truncated or not a checkpoint"):
        built(path)


def without(*names: str, of: Callable[[], dict] = released_state) -> dict[str, Tensor]:
    return {n: t for n, t in of().items() if not n.startswith(names)}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("score_predictor."), "is a dense network"),
        (without("score_predictor.", of=lvvit_state), "is a dense network"),
        (without("score_predictor.1."), "missing score_predictor.1.in_conv.0.weight"),
        (without("blocks.2."), r"missing blocks.2.attn.qkv.weight"),
        (without("head.", "pos_embed"), "missing pos_embed, head.weight, head.bias$"),
        (without("aux_head.", of=lvvit_state), "LV-ViT; missing aux_head.weight"),
        ({"dist_token": torch.zeros(1, 1, WIDTH)}, "DynamicViT of DeiT; unexpected dist_token$"),
        ({"blocks.9999999999.x": torch.zeros(1)}, "unexpected blocks.99999"),
        ({"pos_embed": torch.zeros(1, 1 + 6, WIDTH)}, "6 patches"),
        ({"pos_embed": torch.zeros(5, WIDTH)}, r"pos_embed .*\(5, 16\)"),
        ({"head.weight": torch.zeros(0, WIDTH)}, r"head.weight .*\(0, 16\)"),
        ({"patch_embed.proj.weight": torch.zeros(0, 3, 4, 4)}, r"proj.weight .*\(0, 3, 4, 4\)"),
        (
            {"blocks.1.attn.proj.bias": torch.zeros(1)},
            r"blocks.1.attn.proj.bias \(1,\) instead of \(16,\)",
        ),
        (
            without("score_predictor.") | {"dist_token": torch.zeros(1, 1, WIDTH)},
            "dense DeiT; unexpected dist_token; .*timm name",
        ),
        ({f"layer{i}.w": torch.zeros(1) for i in range(9)}, r"unexpected layer0[^;]*; .*timm name"),
        ({"model": {}}, "not a state dict"),
    ],
)
def test_other_architectures_are_refused(state: dict, message: str) -> None:
    if len(state) == 1 and "model" not in state:
        state = released_state() | state
    with pytest.raises(InputError, match=message) as error:
        built(state, keep_ratio=0.7, num_heads=HEADS)
    assert_one_line(error)


@pytest.mark.parametrize(
    ("shapes", "timm_name"),
    [
        (deit_shapes(384, 12, side=14, patch=16), "deit_small_patch16_224"),
        (deit_shapes(256, 12, side=14, patch=16), "deit_256_patch16_224"),
        (lvvit_shapes(512, 20, side=14, patch=16), "lvvit_m"),
        (lvvit_shapes(768, 24, side=28, patch=16), "lvvit_l"),
        (lvvit_shapes(384, 16, side=24, patch=16), "lvvit_s.token_labeling_in1k_384"),
        (deit_shapes(384, 12, side=24, patch=16), "deit_small_patch16_384"),
        (deit_shapes(192, 12, side=24, patch=16), None),  # timm would build it for 224 px
    ],
)
def test_a_dense_network_of_the_paper_is_named(shapes: dict, timm_name: str | None) -> None:
    dense = {n: t for n, t in meta(shapes).items() if not n.startswith("score_predictor.")}
    with pytest.raises(InputError, match="is a dense network") as error:
        built(dense)
    assert_one_line(error)
    named = re.findall(r"--model ([\w.]+) --checkpoint", str(error.value))
    assert named == ([timm_name] if timm_name else [])


def assert_one_line(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
