"""What may be assumed of a layer before it is taken apart."""

from __future__ import annotations

import torch
from torch import nn

from dynamicvit.onednn import OneDNNLinear


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is no more than its weights.

    Others compute something else, or want to be called: layers that are quantised or have an
    adapter (LoRA), weights that are no plain tensors, hooks, a ``forward`` of the instance's own.
    """
    if type(layer) not in (nn.Linear, OneDNNLinear) or "forward" in vars(layer):
        return False
    # A compiler or exporter has put its own kind of tensors there.
    tensors = torch.compiler.is_compiling() or type(layer.weight) in (nn.Parameter, torch.Tensor)
    hooks = (
        layer._forward_hooks,
        layer._forward_pre_hooks,
        layer._backward_hooks,
        layer._backward_pre_hooks,
    )
    return tensors and not any(hooks)
