"""What may be assumed of a layer before it is taken apart."""

from __future__ import annotations

import torch
from torch import nn

from dynamicvit.layers.onednn import OneDNNLinear


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is no more than its weights.

    Others compute something else, or want to be called: layers that are quantized or have an
    adapter (LoRA), weights that are no plain tensors, hooks, a ``forward`` of the instance's own.
    """
    if type(layer) not in (nn.Linear, OneDNNLinear) or not is_unhooked(layer):
        return False
    # A compiler or exporter has put its own kind of tensors there.
    return torch.compiler.is_compiling() or type(layer.weight) in (nn.Parameter, torch.Tensor)


def is_unhooked(module: nn.Module) -> bool:
    """Whether calling a module is no more than its class's ``forward``."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return "forward" not in vars(module) and not any(hooks)
