"""Linear layers in float32 by oneDNN instead of MKL, where that is faster.

PyTorch has both on board. It multiplies float32 matrices on x86 by MKL, which on processors that
are not Intel's reaches less than half of what oneDNN does with the same instructions, and takes
oneDNN for bfloat16 and convolutions only. The numbers are the same up to rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynamicvit.errors import InputError


class OneDNNLinear(nn.Linear):
    """A linear layer with the same weights, run by oneDNN at inference in float32 on a CPU.

    Everywhere else it is the plain layer: with gradients enabled, in other precisions, in graphs
    that are compiled, traced or exported.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``.

        Args:
            x: of any shape that ends in the number of features.
        """
        if not _fits(x, self.weight):
            return super().forward(x)
        return _product(x, self.weight, self.bias)


def use_onednn(model: nn.Module, enable: bool = True) -> int:
    """Let a network's linear layers be run by oneDNN, or by PyTorch's choice again.

    Weights, ``state_dict`` and gradients stay what they are: only the layers' class changes, and
    only that of exact ``nn.Linear``, which tools that replace layers then don't find.

    Args:
        model: any network.
        enable: ``False`` to take it back.

    Returns:
        How many layers were changed.

    Raises:
        InputError: if this PyTorch can't.
    """
    if enable:
        check_onednn()
    old, new = (nn.Linear, OneDNNLinear) if enable else (OneDNNLinear, nn.Linear)
    layers = [module for module in model.modules() if type(module) is old]
    for layer in layers:
        layer.__class__ = new
    return len(layers)


def check_onednn() -> None:
    """See to it that this PyTorch can.

    Raises:
        InputError: if it can't.
    """
    if not _works():
        raise InputError(f"torch {torch.__version__} can't run linear layers by oneDNN here")


def _fits(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _works() -> bool:
    """Whether the operator is there and does what is expected: it is not part of torch's API."""
    x, weight, bias = torch.randn(2, 3, 8), torch.randn(4, 8), torch.randn(4)
    try:
        with torch.no_grad():
            found = _product(x, weight, bias)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(found, nn.functional.linear(x, weight, bias), atol=1e-5)
