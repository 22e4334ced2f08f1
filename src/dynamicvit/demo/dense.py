"""The demo's dense model, a small vision transformer, and its shipped weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dynamicvit.demo.scenes import GRID, IMAGE_SIZE, MEAN, NUM_CLASSES, PATCH_SIZE, STD

DENSE_WEIGHTS = Path(__file__).with_name("dense.safetensors")


def dense_model() -> VisionTransformer:
    """The demo's model with fresh weights: 12 x 12 patches, 8 blocks, 1.7 M parameters.

    timm's vision transformer, whose patches are projected by three strided convolutions: they
    learn strokes, wherever they lie in a patch, from far fewer scenes.
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
    # Patches of 8 pixels, (B, 3, 96, 96) to (B, C, 12, 12), each seeing 15 pixels.
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((3, 24, 48, 96)):
        layers += [
            nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    model.patch_embed.proj = nn.Sequential(*layers, nn.Conv2d(96, model.embed_dim, kernel_size=1))
    # Starting from sines and cosines, neighbors are known from the first step.
    positions = build_sincos2d_pos_embed([GRID, GRID], model.embed_dim, temperature=100)
    assert model.pos_embed is not None
    with torch.no_grad():
        model.pos_embed[:, model.num_prefix_tokens :] = 0.5 * positions
    return model


def load_dense(path: Path = DENSE_WEIGHTS) -> VisionTransformer:
    """The trained model in ``eval()``; weights are of ``python -m dynamicvit.demo.train_dense``."""
    model = dense_model()
    model.load_state_dict(load_file(path))  # stored in half precision, copied into single
    model.pretrained_cfg = {
        "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
        "mean": (MEAN,) * 3,
        "std": (STD,) * 3,
        "label_names": [str(digit) for digit in range(NUM_CLASSES)],
    }
    return model.eval()
