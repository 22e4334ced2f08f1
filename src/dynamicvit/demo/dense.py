"""The dense model of the demo: a small vision transformer, and its shipped weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dynamicvit.demo.scenes import GRID, IMAGE_SIZE, NUM_CLASSES, PATCH_SIZE

DENSE_WEIGHTS = Path(__file__).with_name("dense.safetensors")


def dense_model() -> VisionTransformer:
    """Build the demo's model with fresh weights: 12 x 12 patches, 8 blocks, 1.7 M parameters.

    Everything is timm's vision transformer but the projection of the patches: three strided
    convolutions, which learn from far fewer scenes what a stroke is, wherever it lies in a patch.
    """
    model = VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        num_classes=NUM_CLASSES,
        embed_dim=128,
        depth=8,
        num_heads=2,
        global_pool="token",
    )
    width = model.embed_dim
    model.patch_embed.proj = _stem(width)
    # Sines and cosines show from the first step on which patches are neighbors: a digit that
    # moves is the same digit. From there the embedding is learned as usual.
    places = build_sincos2d_pos_embed([GRID, GRID], width, temperature=100)
    assert model.pos_embed is not None
    with torch.no_grad():
        model.pos_embed[:, model.num_prefix_tokens :] = 0.5 * places
    return model


def load_dense(path: Path = DENSE_WEIGHTS) -> VisionTransformer:
    """Load the trained model, ready for inference.

    Args:
        path: The weights that ``python -m dynamicvit.demo.train_dense`` wrote. They are stored in
            half precision; the model computes in single precision.
    """
    model = dense_model()
    model.load_state_dict(load_file(path))  # Copies into the model's precision.
    return model.eval()


def _stem(width: int) -> nn.Sequential:
    """Project patches of 8 pixels, (B, 3, 96, 96) to (B, C, 12, 12), each seeing 15 pixels."""
    layers: list[nn.Module] = []
    channels = (3, 24, 48, 96)
    for inputs, outputs in pairwise(channels):
        layers += [
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(channels[-1], width, kernel_size=1))
