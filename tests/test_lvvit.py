"""LV-ViT as a timm model: its names and weights, its sizes, its two classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit import DynamicViT, InputError, UnsupportedBackboneError, sparsify
from dynamicvit.backbones.networks import LVViT
from dynamicvit.checkpoints.loading import set_image_size
from families import BY_NAME, DEIT, NUM_CLASSES, assert_agree, randomize
from released_state import lvvit_shapes

SMALL: dict[str, Any] = {
    "embed_dim": 24,
    "num_heads": 3,
    "depth": 4,
    "stem_width": 8,
    "patch_size": 8,
    "img_size": (32, 40),
    "num_classes": NUM_CLASSES,
}


def small(name: str = "lvvit_s", seed: int = 0, **kwargs: Any) -> LVViT:
    return randomize(timm.create_model(name, **{**SMALL, **kwargs}), seed).eval()


def images(height: int = 32, width: int = 40, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- what it computes


def by_hand(state: dict[str, Tensor], x: Tensor, heads: int, divisor: float) -> Tensor:
    """The network in plain functions, from the original parameter names."""

    def affine(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    for i, (stride, padding) in enumerate([(2, 3), (1, 1), (1, 1)], start=1):
        x = F.conv2d(x, state[f"patch_embed.conv{i}.weight"], None, stride, padding)
        parts = ("running_mean", "running_var", "weight", "bias")
        x = F.batch_norm(x, *(state[f"patch_embed.bn{i}.{part}"] for part in parts)).relu()
    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    x = F.conv2d(x, kernel, bias, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    batch, _, width = x.shape
    x = torch.cat([state["cls_token"].expand(batch, -1, -1), x], dim=1) + state["pos_embed"]
    for depth in range(SMALL["depth"]):
        name = f"blocks.{depth}"
        qkv = affine(f"{name}.attn.qkv", norm(f"{name}.norm1", x))
        query, key, value = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)
        )
        scores = query @ key.mT * (width // heads) ** -0.5
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        x = x + affine(f"{name}.attn.proj", mixed) / divisor
        hidden = F.gelu(affine(f"{name}.mlp.fc1", norm(f"{name}.norm2", x)))
        x = x + affine(f"{name}.mlp.fc2", hidden) / divisor
    x = norm("norm", x)
    return affine("head", x[:, 0]) + 0.5 * affine("aux_head", x[:, 1:]).max(dim=1).values


@pytest.mark.parametrize(("name", "divisor"), [("lvvit_t", 1), ("lvvit_s", 2), ("lvvit_l", 3)])
@torch.no_grad()
def test_it_is_the_published_network(name: str, divisor: float) -> None:
    model = small(name)
    expected = by_hand(model.state_dict(), images(), SMALL["num_heads"], divisor)
    assert_agree(model(images()), expected)
    # Too small a difference for the logits to show.
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


@pytest.mark.parametrize(
    ("name", "millions", "size"),
    [
        ("lvvit_t", 8.53, 224),
        ("lvvit_s", 26.15, 224),
        ("lvvit_m", 55.83, 224),
        ("lvvit_l", 150.5, 448),
    ],
)
def test_parameters_and_size_are_the_published(name: str, millions: float, size: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=1e-3)
    assert model.patch_embed.img_size == (size, size)
    assert model.pretrained_cfg["input_size"] == (3, size, size)
    assert timm.is_model(f"dynamicvit_{name}")


@torch.no_grad()
def test_training_gives_one_tensor_by_the_same_rule() -> None:
    model = small().train()
    model.patch_embed.eval()  # batch statistics aside
    assert torch.equal(model(images()), model.eval()(images()))


# ---------------------------------------------------------------- weights


def test_parameters_have_the_original_names_and_shapes() -> None:
    expected = lvvit_shapes(24, side=4, patch=8, classes=NUM_CLASSES, stem=8)
    shapes = small(img_size=32).state_dict()
    assert {name: tuple(value.shape) for name, value in shapes.items()} == {
        name: shape for name, shape in expected.items() if not name.startswith("score_predictor")
    }


@pytest.fixture
def pretrained(tmp_path: Path) -> dict[str, Any]:
    """timm's arguments for an original file of a network for 32x32 pixels."""
    path = tmp_path / "lvvit_s.pth.tar"
    torch.save(small(seed=3, img_size=32).state_dict(), path)
    source = {"file": str(path), "num_classes": NUM_CLASSES, "input_size": (3, 32, 32)}
    return {"pretrained": True, "pretrained_cfg_overlay": source}


@torch.no_grad()
def test_an_original_file_is_timms_pretrained_weights(pretrained: dict[str, Any]) -> None:
    loaded = timm.create_model("lvvit_s", **pretrained, **{**SMALL, "img_size": 32}).eval()
    source = small(seed=3, img_size=32)
    assert torch.equal(loaded(images(32, 32)), source(images(32, 32)))


@torch.no_grad()
def test_another_size_of_pretrained_weights_resamples_positions(pretrained: dict[str, Any]) -> None:
    loaded = timm.create_model("lvvit_s", **pretrained, **SMALL).eval()
    resized = small(seed=3, img_size=32)
    resized.set_input_size(img_size=(32, 40))
    assert_agree(loaded(images()), resized(images()))


def test_other_classes_or_channels_leave_the_rest_alone(pretrained: dict[str, Any]) -> None:
    arguments = {**SMALL, "img_size": 32, "num_classes": 3, "in_chans": 1}
    loaded = timm.create_model("lvvit_s", **pretrained, **arguments)
    assert loaded.head.out_features == loaded.aux_head.out_features == 3
    source, state = small(seed=3, img_size=32).state_dict(), loaded.state_dict()
    first = "patch_embed.conv1.weight"
    assert_agree(state[first], source[first].sum(dim=1, keepdim=True))
    changed = (first, "head.weight", "head.bias", "aux_head.weight", "aux_head.bias")
    assert all(torch.equal(state[name], source[name]) for name in source if name not in changed)


def test_each_original_file_has_its_name_and_its_size() -> None:
    found = {}
    for name in timm.list_models("lvvit_*", pretrained=True):
        cfg = timm.get_pretrained_cfg(name)
        found[cfg.url.rpartition("/")[2]] = cfg.input_size[1]
    assert found == {
        "lvvit_t.pth": 224,
        "lvvit_s-26M-224-83.3.pth.tar": 224,
        "lvvit_s-26M-384-84.4.pth.tar": 384,
        "lvvit_m-56M-224-84.0.pth.tar": 224,
        "lvvit_m-56M-384-85.4.pth.tar": 384,
        "lvvit_l-150M-448-86.2.pth.tar": 448,
    }
    with torch.device("meta"):
        large = timm.create_model("lvvit_s.token_labeling_in1k_384")
    assert large.patch_embed.grid_size == (24, 24)


# ---------------------------------------------------------------- image sizes


@torch.no_grad()
def test_one_size_unless_told_otherwise() -> None:
    model = small()
    assert model.forward_features(images()).shape == (2, 1 + 4 * 5, 24)
    with pytest.raises(AssertionError, match=r"32x48, .* 32x40"):
        model(images(32, 48))
    with pytest.raises(InputError, match=r"32x48, .* 32x40"):
        sparsify(model, method="dynamicvit").eval()(images(32, 48))


@torch.no_grad()
def test_sizes_that_vary() -> None:
    model = small(dynamic_img_size=True)
    assert_agree(model(images()), small()(images()))
    assert model.forward_features(images(48, 32)).shape == (2, 1 + 6 * 4, 24)
    with pytest.raises(AssertionError, match=r"32x44 .* 8x8"):
        model(images(32, 44))
    padded = small(dynamic_img_size=True, dynamic_img_pad=True)
    expected = model(F.pad(images(32, 44), (0, 4)))
    assert_agree(padded(images(32, 44)), expected)


@torch.no_grad()
def test_a_size_that_is_set_later_interpolates_positions() -> None:
    model = small()
    varying = small(dynamic_img_size=True)
    assert set_image_size(sparsify(model, method="dynamicvit"), (48, 32)) == (48, 32)
    assert model.pos_embed.shape == (1, 1 + 6 * 4, 24)
    assert_agree(model(images(48, 32)), varying(images(48, 32)))


@torch.no_grad()
def test_patches_that_are_not_square() -> None:
    model = small(patch_size=(8, 10))
    assert model.forward_features(images()).shape == (2, 1 + 4 * 4, 24)
    assert sparsify(model, 0.5, method="dynamicvit").eval().forward_pruned(images()).grid == (4, 4)


def test_sizes_that_can_not_be() -> None:
    with pytest.raises(InputError, match=r"even .*patch_size=5"):
        small(patch_size=5)
    with pytest.raises(InputError, match=r"img_size=\(32, 44\)"):
        small(img_size=(32, 44))
    model = small()
    with pytest.raises(InputError, match=r"img_size=\(30, 30\)"):
        model.set_input_size(img_size=30)
    with pytest.raises(InputError, match="patch_size=16"):
        model.set_input_size(patch_size=16)
    assert model.patch_embed.img_size == (32, 40)


# ---------------------------------------------------------------- as timm's models behave


@torch.no_grad()
def test_fresh_classifiers() -> None:
    model = small().to(torch.float64)
    model.reset_classifier(3)
    assert model.num_classes == model.head.out_features == model.aux_head.out_features == 3
    assert model(images().double()).shape == (2, 3)
    model.reset_classifier(0)
    features = model(images().double())
    assert torch.equal(features, model.forward_features(images().double())[:, 0])
    model.reset_classifier(0, "")
    assert model(images().double()).shape == (2, 21, 24)
    for classes, pool in ((3, ""), (3, "avg"), (0, "avg")):
        with pytest.raises(InputError, match=f"global_pool='{pool}'"):
            model.reset_classifier(classes, pool)
    with pytest.raises(InputError, match="global_pool='map'"):
        small(global_pool="map")
    with pytest.raises(InputError, match=r"global_pool='avg' .*token"):
        sparsify(small(), method="dynamicvit").reset_classifier(3, "avg")


def test_timms_features_only() -> None:
    maps = timm.create_model("lvvit_s", features_only=True, out_indices=(0, 2), **SMALL)
    assert [tuple(x.shape) for x in maps(images())] == [(2, 24, 4, 5)] * 2


@pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")
@pytest.mark.parametrize("arguments", [{}, {"dynamic_img_size": True, "dynamic_img_pad": True}])
@torch.no_grad()
def test_scripting(arguments: dict[str, Any]) -> None:
    model = small(**arguments)
    assert_agree(torch.jit.script(model)(images()), model(images()))


def test_arguments_of_timms_own() -> None:
    torch.manual_seed(0)
    drawn = timm.create_model("lvvit_s", **SMALL)
    assert drawn.aux_head.bias.abs().max() == 0
    torch.manual_seed(0)
    skipped = timm.create_model("lvvit_s", weight_init="skip", **SMALL)
    assert skipped.aux_head.bias.abs().max() > 0, "as nn.Linear draws it"
    dropping = small(patch_drop_rate=0.5).train()
    assert dropping.forward_features(images()).shape == (2, 1 + 10, 24)
    assert dropping(images()).shape == (2, NUM_CLASSES)
    with pytest.raises(UnsupportedBackboneError, match="dropped twice"):
        sparsify(dropping, method="dynamicvit")


# ---------------------------------------------------------------- as a DynamicViT


@torch.no_grad()
def test_the_losses_see_the_class_token_and_the_patches_by_themselves() -> None:
    family = BY_NAME["lvvit"]
    model, batch = family.sparse(), family.images()
    decisions = family.decisions(share=0.5)
    masked = model.forward_masked(batch, decisions)
    dense = model.forward_dense(batch)
    head, aux = model.backbone.head, model.backbone.aux_head
    for output in (masked, dense):
        assert torch.equal(output.loss_logits, head(output.features.x[:, 0]))
        assert torch.equal(output.patch_logits, aux(output.features.patches))
    kept = masked.features.decision > 0.5
    for row, (patches, kept_here) in enumerate(zip(masked.patch_logits, kept, strict=True)):
        best = patches[kept_here].max(dim=0).values
        assert_agree(masked.logits[row], masked.loss_logits[row] + 0.5 * best)
    assert (dense.logits - dense.loss_logits).abs().min() > 0

    nothing = [torch.zeros_like(decision) for decision in decisions]
    emptied = model.forward_masked(batch, nothing)
    assert torch.equal(emptied.logits, emptied.loss_logits)
    assert_agree(model.forward_pruned(batch, nothing).logits, emptied.logits)


@torch.no_grad()
def test_other_families_train_their_logits() -> None:
    model, batch = DEIT.sparse(), DEIT.images()
    for output in (model.forward_masked(batch), model.forward_dense(batch)):
        assert output.loss_logits is output.logits
        assert output.patch_logits is None


@torch.no_grad()
def test_batch_norms_keep_their_statistics_while_the_rest_trains() -> None:
    model = sparsify(small().train(), method="dynamicvit")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    model(images())  # in train() as it was made
    model.eval().train()(images())
    assert model.backbone.blocks.training
    assert len(before) == 3
    for norm, mean in zip(norms, before, strict=True):
        assert torch.equal(norm.running_mean, mean)
    alone = model.first_blocks(images()[:1]).x
    assert_agree(model.first_blocks(images()).x[:1], alone)


@pytest.mark.parametrize("arguments", [{}, {"in_chans": 1, "residual_divisor": 1.5}])
@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path, arguments: dict[str, Any]) -> None:
    model = sparsify(small(**arguments), keep_ratio=0.6, method="dynamicvit").eval()
    model.save_pretrained(tmp_path)
    loaded = DynamicViT.from_pretrained(tmp_path)
    batch = images(channels=model.in_chans)
    assert loaded.backbone.blocks[0].ls1.divisor == arguments.get("residual_divisor", 2.0)
    assert torch.equal(loaded(batch), model(batch))
    assert tuple(loaded.pretrained_cfg["input_size"]) == tuple(batch.shape[1:])
