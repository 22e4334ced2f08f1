"""Clips: image networks that become video networks, transformers' own, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit import (
    DynamicViT,
    InputError,
    UnsupportedBackboneError,
    count_macs,
    evaluate,
    inflate,
    load,
    schedule_macs,
    segmenter,
    sparsify,
    visualize,
)
from dynamicvit.backbones import backbone_for
from dynamicvit.backbones.inflated import IMAGE_FAMILIES, InflatedViT, sinusoids
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.data import Batch
from dynamicvit.methods import METHODS
from families import (
    BY_NAME,
    DEIT,
    FAMILIES,
    HF_VIDEO_FAMILIES,
    INFLATED_FAMILIES,
    KINDS,
    NUM_CLASSES,
    Family,
    HFFamily,
    assert_agree,
    or_all,
)

needs_transformers = pytest.mark.skipif(
    not HF_VIDEO_FAMILIES, reason="transformers is not installed"
)
each_inflated = pytest.mark.parametrize("family", INFLATED_FAMILIES, ids=lambda family: family.name)
each_hf = pytest.mark.parametrize("family", HF_VIDEO_FAMILIES, ids=lambda family: family.name)
CLIPS = BY_NAME["inflated_augreg"]

SMALL = ["--model", "vit_tiny_patch16_224", "--frames", "4", "--image-size", "32"]


# ---------------------------------------------------------------- inflated networks


@or_all(KINDS, [f for f in FAMILIES if f.frames is None and not isinstance(f, HFFamily)])
@torch.no_grad()
def test_a_still_clip_is_its_image(family: Family) -> None:
    """One tubelet, averaged, at time zero: the image network's answer, for every family of timm."""
    image_network, images = family.backbone(depth=2), family.images()
    network = inflate(image_network, frames=2, tubelet=2, weights="average")
    still = images[:, None].expand(-1, 2, -1, -1, -1)
    assert type(backbone_for(network.vit)) in IMAGE_FAMILIES
    assert_agree(network(still), image_network(images))
    central = inflate(image_network, frames=3, tubelet=3)
    others = torch.stack([torch.randn_like(images), images, torch.randn_like(images)], dim=1)
    assert_agree(central(others), image_network(images))  # only the middle frame is seen


@torch.no_grad()
def test_the_embedding_is_a_convolution_over_tubelets() -> None:
    network, clips = CLIPS.backbone(), CLIPS.images()
    proj = network.vit.patch_embed.proj
    weight = proj.weight.unflatten(1, (2, 3)).transpose(1, 2)  # (C, channels, tubelet, 16, 16)
    right = F.conv3d(clips.transpose(1, 2), weight, proj.bias, stride=(2, 16, 16))
    right = right.flatten(3).permute(0, 2, 3, 1)  # (B, times, patches, C)
    right = right + network.vit.pos_embed[:, None, 1:] + network.time_embed
    tokens = backbone_for(network).embed(clips)
    assert tokens.grid == (2, 2, 3)
    assert_agree(tokens.patches, right.flatten(1, 2))
    first = network.vit.cls_token[:, 0] + network.vit.pos_embed[:, 0]
    assert_agree(tokens.x[:, 0], first.expand(2, -1))


@torch.no_grad()
def test_attention_is_joint_and_the_blocks_are_timms() -> None:
    network, clips = CLIPS.backbone(), CLIPS.images()
    x = network.vit.blocks(backbone_for(network).embed(clips).x)
    assert_agree(network(clips), network.vit.forward_head(network.vit.norm(x)))


@each_inflated
@torch.no_grad()
def test_rotary_and_relative_positions_are_those_of_space(family: Family) -> None:
    """Without positions in time nothing tells two times apart: their order does not matter."""
    network = family.backbone()
    clips = torch.randn(2, 6, 3, *family.size, generator=torch.Generator().manual_seed(0))
    tubelet = network.tubelet
    longer = InflatedViT(network.vit, 3 * tubelet, tubelet).eval()
    clips = clips[:, : 3 * tubelet]
    turned = clips.unflatten(1, (3, tubelet)).flip(1).flatten(1, 2)
    assert_agree(longer(turned), longer(clips))
    longer.time_embed.normal_()
    assert (longer(turned) - longer(clips)).abs().max() > 1e-2


def test_the_image_network_is_left_as_it_was() -> None:
    network = DEIT.backbone().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inflated = inflate(network, frames=4)
    assert inflated.training
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_positions_in_time() -> None:
    learned = inflate(DEIT.backbone(), frames=8)
    assert learned.time_embed.shape == (4, 1, 48)
    assert learned.time_embed.requires_grad
    assert not learned.time_embed.any()
    fixed = inflate(DEIT.backbone(), frames=8, time="sinusoidal")
    assert "time_embed" not in dict(fixed.named_parameters())
    assert torch.equal(fixed.time_embed[:, 0], sinusoids(4, 48))
    wave = sinusoids(5, 8)
    assert_agree(wave[:, 0], torch.arange(5.0).sin())
    assert_agree(wave[:, 3], (torch.arange(5) / 10000**0.25).cos())


@pytest.mark.parametrize("time", ["learned", "sinusoidal"])
@each_inflated
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(family: Family, time: Any, tmp_path: Path) -> None:
    image = timm.create_model(
        family.model, img_size=family.size, embed_dim=48, depth=2, num_heads=3, num_classes=5
    )
    network = inflate(image, family.frames, time=time)
    network.vit.patch_embed.proj.weight.normal_()
    model, clips = sparsify(network, 0.5, method="tome").eval(), family.images()
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["clip"] == {"frames": family.frames, "tubelet": 2, "time": time}
    for again in (load(tmp_path / "model"), DynamicViT.from_pretrained(tmp_path / "model")):
        assert torch.equal(again(clips), model(clips))
        assert again.bound.input_shape() == family.shape


@torch.no_grad()
def test_loaded_by_timms_name() -> None:
    model = load("vit_tiny_patch16_224", pretrained=False, frames=4, tubelet=4, method="tome")
    assert model.bound.input_shape() == (4, 3, 224, 224)
    assert model.bound.grid(224, 224) == (1, 14, 14)
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)


# ---------------------------------------------------------------- methods on clips


@pytest.mark.parametrize("name", sorted(METHODS))
@torch.no_grad()
def test_methods_take_clips_or_say_that_they_do_not(name: str) -> None:
    backbone, clips = CLIPS.backbone(), CLIPS.images()
    if name in ("downsample", "narrow"):
        with pytest.raises(InputError, match=r"3 axes, 2x2x3|another layout"):
            sparsify(backbone, 0.6, method=name)
        return
    model = sparsify(backbone, 0.6, method=name).eval()
    smaller = name == "fewer-pixels"
    assert model.forward_pruned(clips).grid == ((2, 1, 2) if smaller else (2, 2, 3))
    assert schedule_macs(model, model.schedule) == count_macs(model) < count_macs(backbone)


@torch.no_grad()
def test_places_of_another_grid_are_interpolated() -> None:
    model = sparsify(CLIPS.backbone(), 0.5, stages=[1], method="static").eval()
    scores = model.methods[0]
    tokens = model.bound.embed(CLIPS.images())
    assert scores(tokens).shape == (2, 12)
    model.bound.set_image_size(64, 64)
    other = model.bound.embed(torch.randn(2, 4, 3, 64, 64))
    assert scores(other).shape == (2, prod((2, 4, 4)))


# ---------------------------------------------------------------- transformers' classifiers


@each_hf
@torch.no_grad()
def test_a_folder_of_transformers(family: Family, tmp_path: Path) -> None:
    from transformers import AutoModelForVideoClassification

    dense, clips = family.backbone(depth=2), family.images()
    dense.save_pretrained(tmp_path / "dense")
    loaded = load(tmp_path / "dense", method="dynamicvit", keep_ratio=1.0, stages=[1])
    assert_agree(loaded(clips), dense(clips).logits)
    assert loaded.bound.input_shape() == family.shape
    model = sparsify(dense, 0.5, stages=[1], method="dynamicvit").eval()
    assert type(model).__name__ == "DynamicViTForVideoClassification"
    model.save_pretrained(tmp_path / "model")
    again = AutoModelForVideoClassification.from_pretrained(tmp_path / "model").eval()
    assert again.main_input_name == dense.main_input_name
    assert torch.equal(again(**{dense.main_input_name: clips}).logits, model(clips).logits)
    assert torch.equal(load(tmp_path / "model")(clips), model(clips).logits)
    found = evaluate(model, [Batch(clips, model(clips).logits.argmax(dim=1))], dense=True)
    assert found.top1 == 1.0


@each_hf
def test_training_as_a_model_of_transformers(family: Family) -> None:
    model = sparsify(family.backbone(depth=2), 0.5, stages=[1], method="dynamicvit").train()
    model.distil_from()
    output = model(family.images(), labels=torch.tensor([0, 1]))
    output.loss.backward()
    assert output.loss.isfinite()
    assert model.dynamicvit.predictors[0].mlp[-1].weight.grad.abs().max() > 0


@needs_transformers
def test_macs_are_the_published_ones() -> None:
    """VideoMAE-S of one view, 16 frames at 224 px (Tong et al., NeurIPS 2022)."""
    import transformers

    config = transformers.VideoMAEConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=4 * 384
    )
    with torch.device("meta"):
        dense = transformers.VideoMAEForVideoClassification(config)
        sparse = sparsify(dense, 0.5, method="dynamicvit", policy="removed")
    assert count_macs(dense) == pytest.approx(57e9, rel=0.005)
    assert count_macs(sparse) == schedule_macs(sparse, sparse.dynamicvit.schedule)


@needs_transformers
@torch.no_grad()
def test_rotary_positions_take_any_number_of_frames() -> None:
    family = BY_NAME["hf_vjepa2"]
    model = family.sparse(1.0, depth=2, stages=[1])
    for frames in (2, 3, 8):
        clips = torch.randn(2, frames, *family.shape[1:])
        output = model.forward_pruned(clips)
        assert output.grid == (frames // 2, 3, 3)
        assert_agree(output.logits, model.backbone(clips).logits)


@needs_transformers
@torch.no_grad()
def test_the_pooler_reads_what_is_kept() -> None:
    """Merged tubelets count for as many as they are, and what is dropped has no say."""
    family = BY_NAME["hf_vjepa2"]
    model, clips = family.sparse(0.4, policy="merged"), family.images()
    tokens = model.forward_tokens(clips)
    once = model.forward_head(tokens)
    twice = tokens.keep(tokens.kept_index().argsort(dim=1))
    assert_agree(model.bound.head(twice), once)
    dropped = model.forward_masked(clips, family.decisions(share=0.5)).features
    changed = dropped.x + 10 * (1 - dropped.decision)[..., None]
    assert_agree(model.bound.head(dropped.with_x(changed)), model.bound.head(dropped))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((2, 3, 32, 48), "clips must be (batch, frames, 3, height, width), got (2, 3, 32, 48)"),
        ((2, 3, 4, 32, 48), "clips must be (batch, frames, 3, height, width)"),
        ((0, 4, 3, 32, 48), "clips must be at least one"),
        ((2, 6, 3, 32, 48), "clips of 6 frames, but the positions of this backbone are for 4"),
        ((2, 4, 3, 48, 48), "images of 48x48, but this backbone takes 32x48"),
    ],
)
def test_inputs_that_can_not_be(inputs: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        CLIPS.sparse()(torch.zeros(inputs))


def test_a_clip_where_an_image_is_needed() -> None:
    with pytest.raises(InputError, match=re.escape("images must be (batch, 3, height")):
        DEIT.sparse()(CLIPS.images())


@needs_transformers
@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("hf_videomae", (6, 3, 24, 32), "clips of 6 frames of 24x32, but .* 4 frames of 24x32"),
        ("hf_vivit", (4, 3, 32, 32), "clips of 4 frames of 32x32, but .* 4 frames of 24x32"),
        ("hf_vjepa2", (4, 3, 32, 32), "4 frames of 32x32, but .* 24x24"),
        ("hf_vjepa2", (1, 3, 24, 24), "clips of 1 frames, but a tubelet has 2"),
        ("hf_vjepa2", (3, 24, 24), "clips must be"),
    ],
)
def test_frames_and_sizes_beyond_the_positions(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        BY_NAME[name].sparse()(torch.zeros(1, *shape))


@needs_transformers
def test_attention_that_is_not_joint() -> None:
    import transformers

    small = dict(hidden_size=48, num_attention_heads=3, num_hidden_layers=1, image_size=32)
    config = transformers.TimesformerConfig(num_frames=2, **small)
    with pytest.raises(UnsupportedBackboneError, match=r"because of its divided attention"):
        sparsify(transformers.TimesformerForVideoClassification(config))
    config = transformers.VideoMAEConfig(
        num_frames=2, use_mean_pooling=False, decoder_num_hidden_layers=1, **small
    )
    with pytest.raises(UnsupportedBackboneError, match=r"use_mean_pooling=False"):
        sparsify(transformers.VideoMAEForVideoClassification(config))


REFUSED: dict[str, Callable[[], object]] = {
    "a multiple of the tubelet's 2, got 5": lambda: inflate(DEIT.backbone(), frames=5),
    "frames must be a whole number": lambda: inflate(DEIT.backbone(), frames=0),
    "weights is one of": lambda: inflate(DEIT.backbone(), weights="first"),
    "time is one of": lambda: inflate(DEIT.backbone(), time="none"),
    "inflate first": lambda: inflate(DEIT.sparse()),
    "takes clips already": lambda: inflate(CLIPS.backbone()),
    "ConvNeXt.* can't be inflated": lambda: inflate("convnext_atto", pretrained=False),
    "is not supported": lambda: inflate(nn.Linear(3, 3)),
    "tubelet 2 goes with frames": lambda: load("vit_tiny_patch16_224", pretrained=False, tubelet=2),
    "takes clips: a segmentation model": lambda: segmenter(CLIPS.backbone(), 3),
    "give one video file, or": lambda: visualize(CLIPS.sparse(), CLIPS.images()),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        REFUSED[message]()
    assert "\n" not in str(caught.value)


@each_hf
def test_a_model_of_clips_is_no_image_classifier(family: Family, tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    sparsify(family.backbone(depth=2), 0.5).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"classifies clips: load it by .*ForVideo"):
        AutoModelForImageClassification.from_pretrained(tmp_path)


# ---------------------------------------------------------------- what surrounds a model


@torch.no_grad()
def test_budgets_per_clip() -> None:
    model = CLIPS.sparse(0.5)
    model.calibrate(CLIPS.images(64))
    clips = CLIPS.images(6, seed=1)
    together = model(clips)
    assert_agree(torch.cat([model(clip[None]) for clip in clips]), together)


@torch.no_grad()
def test_the_dense_network_beside_it() -> None:
    model, clips = CLIPS.sparse(0.5), CLIPS.images()
    dense: Tensor = DenseNetwork(model)(clips)
    assert torch.equal(dense, model.backbone(clips))
    assert model.num_classes == model.backbone.num_classes == NUM_CLASSES


def test_info_says_what_a_clip_is(command: Callable[..., int], tmp_path: Path) -> None:
    file = tmp_path / "info.json"
    words = ["info", "vit_tiny_patch16_224", "--frames", "4", "--json", file]
    assert command(*words) == 0
    about = json.loads(file.read_text())
    assert about["input_size"] == [4, 3, 224, 224]
    assert about["patches"] == 2 * 14 * 14
    assert about["backbone"] == "vit_tiny_patch16_224"


def test_bench_times_clips(command: Callable[..., int], tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    options = ["--precision", "fp32", "--batch-size", "1", "--samples", "2", "--json", file]
    options += ["--threads", "1"]
    assert command("bench", *SMALL, "--keep-ratio", "0.5", *options) == 0
    report = json.loads(file.read_text())
    assert report["image_size"] == [32, 32]
    assert report["pruned_macs"] < report["dense_macs"]


def test_frames_of_what_is_saved(
    command: Callable[..., int], one_line: Callable[[], str], tmp_path: Path
) -> None:
    model = sparsify(inflate("vit_tiny_patch16_224", 2, pretrained=False), 0.5)
    model.save_pretrained(tmp_path / "model")
    assert command("info", tmp_path / "model", "--frames", "4") == 2
    assert "frames 4 is for timm's image networks" in one_line()
