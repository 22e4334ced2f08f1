"""The runtimes that need no file: PyTorch as it is, compiled, and with oneDNN's linear layers."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import partial
from types import FunctionType

import torch
from torch import Tensor, nn

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork
from dynamicvit.errors import InputError
from dynamicvit.layers.onednn import check_onednn, use_onednn
from dynamicvit.runtimes.base import Runtime
from dynamicvit.utils.precision import autocast, autocast_dtype


def infer(work: Callable[[], object], device_type: str, precision: str) -> object:
    """Call a function of PyTorch at inference; autocast is entered anew, as evaluation loops do.

    Args:
        work: the function.
        device_type: of its images.
        precision: a key of :data:`~dynamicvit.utils.precision.AUTOCAST`.
    """
    with torch.inference_mode(), autocast(device_type, autocast_dtype(precision)):
        return work()


class Eager(Runtime):
    """PyTorch, operation by operation; bf16 is autocast's, as in training and evaluation."""

    name = "eager"
    precisions = ("fp32", "bf16")

    def ready(self, precision: str = "fp32") -> None:
        """PyTorch is always here."""

    def dense(self, model: DynamicViT) -> nn.Module:
        """The backbone, run by its own library's code."""
        return DenseNetwork(model)

    def prepare(self, network: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
        """The network itself."""
        return partial(infer, partial(network, images), images.device.type, precision)


class Compiled(Runtime):
    """``torch.compile`` for one shape, with frozen weights; on a GPU with CUDA graphs."""

    name = "compile"
    precisions = ("fp32", "bf16")

    def ready(self, precision: str = "fp32") -> None:
        """Check that there is a C++ compiler, which GPUs need too."""
        if not has_compiler():
            raise InputError("torch.compile needs a C++ compiler: install g++")

    def prepare(self, network: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
        """The network, compiled at the first call."""
        kind = images.device.type
        # Freezing saves autocast its casts. Mode "reduce-overhead", which is CUDA graphs, would
        # exclude other options.
        options = {"freezing": True, "triton.cudagraphs": kind == "cuda"}
        compiled = torch.compile(_with_own_code(network), dynamic=False, options=options)
        return partial(infer, partial(compiled, images), kind, precision)


class OneDNN(Runtime):
    """Eager mode with float32 linear layers by oneDNN; autocast's bfloat16 is oneDNN's anyway."""

    name = "onednn"
    precisions = ("fp32",)

    def ready(self, precision: str = "fp32") -> None:
        """Check that this PyTorch has oneDNN."""
        check_onednn()

    def why_not(self, precision: str, device_type: str) -> str | None:
        """It runs on the CPU only."""
        if device_type != "cpu":
            return f"{self.name} computes on the CPU"
        return super().why_not(precision, device_type)

    def prepare(self, network: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
        """A copy of the network with other layers and the same weights."""
        shared = {id(weight): weight for weight in network.parameters()}
        network = copy.deepcopy(network, shared)
        use_onednn(network)
        return partial(infer, partial(network, images), images.device.type, precision)


def has_compiler() -> bool:
    """Whether there is a C++ compiler that PyTorch would take."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return shutil.which(get_cpp_compiler()) is not None
    except Exception:  # torch's own class, InvalidCxxCompiler, which moves about
        return False


def _with_own_code(network: nn.Module) -> Callable[[Tensor], object]:
    """The network as a function for the compiler.

    The compiler counts what it has compiled for a piece of code, and after eight networks or batch
    sizes that share theirs it goes on uncompiled.
    """

    def run(images: Tensor) -> object:
        return network(images)

    return FunctionType(run.__code__.replace(), globals(), closure=run.__closure__)
