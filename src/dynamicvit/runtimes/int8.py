"""Int8: which layers compute in it, so that a file answers and keeps nearly as its model does.

Post-training, calibrated on images (the paper's future work). The prediction modules stay in float.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.runtimes.comparison import Agreement, ExportMismatchError

#: Share of answers, and of the patches kept at each stage, that must be the model's own. DeiT-Tiny
#: with ρ = 0.5 and removed tokens answers 83 % as it does dense: an int8 file that agrees less with
#: its model has lost more than half of the tokens are worth.
LEAST_AGREEMENT = 0.85

#: Of eight bits.
_LEVELS = 255

_File = TypeVar("_File")


def check_agreement(found: Agreement, least: float) -> None:
    """Refuse a file that agrees too little.

    Raises:
        ExportMismatchError: with the shares.
    """
    if found.least < least:
        kept = ", ".join(f"{share:.1%}" for share in found.kept)
        patches = f" and {kept} of the kept patches" if kept else ""
        raise ExportMismatchError(
            f"in int8 {found.answers:.1%} of the answers{patches} are the model's, less than "
            f"{least:.0%}: calibrate on images of the kind that it will see"
        )


# ---------------------------------------------------------------- the search


def fewest_in_float(
    write: Callable[[frozenset[str]], _File],
    drop: Callable[[_File], float],
    always: frozenset[str],
    order: Sequence[str],
    max_drop: float,
) -> _File | None:
    """The file with the fewest layers in float whose drop is small enough.

    Doubles the number of layers until it is enough, then halves what lies between: files take long
    to write. That a longer start of the order never loses more is taken for granted in between, and
    what is returned was measured.

    Args:
        write: makes the file with these layers in float.
        drop: points that a file loses.
        always: layers in float anyway.
        order: the others, those to try first in front.
        max_drop: points that may be lost.

    Returns:
        The file, or ``None`` if even with all layers in float too much is lost.
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


# ---------------------------------------------------------------- the order, told by PyTorch


@torch.inference_mode()
def most_sensitive_first(
    model: DynamicViT, images: Tensor, layers: Collection[str]
) -> tuple[str, ...]:
    """Layers by how far the logits move (mean square) when one alone computes in eight bits.

    Activations have one scale for all, weights one for each output, as int8 files have.

    Args:
        model: in ``eval()``.
        images: ``(B, channels, height, width)``, normalized.
        layers: names as of :func:`~dynamicvit.runtimes.graph.layers_of`.
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
