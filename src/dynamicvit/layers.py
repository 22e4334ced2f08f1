"""What may be assumed of a layer before it is taken apart."""

from __future__ import annotations

from torch import nn

from dynamicvit.onednn import OneDNNLinear


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is no more than its weights: no other class, and no hook that may act.

    Quantised layers, adapters (LoRA) and pruning by hooks compute something else.
    """
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) in (nn.Linear, OneDNNLinear) and not hooks
