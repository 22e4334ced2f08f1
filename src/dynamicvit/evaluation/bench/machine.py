"""The machine that is measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

#: Of the runtimes that are not PyTorch's.
_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """The CPU's name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def versions(runtimes: Iterable[str]) -> dict[str, str]:
    """Those of torch and of the packages that some runtimes are.

    Args:
        runtimes: of runtimes or formats, the names.
    """
    packages = [_PACKAGES[name] for name in dict.fromkeys(runtimes) if name in _PACKAGES]
    return {"torch": torch.__version__, **{package: version(package) for package in packages}}


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """So many CPU threads for torch, and for the exported files that are loaded meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
