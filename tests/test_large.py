"""Larger and sharper: DeiT-B, ViT-L/16 and ViT-H/14, and images of 384 and 512 pixels."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from dynamicvit import DynamicViT, Schedule, keep_ratio_for, sparsify
from dynamicvit.budgets import RATIO_STEP
from dynamicvit.checkpoints.loading import load, set_image_size
from dynamicvit.costs import DENSE, count_macs, schedule_macs
from families import NUM_CLASSES, assert_agree, randomize

# timm's resampling of relative biases looks tables up in ways that torch warns of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*searchsorted:UserWarning"),
]

#: Name in timm and GMACs of the dense network, as the model cards of timm's DeiT III networks,
#: which have the same shapes, say them.
LARGE = {
    "deit_base_patch16_384": 55.5,
    "vit_large_patch16_224": 61.6,
    "vit_huge_patch14_224": 167.4,
}

OWN_SIZE = 224

#: One backbone for each way to know places: learned for each patch, rotary beside learned, a bias
#: for each pair; one that pools all patches by attention, and LV-ViT with its stem of convolutions.
PLACES = {
    "absolute": "deit_tiny_patch16_224",
    "rotary": "eva02_tiny_patch14_224",
    "relative": "beit_base_patch16_224",
    "pooled": "vit_base_patch16_siglip_224",
    "stem": "lvvit_t",
}
PATCH = 16
at_other_sizes = pytest.mark.parametrize(
    ("place", "side"),
    [
        *((place, 384) for place in PLACES),
        pytest.param("absolute", 512, marks=pytest.mark.extended),
    ],
)


def on_meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def small(name: str, **arguments: Any) -> nn.Module:
    """The family's network, four blocks of width 32, with patches of 16 pixels."""
    shape = {"patch_size": PATCH, "embed_dim": 32, "num_heads": 2, "depth": 4}
    if "lvvit" in name:
        shape["stem_width"] = 32  # most of its time
    backbone = timm.create_model(name, **{**shape, "num_classes": NUM_CLASSES, **arguments})
    return backbone.eval()


def trained(name: str) -> nn.Module:
    """A small network at 224 px whose weights are not those of a fresh one."""
    return randomize(small(name, img_size=OWN_SIZE)).eval()


def sparse(backbone: nn.Module, keep_ratio: float = 0.7) -> DynamicViT:
    model = sparsify(backbone, keep_ratio, method="dynamicvit")
    randomize(model.predictors, seed=1)
    return model.eval()


def images(side: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def decisions(batch: int, num_patches: int, stages: int = 3, share: float = 0.6) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    drawn = [torch.rand(batch, num_patches, generator=random) for _ in range(stages)]
    return [(row < share).float() for row in drawn]


# ---------------------------------------------------------------- larger


@pytest.mark.parametrize("name", LARGE)
def test_macs_of_large_networks(name: str) -> None:
    backbone = on_meta(name)
    with torch.device("meta"):
        model = sparsify(backbone, 0.7, method="dynamicvit")
    dense = count_macs(backbone)
    assert dense == pytest.approx(LARGE[name] * 1e9, rel=0.005)
    assert count_macs(model) < 0.67 * dense


@pytest.mark.parametrize(
    "name",
    ["deit_base_patch16_224", pytest.param("vit_huge_patch14_224", marks=pytest.mark.extended)],
)
@torch.no_grad()
def test_the_law_at_full_width(name: str) -> None:
    """Two blocks as wide as the real ones, and as many patches; depth adds nothing to the law."""
    backbone = on_meta(name, depth=2, num_classes=NUM_CLASSES, weight_init="skip")
    backbone = randomize(backbone.to_empty(device="cpu")).eval()
    model = sparsify(backbone, 0.5, stages=[1], method="dynamicvit").eval()
    picture = images(OWN_SIZE)
    num_patches = backbone.patch_embed.num_patches
    given = decisions(1, num_patches, stages=1, share=0.3)
    masked = model.forward_masked(picture, given)
    pruned = model.forward_pruned(picture, given)
    assert_agree(masked.logits, pruned.logits)
    assert 0 < pruned.kept[0].sum() < num_patches / 2
    assert masked.features.x.shape[-1] == on_meta(name).embed_dim


# ---------------------------------------------------------------- sharper


@at_other_sizes
@torch.no_grad()
def test_weights_of_224_px_at_another_size(place: str, side: int, tmp_path: Path) -> None:
    """The ways to another size agree, with timm too: at creation, afterwards, image by image."""
    name, picture = PLACES[place], images(side)
    own = trained(name)
    save_file(own.state_dict(), tmp_path / "own.safetensors")
    file = {"file": str(tmp_path / "own.safetensors"), "num_classes": NUM_CLASSES}
    created = small(name, img_size=side, pretrained=True, pretrained_cfg_overlay=file)
    expected = created(picture)

    model = sparse(created, keep_ratio=1.0)
    assert_agree(model(picture), expected)
    changed = sparse(copy.deepcopy(own), keep_ratio=1.0)
    assert set_image_size(changed, side) == (side, side)
    assert_agree(changed(picture), expected)
    if place != "relative":  # timm's Beit has no dynamic size
        dynamic = small(name, img_size=OWN_SIZE, dynamic_img_size=True)
        dynamic.load_state_dict(own.state_dict())
        assert_agree(sparse(dynamic, keep_ratio=1.0)(picture), expected)
        assert_agree(sparse(dynamic, keep_ratio=1.0)(images(OWN_SIZE)), own(images(OWN_SIZE)))


@at_other_sizes
@torch.no_grad()
def test_the_law_at_another_size(place: str, side: int) -> None:
    """With an image that keeps nothing, and with one that chooses for itself."""
    model = sparse(trained(PLACES[place]))
    set_image_size(model, side)
    rows = side // PATCH
    picture, given = images(side, batch=2), decisions(2, rows**2)
    given[2][0] = 0
    masked = model.forward_masked(picture, given)
    pruned = model.forward_pruned(picture, given)
    assert_agree(masked.logits, pruned.logits)
    assert masked.grid == pruned.grid == (rows, rows)

    own = model.forward_pruned(picture)
    kept = [int(rows**2 * 0.7**stage) for stage in (1, 2, 3)]
    assert [survived.shape for survived in own.kept] == [(2, rows**2)] * 3
    assert [survived.sum(dim=1).tolist() for survived in own.kept] == [[k, k] for k in kept]
    replay = [survived.float() for survived in own.kept]
    assert_agree(model.forward_masked(picture, replay).logits, own.logits)


@torch.no_grad()
def test_survivors_lie_where_their_pixels_are() -> None:
    """A wide image, so that rows and columns can't be taken for each other."""
    model = DynamicViT(trained(PLACES["absolute"]), Schedule((0,), (0.1,))).eval()
    height, width = set_image_size(model, (384, 512))
    picture = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    before = model.forward_pruned(picture)
    assert before.grid == (height // PATCH, width // PATCH)
    [survived] = before.kept
    pixels = survived.view(1, 1, *before.grid).float()
    pixels = nn.functional.interpolate(pixels, scale_factor=float(PATCH))
    changed = model.forward_pruned(torch.where(pixels > 0.5, picture, 9.0), [survived.float()])
    assert_agree(changed.logits, before.logits)
    moved = model.forward_pruned(torch.where(pixels > 0.5, 9.0, picture), [survived.float()])
    assert (moved.logits - before.logits).abs().max() > 0.1


@pytest.mark.parametrize(("side", "rho"), [(384, 0.7), (512, 0.5)])
def test_macs_at_another_size(side: int, rho: float) -> None:
    with torch.device("meta"):
        model = sparsify(
            timm.create_model("deit_small_patch16_224", depth=4), rho, method="dynamicvit"
        )
    set_image_size(model, side)
    assert schedule_macs(model, model.schedule) == count_macs(model)
    assert schedule_macs(model, DENSE) == count_macs(model.backbone)
    assert count_macs(model) < count_macs(model.backbone)


@pytest.mark.parametrize(
    ("name", "side"), [("deit_small_patch16_224", 384), ("vit_large_patch16_224", 512)]
)
def test_the_keep_ratio_for_a_budget_at_another_size(name: str, side: int) -> None:
    """Attention weighs more among many patches, so the same share of the cost keeps more."""
    with torch.device("meta"):
        model = sparsify(timm.create_model(name, depth=4), method="dynamicvit")
    before = keep_ratio_for(model, fraction=0.6)
    set_image_size(model, side)
    limit = 0.6 * count_macs(model.backbone)
    rho = keep_ratio_for(model, fraction=0.6)
    assert rho > before
    model.keep_ratio = rho
    assert count_macs(model) <= limit
    model.keep_ratio = rho + 10 * RATIO_STEP  # a step may be less than a patch
    assert count_macs(model) > limit


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_saved_and_loaded_again_at_another_size(place: str, tmp_path: Path) -> None:
    model, picture = sparse(trained(PLACES[place])), images(384)
    set_image_size(model, 384)
    model.save_pretrained(tmp_path)
    loaded = DynamicViT.from_pretrained(tmp_path)
    assert torch.equal(loaded(picture), model(picture))
    assert loaded.pretrained_cfg["input_size"] == (3, 384, 384)
    assert set_image_size(loaded, None) == (384, 384)


# ---------------------------------------------------------------- as it is typed


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    sparse(trained(PLACES["absolute"])).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, colors in enumerate(images(48, batch=2).clamp(0, 1).mul(255).byte()):
        Image.fromarray(colors.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    return folder


def test_commands_at_another_size(
    command: Callable[..., int],
    saved: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = ("--model", saved, "--image-size", 384)
    report = tmp_path / "report.json"
    assert command("eval", photos, *size, "--compare-dense", "--workers", 0, "--json", report) == 0
    found = json.loads(report.read_text())
    assert found["image_size"] == [384, 384]
    assert found["images"] == 2

    quick = ("--batch-size", 1, "--precision", "fp32", "--samples", 2, "--threads", 1)
    assert command("bench", *size, *quick, "--json", report) == 0
    found = json.loads(report.read_text())
    assert found["image_size"] == [384, 384]
    model = load(saved)
    set_image_size(model, 384)
    assert found["pruned_macs"] == count_macs(model)
    assert found["dense_macs"] == count_macs(model.backbone)

    capsys.readouterr()
    assert command("visualize", photos / "0.png", *size, "-o", tmp_path / "pictures") == 0
    patches = model.backbone.patch_embed.num_patches
    kept = ", ".join(map(str, model.schedule.kept(patches)))
    assert f"kept {kept} of {patches} patches" in capsys.readouterr().out
