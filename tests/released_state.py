"""A small checkpoint under the released implementation's names."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH, DEPTH, HEADS = 16, 4, 2


def released_state(num_stages: int = 3, width: int = WIDTH, side: int = 2) -> dict[str, Tensor]:
    """A state dict under the released names, written down from the released implementation."""
    torch.manual_seed(0)
    state = {
        "cls_token": torch.randn(1, 1, width),
        "pos_embed": torch.randn(1, 1 + side * side, width),
        "patch_embed.proj.weight": torch.randn(width, 3, 4, 4),
        "patch_embed.proj.bias": torch.randn(width),
        "norm.weight": torch.randn(width),
        "norm.bias": torch.randn(width),
        "head.weight": torch.randn(5, width),
        "head.bias": torch.randn(5),
    }
    for block in range(DEPTH):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (3 * width, width),
            "mlp.fc1.bias": (3 * width,),
            "mlp.fc2.weight": (width, 3 * width),
            "mlp.fc2.bias": (width,),
        }.items():
            state[f"blocks.{block}.{name}"] = torch.randn(shape)
    for stage in range(num_stages):
        for name, shape in {
            "in_conv.0.weight": (width,),
            "in_conv.0.bias": (width,),
            "in_conv.1.weight": (width, width),
            "in_conv.1.bias": (width,),
            "out_conv.0.weight": (width // 2, width),
            "out_conv.0.bias": (width // 2,),
            "out_conv.2.weight": (width // 4, width // 2),
            "out_conv.2.bias": (width // 4,),
            "out_conv.4.weight": (2, width // 4),
            "out_conv.4.bias": (2,),
        }.items():
            state[f"score_predictor.{stage}.{name}"] = torch.randn(shape)
    return state
