"""The machine: cores, names, threads, peak memory."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from dynamicvit.runtimes import RUNTIMES


def available_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name(device_type: str = "cpu") -> str:
    """Name of the GPU, or of the CPU as far as the system knows it."""
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


def versions(runtimes: Iterable[str]) -> dict[str, str]:
    """Versions of torch and of the packages of runtimes, by package.

    Args:
        runtimes: keys of :data:`~dynamicvit.runtimes.RUNTIMES`.
    """
    packages = dict.fromkeys(RUNTIMES[name].package for name in runtimes)
    others = {each: version(each) for each in packages if each != "torch"}
    return {"torch": torch.__version__, **others}  # torch's own has the build


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """CPU threads of torch, and of the exported files that are loaded meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_resident_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    try:
        # On Linux ru_maxrss of a new process starts at its parent's peak; VmHWM at its own.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        raise RuntimeError("peak memory can't be measured on Windows")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
