"""Checkpoints under the released implementation's names, written down from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dynamicvit.checkpoints.released import Release
from rows import some_or_all

WIDTH, DEPTH, HEADS = 16, 4, 2

Shapes = dict[str, tuple[int, ...]]


def these_or_all(releases: dict[str, Release], always: tuple[str, ...]) -> pytest.MarkDecorator:
    """These in every run, all with ``-m extended``."""
    some = [releases[name] for name in always]
    return some_or_all("release", some, releases.values(), ids=list(releases))


def _affine(name: str, *shape: int) -> Shapes:
    """A weight of this shape and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def deit_shapes(
    width: int = WIDTH,
    depth: int = DEPTH,
    mlp_ratio: int = 3,
    side: int = 2,
    patch: int = 4,
    classes: int = 5,
    num_stages: int = 3,
) -> Shapes:
    """Every name of a DynamicViT on DeiT, with its shape."""
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side * side, width),
        **_affine("patch_embed.proj", width, 3, patch, patch),
        **_affine("norm", width),
        **_affine("head", classes, width),
    }
    for block in (f"blocks.{i}" for i in range(depth)):
        shapes |= _affine(f"{block}.norm1", width) | _affine(f"{block}.norm2", width)
        shapes |= _affine(f"{block}.attn.qkv", 3 * width, width)
        shapes |= _affine(f"{block}.attn.proj", width, width)
        shapes |= _affine(f"{block}.mlp.fc1", mlp_ratio * width, width)
        shapes |= _affine(f"{block}.mlp.fc2", width, mlp_ratio * width)
    for stage in (f"score_predictor.{i}" for i in range(num_stages)):
        shapes |= _affine(f"{stage}.in_conv.0", width)
        shapes |= _affine(f"{stage}.in_conv.1", width, width)
        shapes |= _affine(f"{stage}.out_conv.0", width // 2, width)
        shapes |= _affine(f"{stage}.out_conv.2", width // 4, width // 2)
        shapes |= _affine(f"{stage}.out_conv.4", 2, width // 4)
    return shapes


def lvvit_shapes(
    width: int = WIDTH,
    depth: int = DEPTH,
    side: int = 2,
    patch: int = 4,
    classes: int = 5,
    stem: int = 6,
) -> Shapes:
    """Every name of a DynamicViT on LV-ViT, with its shape."""
    shapes = deit_shapes(width, depth, 3, side, patch, classes)
    for block in range(depth):
        del shapes[f"blocks.{block}.attn.qkv.bias"]
    shapes["patch_embed.proj.weight"] = (width, stem, patch // 2, patch // 2)
    for layer, (channels, kernel) in enumerate(((3, 7), (stem, 3), (stem, 3)), start=1):
        shapes[f"patch_embed.conv{layer}.weight"] = (stem, channels, kernel, kernel)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"patch_embed.bn{layer}.{name}"] = (stem,)
        shapes[f"patch_embed.bn{layer}.num_batches_tracked"] = ()
    return shapes | _affine("aux_head", classes, width)


def shapes_of(release: Release) -> Shapes:
    """Those of the released file: 224 px, patches of 16 px, 1,000 classes."""
    architecture = release.architecture
    size = {"width": architecture.width, "depth": architecture.depth}
    image = {"side": 14, "patch": 16, "classes": 1000}
    if architecture.layout == "LV-ViT":
        return lvvit_shapes(**size, **image, stem=64)
    return deit_shapes(**size, **image, mlp_ratio=4)


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """Random tensors of these shapes."""
    torch.manual_seed(0)
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    for name, value in state.items():
        if name.endswith("running_var"):
            state[name] = value.abs() + 0.5
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(3)
    return state


def meta(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of these shapes without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def released_state(num_stages: int = 3, width: int = WIDTH, side: int = 2) -> dict[str, Tensor]:
    """A small DynamicViT on DeiT with random weights."""
    return filled(deit_shapes(num_stages=num_stages, width=width, side=side))


def lvvit_state() -> dict[str, Tensor]:
    """A small DynamicViT on LV-ViT with random weights."""
    return filled(lvvit_shapes())


def _modules(front: str, width: int, conv: bool) -> Shapes:
    """Of the three prediction modules."""
    shapes: Shapes = {}
    more = (1, 1) if conv else ()
    for i in range(3):
        name = f"{front}score_predictor.{i}"
        shapes |= _affine(f"{name}.in_conv.0", width)
        shapes |= _affine(f"{name}.in_conv.1", width, width, *more)
        shapes |= _affine(f"{name}.out_conv.0", width // 2, width, *more)
        shapes |= _affine(f"{name}.out_conv.2", width // 4, width // 2, *more)
        shapes |= _affine(f"{name}.out_conv.4", 2, width // 4, *more)
    return shapes


def convnext_shapes(depths: tuple[int, ...], width: int, first: int, classes: int) -> Shapes:
    """Every name of a released ConvNeXt with cheap paths, with its shape."""
    dims = [width * 2**i for i in range(4)]
    shapes = _affine("downsample_layers.0.0", width, 3, 4, 4)
    shapes |= _affine("downsample_layers.0.1", width)
    for i in (1, 2, 3):
        shapes |= _affine(f"downsample_layers.{i}.0", dims[i - 1])
        shapes |= _affine(f"downsample_layers.{i}.1", dims[i], dims[i - 1], 2, 2)
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        for block in range(depth):
            name = f"stages.{i}.{block}"
            shapes |= _affine(f"{name}.dwconv", dim, 1, 7, 7) | _affine(f"{name}.norm", dim)
            shapes |= _affine(f"{name}.pwconv1", 4 * dim, dim)
            shapes |= _affine(f"{name}.pwconv2", dim, 4 * dim)
            shapes[f"{name}.gamma"] = (dim,)
            if i == 2 and block >= first:
                shapes |= _affine(f"{name}.fast_path.0", dim)
                shapes |= _affine(f"{name}.fast_path.1", dim, dim)
                shapes[f"{name}.fast_path_gamma"] = (dim,)
    shapes |= _affine("norm", dims[3]) | _affine("head", classes, dims[3])
    return shapes | _modules("", dims[2], conv=True)


def swin_shapes(
    depths: tuple[int, ...], width: int, heads: int, first: int, classes: int, window: int = 7
) -> Shapes:
    """Every name of a released Swin with cheap paths with its shape; of images 32 windows wide."""
    area, offsets = window**2, (2 * window - 1) ** 2
    dims = [width * 2**i for i in range(4)]
    shapes = _affine("patch_embed.proj", width, 3, 4, 4) | _affine("patch_embed.norm", width)
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        for block in range(depth):
            name = f"layers.{i}.blocks.{block}"
            shapes |= _affine(f"{name}.norm1", dim) | _affine(f"{name}.norm2", dim)
            shapes |= _affine(f"{name}.attn.qkv", 3 * dim, dim)
            shapes |= _affine(f"{name}.attn.proj", dim, dim)
            shapes[f"{name}.attn.relative_position_bias_table"] = (offsets, heads * 2**i)
            shapes[f"{name}.attn.relative_position_index"] = (area, area)
            if block % 2 and i < 3:
                shapes[f"{name}.attn_mask"] = (64 // 4**i, area, area)
            shapes |= _affine(f"{name}.mlp.fc1", 4 * dim, dim)
            shapes |= _affine(f"{name}.mlp.fc2", dim, 4 * dim)
            if i == 2 and block >= first:
                shapes |= _affine(f"{name}.fastmlp.fc1.0", dim)
                shapes |= _affine(f"{name}.fastmlp.fc1.1", dim, dim)
        if i < 3:
            shapes |= _affine(f"layers.{i}.downsample.norm", 4 * dim)
            shapes[f"layers.{i}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
    shapes |= _affine("norm", dims[3]) | _affine("head", classes, dims[3])
    return shapes | _modules("layers.2.", dims[2], conv=False)
