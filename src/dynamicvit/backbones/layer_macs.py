"""MACs of the layers that the closed form is made of, from the shapes of their weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def linear_macs(module: nn.Module) -> int:
    """Weights of all linear layers: the MACs of one token that passes through each once."""
    total = 0
    for part in module.modules():
        if isinstance(part, nn.Linear):
            total += part.weight.numel()
        elif isinstance(part, nn.MultiheadAttention):  # its input projections are no modules
            weights = (part.in_proj_weight, part.q_proj_weight, part.k_proj_weight)
            weights = (*weights, part.v_proj_weight)
            total += sum(weight.numel() for weight in weights if weight is not None)
    return total


def convolution_macs(modules: Iterable[nn.Module], height: int, width: int) -> int:
    """MACs of the convolutions among some modules, one after the other.

    Args:
        modules: in the order in which the image passes through them.
        height: of the image, in pixels.
        width: likewise.
    """
    total = 0
    size = (height, width)
    for conv in modules:
        if isinstance(conv, nn.Conv2d):
            padding = (0, 0) if isinstance(conv.padding, str) else conv.padding
            geometry = zip(size, conv.kernel_size, conv.stride, padding, strict=True)
            size = tuple((side + 2 * p - k) // s + 1 for side, k, s, p in geometry)
            total += conv.weight.numel() * size[0] * size[1]
    return total
