"""The nine released ConvNeXts and Swins, on stand-ins with their exact names and shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dynamicvit
from dynamicvit import DynamicViT, InputError, count_macs
from dynamicvit.backbones.timm_config import describe, rebuild
from dynamicvit.checkpoints.released import RELEASES, Release, recognize
from dynamicvit.checkpoints.released.zoo import HIERARCHICAL, Architecture
from released_state import (
    Shapes,
    convnext_shapes,
    filled,
    meta,
    swin_shapes,
    these_or_all,
)

OF_MAPS = {n: release for n, release in RELEASES.items() if release.architecture in HIERARCHICAL}
one_of_each_kind_or_all = these_or_all(OF_MAPS, ("convnext-t-0.7", "swin-s-0.7"))

#: Of each network: depths, widths of the first stage, heads of the first, stages of the modules.
SIZES = {
    "ConvNeXt-T": ((3, 3, 9, 3), 96, 0, (1, 2, 3)),
    "ConvNeXt-S": ((3, 3, 27, 3), 96, 0, (3, 6, 9)),
    "ConvNeXt-B": ((3, 3, 27, 3), 128, 0, (3, 6, 9)),
    "Swin-T": ((2, 2, 6, 2), 96, 3, (1, 2, 3)),
    "Swin-S": ((2, 2, 18, 2), 96, 3, (2, 4, 6)),
    "Swin-B": ((2, 2, 18, 2), 128, 4, (2, 4, 6)),
}
#: Published, millions of parameters of the dense network.
DENSE = {
    "ConvNeXt-T": 28.59,
    "ConvNeXt-S": 50.22,
    "ConvNeXt-B": 88.59,
    "Swin-T": 28.29,
    "Swin-S": 49.61,
    "Swin-B": 87.77,
}


def map_shapes(architecture: Architecture) -> Shapes:
    """Those of the released file."""
    depths, width, heads, stages = SIZES[architecture.name]
    if architecture.layout == "ConvNeXt":
        return convnext_shapes(depths, width, stages[0], 1000)
    return swin_shapes(depths, width, heads, stages[0], 1000)


def small(layout: str) -> dict[str, Tensor]:
    """A small one with random weights."""
    depths = (1, 1, 5, 1)
    if layout == "ConvNeXt":
        return filled(convnext_shapes(depths, 8, 1, 5))
    return filled(swin_shapes(depths, 8, 1, 1, 5))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks start from whatever is in memory: large ones take seconds to draw."""
    monkeypatch.setattr("timm.layers.weight_init._trunc_normal_", lambda tensor, *rest: tensor)


@one_of_each_kind_or_all
def test_a_stand_in_is_what_the_table_says(release: Release) -> None:
    state = meta(map_shapes(release.architecture))
    found = recognize({"model": state}, keep_ratio=release.keep_ratio)
    name = release.architecture.name
    assert found.shapes.architecture == release.architecture
    with torch.device("meta"):
        model = found.build()
    assert model.schedule.stages == SIZES[name][3]
    assert model.keep_ratio == release.keep_ratio
    assert model.policy == "cheap"
    kept = {0.7: (137, 97, 58), 0.9: (176, 137, 98)}  # 97, for 0.7 - 0.2 is less than a half
    assert model.schedule.kept(196) == kept[release.keep_ratio]
    count = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert count / 1e6 == pytest.approx(DENSE[name], abs=0.005)
    width = model.bound.width
    cheap = (model.depth - SIZES[name][3][0]) * (
        width**2 + (4 if release.architecture.layout == "ConvNeXt" else 3) * width
    )
    predictors = {384: 241_250, 512: 428_162}[width]
    added = sum(parameter.numel() for parameter in model.predictors.parameters())
    assert added == cheap + 3 * predictors
    assert_macs_are_the_published_ones(model, release)


def normed_values(model: DynamicViT) -> int:
    """How many values the norms of a model give for one image."""
    values: list[int] = []
    for module in model.modules():
        if "Norm" in type(module).__name__:
            module.register_forward_hook(lambda *call: values.append(call[2].numel()))
    model.eval().warns_untrained = False
    with torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    return sum(values)


def assert_macs_are_the_published_ones(model: DynamicViT, release: Release) -> None:
    """To the digit, with what the released modules compute anew for each position, the global half.

    The counter of Swin's authors counts norms too, one for each value.
    """
    width, counted = model.bound.width, count_macs(model)
    released = counted + 3 * (196 - 1) * (width // 2) ** 2
    norms = normed_values(model) if release.architecture.layout == "Swin" else 0
    assert f"{(released + norms) / 1e9:.1f}" == f"{release.gmacs:.1f}"
    blocks = (*model.schedule.stages, model.depth)
    spared = sum(
        (196 - kept) * (end - begin)
        for kept, begin, end in zip(model.schedule.kept(196), blocks[:-1], blocks[1:], strict=True)
    )
    modules = 3 * 196 * (13 * width**2 // 8 + width // 2)
    assert released == count_macs(model.backbone) - 7 * width**2 * spared + modules


@pytest.mark.parametrize("name", ["convnext-t-0.7", "swin-t-0.7"])
def test_a_stand_in_can_be_saved_and_built_again(name: str) -> None:
    release = RELEASES[name]
    with torch.device("meta"):
        state = meta(map_shapes(release.architecture))
        backbone = recognize(state, release.keep_ratio).build().backbone
        again = rebuild(json.loads(json.dumps(describe(backbone))))
    assert [n for n, _ in again.named_modules()] == [n for n, _ in backbone.named_modules()]
    assert again.pretrained_cfg["crop_pct"] == 224 / 256


@pytest.mark.parametrize("layout", ["ConvNeXt", "Swin"])
def test_a_file_is_recognized_saved_and_loaded(layout: str, tmp_path: Path) -> None:
    """Every tensor gets to its place; what the file derives is left out."""
    state, file = small(layout), tmp_path / "small_r0.7.pth"
    torch.save({"model": state}, file)
    with pytest.raises(InputError, match="--keep-ratio"):
        dynamicvit.load(file)
    model = dynamicvit.load(file, keep_ratio=0.8)
    assert model.keep_ratio == 0.8
    assert model.schedule.stages == (1, 2, 3)
    ours = model.state_dict()
    derived = [name for name in state if name.endswith(("relative_position_index", "attn_mask"))]
    assert len(ours) == len(state) - len(derived)
    front = "" if layout == "ConvNeXt" else "layers.2."
    last = state[f"{front}score_predictor.2.out_conv.4.weight"]
    assert torch.equal(ours["predictors.2.mlp.4.weight"], last.flatten(1))
    assert torch.equal(ours["backbone.head.fc.weight"], state["head.weight"])
    cheap = "stages.2.4.fast_path.1" if front == "" else "layers.2.blocks.4.fastmlp.fc1.1"
    assert torch.equal(ours["predictors.2.cheap.4.linear.weight"], state[f"{cheap}.weight"])
    model.save_pretrained(tmp_path / "saved")
    again = DynamicViT.from_pretrained(tmp_path / "saved")
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("layout", ["ConvNeXt", "Swin"])
def test_what_is_wrong_with_a_file(layout: str, tmp_path: Path) -> None:
    state = small(layout)
    kept = dict(state)
    gone = next(name for name in kept if ".3." in name and "norm" in name)
    del kept[gone]
    with pytest.raises(InputError, match=gone.replace(".", r"\.")):
        recognize(kept, keep_ratio=0.7).build()
    with pytest.raises(InputError, match=r"from block 1 .*\(2, 3, 4\)"):
        recognize(state, keep_ratio=0.7, stages=(2, 3, 4))
    with pytest.raises(InputError, match=r"0\.3 .*-0\.1"):
        recognize(state, keep_ratio=0.3).build()
    dense = {n: t for n, t in state.items() if "score" not in n and "fast" not in n}
    with pytest.raises(InputError, match="dense network"):
        recognize(dense, keep_ratio=0.7)


@pytest.mark.usefixtures("undrawn")
def test_a_checkpoint_of_another_variant_is_named(tmp_path: Path) -> None:
    names = {"ConvNeXt-T": "convnext_tiny", "Swin-T": "swin_tiny_patch4_window7_224"}
    for release in (RELEASES["convnext-t-0.7"], RELEASES["swin-t-0.7"]):
        state = {n: torch.zeros(1).expand(s) for n, s in map_shapes(release.architecture).items()}
        file = tmp_path / f"dynamicvit-{release.name}.pth"
        torch.save({"model": state}, file)
        other = "convnext_small" if "conv" in release.name else "swin_small_patch4_window7_224"
        with pytest.raises(InputError, match=f"those of {names[release.architecture.name]}"):
            dynamicvit.load(other, checkpoint=file)


@pytest.mark.usefixtures("undrawn")
def test_dense_weights_under_their_authors_names(tmp_path: Path) -> None:
    """As ConvNeXt's and Swin's authors name them."""
    for layout, name in (
        ("ConvNeXt", "convnext_tiny"),
        ("Swin", "swin_tiny_patch4_window7_224"),
    ):
        shapes = map_shapes(
            RELEASES["convnext-t-0.7" if layout == "ConvNeXt" else "swin-t-0.7"].architecture
        )
        state = {n: torch.randn(1).expand(s) for n, s in shapes.items()}
        state = {n: t for n, t in state.items() if "score" not in n and "fast" not in n}
        file = tmp_path / f"{layout}.pth"
        torch.save({"model": state}, file)
        model = dynamicvit.load(name, checkpoint=file)
        assert torch.equal(model.backbone.head.fc.weight, state["head.weight"])
