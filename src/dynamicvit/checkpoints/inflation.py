"""From an image transformer of timm to a video transformer, in one call."""

from __future__ import annotations

import copy

from torch import nn

from dynamicvit.backbones import backbone_for
from dynamicvit.backbones.inflated import (
    IMAGE_FAMILIES,
    InflatedViT,
    TimePositions,
    Weights,
    check_clip,
    over_tubelets,
)
from dynamicvit.checkpoints.dense import load_dense
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import core_of
from dynamicvit.errors import InputError


def inflate(
    backbone: nn.Module | str,
    frames: int = 8,
    tubelet: int = 2,
    weights: Weights = "central",
    time: TimePositions = "learned",
    *,
    pretrained: bool = True,
) -> InflatedViT:
    """A video transformer with an image transformer's weights (ViViT, ICCV 2021, Section 3.4).

    Its clips are ``(B, frames, channels, height, width)``, its tokens tubelets, and every token
    attends to all of them. Its weights are those of the image network but for the embedding, which
    sees a tubelet, and positions in time, which nobody has trained: fine-tune it.
    :func:`~dynamicvit.sparsify` takes it as any backbone.

    Args:
        backbone: a vision transformer of timm, dense, which is copied; or its name.
        frames: of a clip, a multiple of ``tubelet``.
        tubelet: frames of a token.
        weights: of the embedding: "central", the image's at the middle frame of a tubelet and zero
            at the others, so that at first a clip is seen one frame a tubelet; or "average", the
            same at each, so that a tubelet is seen as its mean frame.
        time: positions in time: "learned", which start at zero; or "sinusoidal", which are fixed.
        pretrained: whether a name's weights are timm's, or random.

    Returns:
        In the mode of the network that was given; of a name in ``eval()``.

    Raises:
        UnsupportedBackboneError: naming the class that is not supported, and the families.
        InputError: for a network that can't be inflated, or a value that can't be.
    """
    check_clip(frames, tubelet, time)
    if isinstance(backbone, nn.Module):
        dense = core_of(backbone)
        if isinstance(dense, DynamicViT):
            raise InputError("inflate takes a dense network: inflate first, then sparsify")
        vit = copy.deepcopy(dense)
    else:
        vit = load_dense(backbone, pretrained=pretrained)
    bound = backbone_for(vit)
    if bound.frames is not None:
        raise InputError(f"{bound.family} takes clips already: sparsify takes it as it is")
    if type(bound) not in IMAGE_FAMILIES:
        names = "; ".join(family.family for family in IMAGE_FAMILIES)
        raise InputError(f"{bound.family} can't be inflated: give one of {names}")
    over_tubelets(vit, tubelet, weights)
    return InflatedViT(vit, frames, tubelet, time).train(vit.training)
