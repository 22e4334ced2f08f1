"""A released checkpoint as a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamicvit.checkpoints.released.downloads import download
from dynamicvit.checkpoints.released.recognize import recognize
from dynamicvit.checkpoints.released.zoo import is_release
from dynamicvit.core.model import DynamicViT


def load_released(
    path_or_state_dict: str | Path | Mapping[str, Any],
    keep_ratio: float | Sequence[float] | None = None,
    num_heads: int | None = None,
    *,
    stages: Sequence[int] | None = None,
    residual_divisor: float | None = None,
    ema: bool = False,
) -> DynamicViT:
    """A DynamicViT with the weights of a released checkpoint, or of one with the same names.

    Image and patch size, width, depth, MLP ratio, classes and the number of stages come from the
    shapes of the tensors. What shapes can't tell comes from the arguments, else from a safetensors
    file's metadata (``rho``, ``num_heads``, ``residual_divisor``, ``stages``), else from what is
    known of the networks of the paper.

    Args:
        path_or_state_dict: a ``.safetensors`` file, a ``torch.save`` file (only its tensors are
            loaded), a state dict (the names may be wrapped in ``model`` or ``state_dict``), or
            the name of a release, such as ``"deit-s-0.7"``, which is downloaded once.
        keep_ratio: ρ, or one ratio for each stage; else from the metadata or the file's name
            (``dynamic-vit_384_r0.7.pth``).
        num_heads: needed for a size that the paper does not have; for DeiT width / 64.
        stages: blocks before which tokens are dropped; by default 1/4, 2/4, 3/4 of the depth for
            three stages.
        residual_divisor: of LV-ViT; needed for a size that it does not come in.
        ema: take the moving average of the weights, where the file holds one beside them. The
            published accuracy is that of the weights themselves.

    Returns:
        The model in ``eval()``.

    Raises:
        InputError: if the file can't be read or had, is of another architecture, or leaves open
            what neither metadata nor arguments say.
    """
    if is_release(path_or_state_dict):
        path_or_state_dict = download(path_or_state_dict)
    return recognize(
        path_or_state_dict,
        keep_ratio,
        num_heads,
        stages=stages,
        residual_divisor=residual_divisor,
        ema=ema,
    ).build()
