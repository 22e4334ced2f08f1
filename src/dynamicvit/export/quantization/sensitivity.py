"""Which layers bear eight bits worst: told by the model in PyTorch, before any file is written."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynamicvit.core.model import DynamicViT

#: Of eight bits.
_LEVELS = 255


@torch.inference_mode()
def most_sensitive_first(
    model: DynamicViT, images: Tensor, layers: Collection[str]
) -> tuple[str, ...]:
    """Layers by how far the logits move (mean square) when one alone computes in eight bits.

    Activations have one scale for all, weights one to each output, as int8 files have.

    Args:
        model: in ``eval()``.
        images: ``(B, channels, height, width)``, normalized.
        layers: names as of :func:`~dynamicvit.export.quantization.layers.layers_of`.
    """
    expected = model(images)
    moved = {}
    for layer in dict.fromkeys(layers):
        with _in_eight_bits(_module(model, layer)):
            moved[layer] = float((model(images) - expected).square().mean())
    return tuple(sorted(moved, key=moved.__getitem__, reverse=True))


def _module(model: DynamicViT, layer: str) -> nn.Module:
    try:
        return model.get_submodule(layer)
    except AttributeError:
        return model.backbone.get_submodule(layer)


@contextmanager
def _in_eight_bits(module: nn.Module) -> Iterator[None]:
    """Round a layer's weight, and its input where it is called as a module."""
    weight = module.weight
    hook = module.register_forward_pre_hook(lambda _, inputs: (_rounded(inputs[0]), *inputs[1:]))
    module.weight = nn.Parameter(_rounded_weight(weight), requires_grad=False)
    try:
        yield
    finally:
        module.weight = weight
        hook.remove()


def _rounded(x: Tensor) -> Tensor:
    """Between the least and the greatest value, zero among the levels."""
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    step = ((high - low) / _LEVELS).clamp(min=torch.finfo(x.dtype).tiny)
    zero = int((-low / step).round())
    return torch.fake_quantize_per_tensor_affine(x, float(step), zero, 0, _LEVELS)


def _rounded_weight(weight: Tensor) -> Tensor:
    most = _LEVELS // 2
    step = weight.flatten(1).abs().amax(dim=1) / most
    step = step.clamp(min=torch.finfo(weight.dtype).tiny)
    zero = torch.zeros(len(weight), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight.detach(), step, zero, 0, -most, most)
