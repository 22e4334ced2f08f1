"""The names of precisions, and what PyTorch computes in under each."""

from __future__ import annotations

import logging
import math
import os
import time
from functools import cache

import torch
import torch.nn.functional as F

from dynamicvit.errors import InputError

_log = logging.getLogger(__name__)

#: Where bfloat16 is computed natively, a product takes a third of its time in float32; where it is
#: emulated, longer than in float32: 1.1 times (AVX-512 without bf16) to 40 (AVX2).
_NATIVE = 0.8
_SIZE = 256
#: Other work on the CPU makes single times longer, which the shortest of enough pairs are free of.
_TRIES, _MOST_TRIES = 5, 60
#: Emulation that takes so many times as long is no other work.
_SURELY = 3.0

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


def worthwhile(dtype: torch.dtype | None, device: torch.device | str) -> torch.dtype | None:
    """The dtype of autocast, or ``None`` with a warning in the log where it would only cost time.

    Args:
        dtype: of :data:`AUTOCAST`.
        device: where to compute.
    """
    device = torch.device(device)
    if dtype is not torch.bfloat16 or not _emulates_bf16(device.type):
        return dtype
    if os.environ.get("RANK", "0") == "0":  # once, where several processes share a run
        _log.warning("bf16 is emulated on this %s, slower than fp32: taking fp32", _unit(device))
    return None


def _unit(device: torch.device) -> str:
    return "CPU" if device.type == "cpu" else f"device ({device.type})"


@cache
def _emulates_bf16(device_type: str) -> bool:
    if device_type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and _bf16_takes_longer()


@torch.inference_mode(False)  # whatever the caller is in: a backward pass is timed
@torch.enable_grad()
def _bf16_takes_longer() -> bool:
    """By the shortest of times in turn; a verdict for float32 needs more of them."""
    short = full = math.inf
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for the one that other work holds up
    try:
        for tried in range(1, _MOST_TRIES + 1):
            short = min(short, _seconds(torch.bfloat16))
            full = min(full, _seconds(torch.float32))
            if tried >= _TRIES and not _NATIVE * full < short < _SURELY * full:
                break
    finally:
        torch.set_num_threads(threads)
    return short > _NATIVE * full


def _seconds(dtype: torch.dtype) -> float:
    """The time of a linear layer with its backward pass: no table of CPUs is complete."""
    inputs = torch.ones(_SIZE, _SIZE, dtype=dtype, requires_grad=True)
    weight = torch.ones(_SIZE, _SIZE, dtype=dtype, requires_grad=True)
    gradient = torch.ones(_SIZE, _SIZE, dtype=dtype)
    began = time.perf_counter()
    F.linear(inputs, weight).backward(gradient)
    return time.perf_counter() - began
