"""The table of released checkpoints, on stand-ins with their exact names and shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from dynamicvit import InputError, count_macs
from dynamicvit.backbones.timm_config import describe, rebuild
from dynamicvit.checkpoints.released import RELEASES, Release, recognize, release_of
from dynamicvit.checkpoints.released.zoo import ARCHITECTURES, VITS, Architecture
from dynamicvit.costs import costs_of
from released_state import meta, shapes_of, these_or_all

#: The others are in test_released_maps.py.
OF_VITS = {name: release for name, release in RELEASES.items() if release.architecture in VITS}
one_of_each_kind_or_all = these_or_all(OF_VITS, ("deit-s-0.7", "lvvit-m-0.7"))

#: GMACs with the prediction modules, as counted from the published networks with these modules.
COUNTED = {"deit-s-0.7": 2.965, "lvvit-s-0.5": 3.778, "lvvit-s-0.7": 4.634, "lvvit-m-0.7": 8.565}
#: Parameters of the dense networks in millions, as published.
PUBLISHED = {"DeiT-S": 22.05, "DeiT-B": 86.57, "LV-ViT-S": 26.15, "LV-ViT-M": 55.83}
#: Bytes of dynamic-vit_lv-m_r0.7.pth, from the log of a download in the authors' notebook.
LVVIT_M_BYTES = 228_568_565


@one_of_each_kind_or_all
def test_a_stand_in_is_what_the_table_says(release: Release) -> None:
    state = meta(shapes_of(release))
    found = recognize({"model": state}, keep_ratio=release.keep_ratio)
    assert found.shapes.architecture == release.architecture
    with torch.device("meta"):
        model = found.build()
    assert model.keep_ratio == pytest.approx(release.keep_ratio)
    assert model.depth == release.architecture.depth
    assert [4 * stage for stage in model.schedule.stages] == [model.depth * i for i in (1, 2, 3)]
    assert model.backbone.blocks[0].attn.num_heads == release.architecture.num_heads

    predictors = sum(parameter.numel() for parameter in model.predictors.parameters())
    dense = sum(parameter.numel() for parameter in model.parameters()) - predictors
    if release.architecture.width == 384:
        assert predictors == 723_750
    if release.architecture.name in PUBLISHED:
        assert dense / 1e6 == pytest.approx(PUBLISHED[release.architecture.name], abs=0.005)

    # Some of the published numbers leave the prediction modules out, others don't seem to.
    macs = count_macs(model)
    costs = costs_of(model, num_stages=3)
    entering = (costs.num_patches, *model.schedule.kept(costs.num_patches))
    without = macs - sum(cost(n) for cost, n in zip(costs.stages, entering, strict=False))
    assert without / 1e9 - 0.05 <= release.gmacs <= macs / 1e9 + 0.05
    if release.name in COUNTED:
        assert macs / 1e9 == pytest.approx(COUNTED[release.name], rel=0.005)

    # Saved and built again.
    with torch.device("meta"):
        backbone = model.backbone
        again = rebuild(json.loads(json.dumps(describe(backbone))))
    assert type(again) is type(backbone)
    assert [n for n, _ in again.named_modules()] == [n for n, _ in backbone.named_modules()]
    assert again.pretrained_cfg["crop_pct"] == 224 / 256
    block = again.blocks[0]
    assert block.attn.num_heads == release.architecture.num_heads
    assert getattr(block.ls1, "divisor", 1.0) == release.architecture.residual_divisor
    assert block.norm1.eps == backbone.blocks[0].norm1.eps


def test_a_stand_in_is_as_large_as_the_file() -> None:
    tensors = meta(shapes_of(RELEASES["lvvit-m-0.7"])).values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert 0 < LVVIT_M_BYTES - size < 0.001 * size  # what is over is names and zip


def test_two_releases_differ_in_their_keep_ratio_alone() -> None:
    half, more = RELEASES["lvvit-s-0.5"], RELEASES["lvvit-s-0.7"]
    assert shapes_of(half) == shapes_of(more)
    with pytest.raises(InputError, match="--keep-ratio"):
        recognize({"model": meta(shapes_of(half))})


@pytest.mark.parametrize("architecture", VITS, ids=lambda row: row.name)
def test_the_table_of_architectures_agrees_with_timm(architecture: Architecture) -> None:
    with torch.device("meta"):
        backbone = timm.create_model(architecture.model)
    assert (backbone.embed_dim, len(backbone.blocks)) == (architecture.width, architecture.depth)
    assert backbone.blocks[0].attn.num_heads == architecture.num_heads
    divisor = getattr(backbone.blocks[0].ls1, "divisor", 1.0)
    assert divisor == architecture.residual_divisor


def test_shapes_tell_architectures_apart() -> None:
    seen = {(row.layout, row.width, row.depth) for row in ARCHITECTURES}
    assert len(seen) == len(ARCHITECTURES)


def test_no_two_rows_share_a_file() -> None:
    for places in zip(*((row.url, row.mirror) for row in RELEASES.values()), strict=True):
        assert len(set(places)) == len(RELEASES)


def test_an_unknown_name_gets_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'swin-t'.* deit-256-0.7, .*swin-b-0.7$"):
        release_of("swin-t")


def test_the_page_shows_the_table() -> None:
    page = Path(__file__).parents[1] / "docs" / "released-checkpoints.md"
    shown = [line for line in page.read_text(encoding="utf-8").splitlines() if "](http" in line]
    assert [line for line in shown if line.startswith("|")] == [
        f"| `{row.name}` | {row.architecture.name} | {row.keep_ratio} | {row.top1} | {row.gmacs} "
        f"| [file]({row.url}), [mirror]({row.mirror}) |"
        for row in RELEASES.values()
    ]
