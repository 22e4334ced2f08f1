"""The runtimes without a file: eager PyTorch, compiled, and with oneDNN's linear layers."""

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
    """Call a function in inference mode, under autocast that each call enters, as evaluation does.

    Args:
        work: the function.
        device_type: of its images.
        precision: a key of :data:`~dynamicvit.utils.precision.AUTOCAST`.
    """
    with torch.inference_mode(), autocast(device_type, autocast_dtype(precision)):
        return work()


class Eager(Runtime):
    """PyTorch without a compiler; bf16 is autocast's, as in training and evaluation."""

    name = "eager"
    precisions = ("fp32", "bf16")

    def dense(self, model: DynamicViT) -> nn.Module:
        """The backbone, run by its own library's code."""
        return DenseNetwork(model)

    def prepare(self, network: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
        """The network itself."""
        return partial(infer, partial(network, images), images.device.type, precision)


class Compiled(Runtime):
    """``torch.compile`` for one shape, with frozen weights; with CUDA graphs on a GPU."""

    name = "compile"
    precisions = ("fp32", "bf16")

    def ready(self, precision: str = "fp32") -> None:
        """Check that there is a C++ compiler, which a GPU needs too."""
        if not has_compiler():
            raise InputError("torch.compile needs a C++ compiler: install g++")

    def prepare(self, network: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
        """The network, compiled at the first call."""
        kind = images.device.type
        # Freezing saves autocast's casts. Mode "reduce-overhead", which is CUDA graphs, excludes
        # other options.
        options = {"freezing": True, "triton.cudagraphs": kind == "cuda"}
        compiled = torch.compile(_with_own_code(network), dynamic=False, options=options)
        return partial(infer, partial(compiled, images), kind, precision)


class OneDNN(Runtime):
    """Eager mode with float32 linear layers by oneDNN; autocast's bfloat16 is oneDNN's anyway."""

    name = "onednn"
    precisions = ("fp32",)
    devices = ("cpu",)

    def ready(self, precision: str = "fp32") -> None:
        """Check that this PyTorch has oneDNN."""
        check_onednn()

    def prepare(self, network: nn.Module, images: Tensor, precision: str) -> Callable[[], object]:
        """A copy of the network with other layers; weights are shared."""
        shared = {id(weight): weight for weight in network.parameters()}
        network = copy.deepcopy(network, shared)
        use_onednn(network)
        return partial(infer, partial(network, images), images.device.type, precision)


def has_compiler() -> bool:
    """Whether there is a C++ compiler for PyTorch."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return shutil.which(get_cpp_compiler()) is not None
    except Exception:  # InvalidCxxCompiler, which has moved between torch's modules
        return False


def _with_own_code(network: nn.Module) -> Callable[[Tensor], object]:
    """The network as a function with a code object of its own.

    The compiler counts what it compiles for each code object, and stops after eight networks or
    batch sizes that share one.
    """

    def run(images: Tensor) -> object:
        return network(images)

    return FunctionType(run.__code__.replace(), globals(), closure=run.__closure__)
