"""The names of precisions, and what PyTorch computes in under each."""

from __future__ import annotations

import torch

from dynamicvit.errors import InputError

#: By name, the dtype of autocast; ``None`` computes in the dtype of the weights. int8 is none of
#: them: exported files have it, and each runtime says which precisions it takes.
AUTOCAST: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype of autocast that a precision names.

    Raises:
        InputError: for any other name.
    """
    if precision not in AUTOCAST:
        raise InputError(f"precision {precision!r}: give one of {', '.join(AUTOCAST)}")
    return AUTOCAST[precision]


def precision_name(dtype: torch.dtype | None) -> str:
    """The name of a dtype of autocast."""
    return next(name for name, each in AUTOCAST.items() if each is dtype)


def autocast(device_type: str, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast in a dtype; with ``None`` it does nothing.

    Args:
        device_type: "cpu", "cuda" or another.
        dtype: of :data:`AUTOCAST`.
    """
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not None)
