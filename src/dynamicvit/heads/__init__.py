"""What is read from the tokens beside the backbone's own classifier: heads for dense prediction."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dynamicvit.errors import InputError
from dynamicvit.heads.linear import LinearHead
from dynamicvit.heads.mask import MaskTransformer

#: Heads by name: each is made of the tokens' width and the number of classes, and turns a full map
#: ``(B, rows, columns, C)`` into logits ``(B, classes, rows, columns)``. It has its ``name``,
#: ``num_classes`` and its last layer as ``classifier``.
HEADS: dict[str, Callable[[int, int], nn.Module]] = {"linear": LinearHead, "mask": MaskTransformer}


def head_named(name: str, width: int, num_classes: int) -> nn.Module:
    """A fresh head.

    Args:
        name: one of :data:`HEADS`.
        width: C, of the tokens.
        num_classes: at least 1.

    Raises:
        InputError: for an unknown name, no classes, or a width that the head can't have.
    """
    if name not in HEADS:
        raise InputError(f"head is one of {', '.join(HEADS)}, got {name!r}")
    if num_classes < 1:
        raise InputError(f"a segmentation head needs at least 1 class, got {num_classes}")
    return HEADS[name](width, num_classes)


__all__ = ["HEADS", "LinearHead", "MaskTransformer", "head_named"]
