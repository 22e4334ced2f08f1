"""Which layers compute in int8, so that a file answers and keeps nearly as its model does.

Post-training quantization is the paper's future work. The prediction modules stay in float.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.runtimes.graph import OWN

#: Share of the answers, and of the kept patches of each stage, that must be the model's. DeiT-Tiny
#: with ρ = 0.5 and removed tokens agrees with its dense self in 83 % of the answers: an int8 file
#: that agrees less with its model loses more than half of the tokens are worth.
LEAST_AGREEMENT = 0.85

_LEVELS = 255  # of eight bits

_File = TypeVar("_File")


def fewest_in_float(
    write: Callable[[frozenset[str]], _File],
    drop: Callable[[_File], float],
    always: frozenset[str],
    order: Sequence[str],
    max_drop: float,
) -> _File | None:
    """The file with the fewest layers in float that loses at most ``max_drop``; ``None`` if none.

    A doubling, then a binary search for the number of layers, as files take long to write: it
    assumes that more layers in float never lose more. What is returned was measured.

    Args:
        write: makes the file with these layers in float.
        drop: points of top-1 that a file loses.
        always: layers that stay in float.
        order: the others, in the order in which they return to float.
        max_drop: points that may be lost.
    """

    def attempt(count: int) -> _File | None:
        file = write(always | frozenset(order[:count]))
        return file if drop(file) <= max_drop else None

    found, too_few, count = attempt(0), 0, 0
    while found is None and count < len(order):
        too_few, count = count, min(max(1, 2 * count), len(order))
        found = attempt(count)
    while found is not None and count - too_few > 1:
        middle = (count + too_few) // 2
        better = attempt(middle)
        if better is None:
            too_few = middle
        else:
            found, count = better, middle
    return found


@torch.inference_mode()
def most_sensitive_first(
    model: DynamicViT, images: Tensor, layers: Collection[str]
) -> tuple[str, ...]:
    """Layers by how far the logits move (mean square) when one alone computes in eight bits.

    Activations have one scale, weights one for each output, as in int8 files.

    Args:
        model: in ``eval()``.
        images: ``(B, channels, height, width)``, normalized.
        layers: names as of :func:`~dynamicvit.runtimes.graph.layers_of`.
    """
    expected = model(images)
    moved = {}
    for layer in layers:
        root = model if layer.startswith(OWN) else model.backbone
        with _in_eight_bits(root.get_submodule(layer)):
            moved[layer] = float((model(images) - expected).square().mean())
    return tuple(sorted(moved, key=moved.__getitem__, reverse=True))


@contextmanager
def _in_eight_bits(module: nn.Module) -> Iterator[None]:
    """Round a layer's weight, and its input if it is called as a module."""
    weight = module.weight
    hook = module.register_forward_pre_hook(lambda _, inputs: (_rounded(inputs[0]), *inputs[1:]))
    module.weight = nn.Parameter(_rounded_weight(weight), requires_grad=False)
    try:
        yield
    finally:
        module.weight = weight
        hook.remove()


def _rounded(x: Tensor) -> Tensor:
    """From the least to the greatest value, with zero among the levels."""
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
