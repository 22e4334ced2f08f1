"""Which form of attention runs, by size, precision and device.

Measured by ``benchmarks/training_step.py``; the table is in docs/results.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: With fewer keys than so many times the heads' width, the explicit form is the faster one: a
#: column of the weights is then little more than the columns that the fused form adds and mixes.
KEYS_PER_WIDTH = 2


def fused_form_fits(
    query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, dropout_p: float
) -> bool:
    """Whether attention under a decision takes the fused form.

    It does where that is the faster one, unless it can't:

    - in half precision, whose smallest numbers don't reach down as far as a dropped key can be up;
    - with dropout, which is of weights that this form does not have;
    - with a bias: kernels that know its gradient build the matrix;
    - without values (meta device, a graph being compiled): some of them decide what is run.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, M, D)``.
        value: ``(B, H, M, D)``.
        bias: added to the logits, or ``None``.
        dropout_p: dropout probability of the attention weights.
    """
    return (
        key.shape[-2] >= KEYS_PER_WIDTH * key.shape[-1]
        and query.dtype == key.dtype == value.dtype != torch.float16
        and bias is None
        and dropout_p == 0.0
        and not query.is_meta
        and not torch.compiler.is_compiling()
    )


def products_beat_the_kernel(query: Tensor) -> bool:
    """Whether plain matrix products beat PyTorch's fused kernel.

    They do for training on a CPU in bfloat16, where the kernel is slow, backward above all.

    Args:
        query: ``(B, H, Q, D)``.
    """
    return query.requires_grad and query.dtype == torch.bfloat16 and query.device.type == "cpu"
