"""dynamicvit's models behave as timm's own do."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config, resolve_model_data_config
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import AverageMeter, accuracy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynamicvit import DynamicViT, InputError, MaskedOutput
from dynamicvit.checkpoints.timm_names import BACKBONES
from families import Family, each_family
from rows import some_or_all

TINY = "dynamicvit_deit_tiny_patch16_224"
#: Where each depth puts the stages.
STAGES = {12: (3, 6, 9), 16: (4, 8, 12), 20: (5, 10, 15), 24: (6, 12, 18), 32: (8, 16, 24)}
#: Of ConvNeXt and Swin, by the depth of the third stage.
STAGES_OF_MAPS = {9: (1, 2, 3), 27: (3, 6, 9), 6: (1, 2, 3), 18: (2, 4, 6)}
#: One of each family and a second size, in every run; ``-m extended`` runs all.
SHOWN = ["deit_tiny_patch16_224", "deit_small_patch16_384", "lvvit_s", "convnext_tiny"]
SHOWN += ["swin_tiny_patch4_window7_224"]
SMALL_ARGS = {"depth": 4, "embed_dim": 16, "num_heads": 2, "img_size": 32}


def small(**kwargs: object) -> DynamicViT:
    torch.manual_seed(0)
    return timm.create_model(TINY, **{**SMALL_ARGS, **kwargs})


def test_timm_lists_the_models() -> None:
    names = set(timm.list_models("dynamicvit*"))
    assert names == {f"dynamicvit_{backbone}" for backbone in BACKBONES}
    assert not timm.list_models("dynamicvit*", pretrained=True)  # no weights of ours to download


@some_or_all("backbone", SHOWN, BACKBONES)
def test_each_name_builds_its_backbone(backbone: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"dynamicvit_{backbone}", pretrained=False)
        dense = timm.create_model(backbone)
    assert isinstance(model, DynamicViT)
    assert model.schedule.stages == (STAGES | STAGES_OF_MAPS)[model.depth]
    assert model.keep_ratio == 0.7
    by_name = timm.get_pretrained_cfg(f"dynamicvit_{backbone}")
    assert by_name.input_size == model.pretrained_cfg["input_size"]
    assert by_name.input_size[1:] == model.bound.image_size
    shapes = {name: value.shape for name, value in dense.state_dict().items()}
    assert shapes == {name: value.shape for name, value in model.backbone.state_dict().items()}


def test_arguments_reach_schedule_and_backbone() -> None:
    model = small(
        keep_ratio=0.5,
        stages=[1, 3],
        num_classes=7,
        drop_path_rate=0.2,
        in_chans=1,
        img_size=48,
    )
    assert model.schedule.stages == (1, 3)
    assert model.schedule.keep_ratios == (0.5, 0.25)
    assert model.backbone.blocks[3].drop_path1.drop_prob == pytest.approx(0.2)
    assert model.eval()(torch.randn(2, 1, 48, 48)).shape == (2, 7)
    assert small(keep_ratio=[0.9, 0.8, 0.1]).schedule.keep_ratios == (0.9, 0.8, 0.1)
    with pytest.raises(InputError, match=r"\(0, 1\], got 2"):
        small(keep_ratio=2)
    assert small().schedule.policy == "merged"
    assert small(policy="removed").schedule.policy == "removed"
    with pytest.raises(InputError, match=r"'removed', 'merged'.* got 'left'"):
        small(policy="left")


def test_the_data_config_is_the_backbones() -> None:
    model, dense = small(), timm.create_model("deit_tiny_patch16_224", **SMALL_ARGS)
    assert model.pretrained_cfg == model.default_cfg == dense.pretrained_cfg
    config = resolve_model_data_config(model)
    assert config == resolve_model_data_config(dense)
    assert config["crop_pct"] == 0.9
    assert create_transform(**config)
    by_name = timm.get_pretrained_cfg(TINY).to_dict()
    assert resolve_data_config(pretrained_cfg=by_name) == config
    assert not timm.get_pretrained_cfg(TINY).has_weights
    tagged = timm.create_model(f"{TINY}.fb_in1k", **SMALL_ARGS)
    assert tagged.pretrained_cfg["tag"] == "fb_in1k"


def test_pretrained_loads_dense_weights_into_the_backbone(tmp_path: Path) -> None:
    dense = timm.create_model("deit_tiny_patch16_224", **SMALL_ARGS)
    torch.save(dense.state_dict(), tmp_path / "dense.pth")
    model = small(
        pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "dense.pth"), "url": ""}
    )
    for name, value in dense.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name


def test_checkpoint_path_loads_a_saved_model(tmp_path: Path) -> None:
    model = small(num_classes=7, keep_ratio=0.5).eval()
    nn.init.normal_(model.predictors[0].mlp[4].weight)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    torch.manual_seed(1)
    loaded = timm.create_model(
        TINY,
        **SMALL_ARGS,
        num_classes=7,
        keep_ratio=0.5,
        checkpoint_path=str(tmp_path / "model.pth"),
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))


def test_a_fresh_classifier() -> None:
    model = small(num_classes=7)
    assert model.get_classifier() is model.backbone.head
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    model.reset_classifier(0, "avg")
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.num_features)


def test_weight_decay_leaves_alone_what_timm_leaves_alone() -> None:
    model = small()
    names = dict(model.named_parameters())
    assert model.no_weight_decay() == {
        f"backbone.{name}" for name in model.backbone.no_weight_decay()
    }

    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    decayed = {
        id(parameter)
        for group in optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    for name in ("backbone.pos_embed", "backbone.cls_token", "predictors.0.norm.weight"):
        assert id(names[name]) not in decayed, name
    for name in ("backbone.blocks.0.attn.qkv.weight", "predictors.0.project.weight"):
        assert id(names[name]) in decayed, name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_a_step_of_timms_optimizer() -> None:
    model = small(num_classes=4)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-2)
    before = model.predictors[0].project.weight.clone()
    output = model(torch.randn(2, 3, 32, 32))
    assert isinstance(output, MaskedOutput)
    output.logits.square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.predictors[0].project.weight, before)


def test_timms_evaluation_loop() -> None:
    """The body of timm's validate.py."""
    model = small(num_classes=10, img_size=32)
    model.eval()
    data = TensorDataset(torch.randn(10, 3, 32, 32), torch.arange(10))
    criterion = nn.CrossEntropyLoss()
    losses, top1, top5 = AverageMeter(), AverageMeter(), AverageMeter()
    with torch.inference_mode():
        for images, target in DataLoader(data, batch_size=4):
            output = model(images)
            if isinstance(output, (tuple, list)):
                output = output[0]
            loss = criterion(output, target)
            acc1, acc5 = accuracy(output.detach(), target, topk=(1, 5))
            losses.update(loss.item(), images.size(0))
            top1.update(acc1.item(), images.size(0))
            top5.update(acc5.item(), images.size(0))
    assert top1.count == 10
    assert 0 <= top1.avg <= top5.avg <= 100
    assert losses.avg > 0


# ---------------------------------------------------------------- parameters and features


@each_family
def test_groups_of_parameters_are_timms(family: Family) -> None:
    """Methods learn at the rate of the classifier; register tokens and norms count as timm says."""
    model = family.sparse()
    ours = group_parameters(model, model.group_matcher(), reverse=True)
    last = max(ours.values())
    assert {place for name, place in ours.items() if name.startswith("predictors.")} == {last}
    groups = {place for name, place in ours.items() if f".{model.bound.blocks_name}." in name}
    assert groups == set(range(1, model.depth + 1))
    classifiers = ("head", "head_dist", "aux_head", "classifier")
    named = {name: name.replace(".vit.", ".").split(".")[1] for name in ours}
    assert {ours[name] for name, part in named.items() if part in classifiers} == {last}
    if hasattr(model.backbone, "group_matcher"):
        backbone = model.backbone
        theirs = group_parameters(backbone, backbone.group_matcher(), reverse=True)
        differ = {name for name, place in theirs.items() if ours[f"backbone.{name}"] != place}
        assert differ <= {"rope.freqs"}, "which timm takes for a classifier's"
    decayed = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
    rates = {id(value): group["lr_scale"] for group in decayed for value in group["params"]}
    assert rates[id(next(model.predictors.parameters()))] == 1.0
    spared = [id(v) for group in decayed if not group["weight_decay"] for v in group["params"]]
    token = getattr(model.backbone, "reg_token", None)
    assert token is None or id(token) in spared


@pytest.mark.parametrize("indices", [None, 2, [0, 3]])
@torch.no_grad()
def test_features_only(indices: int | list[int] | None) -> None:
    chosen = {} if indices is None else {"out_indices": indices}
    torch.manual_seed(0)
    getter = timm.create_model(TINY, **SMALL_ARGS, features_only=True, keep_ratio=0.5, **chosen)
    model, images = small(keep_ratio=0.5).eval(), torch.randn(2, 3, 32, 32)
    maps = getter.eval()(images)
    expected = model.forward_intermediates(
        images, indices=3 if indices is None else indices, intermediates_only=True
    )
    assert all(map(torch.equal, maps, expected))
    assert len(maps) == len(expected)
    assert getter.feature_info.channels() == [16] * len(maps)
    assert getter.feature_info.reduction() == [16] * len(maps)


@torch.no_grad()
def test_intermediates_by_timms_names() -> None:
    model, images = small(keep_ratio=0.5).eval(), torch.randn(2, 3, 32, 32)
    features, pairs = model.forward_intermediates(images, indices=2, return_prefix_tokens=True)
    named = model.forward_intermediates(
        images, indices=2, return_prefix_tokens=True, output_dict=True
    )
    assert torch.equal(named.pop("image_features"), features)
    maps, prefixes = zip(*pairs, strict=True)
    assert all(map(torch.equal, named.pop("image_intermediates"), maps))
    assert all(map(torch.equal, named.pop("image_intermediates_prefix"), prefixes))
    assert not named
    dense = model.backbone.forward_intermediates(images, indices=2, output_dict=True)
    ours = model.forward_intermediates(images, indices=2, output_dict=True)
    assert ours.keys() == dense.keys()
