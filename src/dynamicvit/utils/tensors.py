"""Tensors of files, checked before they are used (plain, finite); what tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from dynamicvit.errors import InputError
from dynamicvit.utils.words import first_few

#: Types of numbers that weights and counters have, or that are converted to them.
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
#: Numbers of a tensor that may repeat those that are stored.
_MOST_REPEATED = 1 << 24


def check_tensors(tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that tensors are plain ones, and that their values are finite.

    Args:
        tensors: by name; those on the meta device have no values to check.
        source: how messages begin.

    Raises:
        InputError: naming those that are not.
    """
    kinds = {name: kind for name, tensor in tensors.items() if (kind := _unusual(tensor))}
    if kinds:
        kind = next(iter(kinds.values()))
        alike = first_few("", [name for name in kinds if kinds[name] == kind])
        raise InputError(f"{source}: holds {kind} tensors, plain ones are needed:{alike}")
    # A network with NaN in its weights runs: it gives the same answer for every image.
    finite = {n: bool(t.float().isfinite().all()) for n, t in tensors.items() if not t.is_meta}
    if broken := first_few("NaN or infinity in", [name for name in finite if not finite[name]]):
        raise InputError(
            f"{source}: its weights are not finite: {broken}; take a checkpoint from before the "
            f"training diverged"
        )


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: tells one set of weights from another."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _held(tensor: Tensor) -> int:
    """Bytes of the values that a tensor has, which its strides may repeat without end."""
    return tensor.nbytes if tensor.is_meta else tensor.untyped_storage().nbytes()


def _unusual(tensor: Tensor) -> str:
    """What kind of tensor this is that can't be a weight; empty for a plain one."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "sparse or nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.dtype not in _DTYPES:
        return str(tensor.dtype).removeprefix("torch.")
    if tensor.numel() > _MOST_REPEATED and tensor.nbytes > _held(tensor):
        return "expanded (values that repeat)"
    return ""
