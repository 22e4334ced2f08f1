"""Checkpoints under the released implementation's names, written down from it."""

from __future__ import annotations

import torch
from torch import Tensor

from dynamicvit.checkpoints.released import Release

WIDTH, DEPTH, HEADS = 16, 4, 2

Shapes = dict[str, tuple[int, ...]]


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
