"""Softmax attention over the tokens that are held: the pruned path's, and the dense network's.

And the query, key and value that it works on; where only some tokens attend, only those have a
query.

Attention under a decision is in :mod:`dynamicvit.layers.masked_attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib.util import find_spec
from threading import Lock, get_ident
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from dynamicvit.layers.onednn import OneDNNLinear
from dynamicvit.layers.tokens import Heads

T = TypeVar("T")
_Path = TypeVar("_Path", bound=Callable[..., Any])


def softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    bias: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention over all keys.

    Args:
        query: ``(B, H, Q, D)``.
        key: ``(B, H, M, D)``.
        value: ``(B, H, M, D)``.
        bias: broadcastable to ``(B, H, Q, M)``, added to the logits.
        dropout_p: dropout probability of the attention weights.
        scale: of the products of query and key; by default 1/√D.

    Returns:
        ``(B, H, Q, D)``.
    """
    if not products_beat_the_kernel(query):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout_p, scale=scale
        )
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query if factor == 1.0 else query * factor) @ key.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    weights = logits.softmax(dim=-1)
    return (F.dropout(weights, dropout_p) if dropout_p > 0.0 else weights) @ value


def products_beat_the_kernel(query: Tensor) -> bool:
    """Whether plain matrix products beat PyTorch's fused kernel.

    They do for training on a CPU in bfloat16, where the kernel is slow, backward above all
    (docs/notebook/training-step.md).

    Args:
        query: ``(B, H, Q, D)``.
    """
    return query.requires_grad and query.dtype == torch.bfloat16 and query.device.type == "cpu"


def trains_better_by_products(x: Tensor) -> bool:
    """The same of a block's attention, asked of what enters the block: ``(B, T, C)``."""
    if not torch.is_grad_enabled() or x.device.type != "cpu":
        return False
    autocast = torch.is_autocast_enabled("cpu")
    return (torch.get_autocast_dtype("cpu") if autocast else x.dtype) == torch.bfloat16


def proportional(bias: Tensor | None, size: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias with which a key counts for as many as its token is made of.

    Proportional attention (Bolya et al., ICLR 2023, Eq. 1): exp(P + log s) = s · exp(P).

    Args:
        bias: broadcastable to ``(B, H, Q, M)``, or ``None``.
        size: ``(B, M)``, or ``None`` when each counts for one. Without gradient.
        dtype: of the logits.
    """
    if size is None:
        return bias
    logs = size.log().to(dtype)[:, None, None, :]
    return logs if bias is None else bias + logs


def packed_attention(parts: Sequence[Heads]) -> Tensor:
    """Attention within each image of a batch whose images hold different numbers of tokens.

    On a GPU in half precision all images run in one kernel for sequences of any length; else each
    part, whose images hold the same number, runs by itself.

    Args:
        parts: of each the heads ``(B', H, T', D)``.

    Returns:
        ``(R, H, D)``, the rows of all images, part by part.
    """
    query = parts[0].query
    half = query.dtype in (torch.float16, torch.bfloat16)
    plain = all(part.bias is None for part in parts)
    if query.is_cuda and half and plain and find_spec("torch.nn.attention.varlen"):
        return _varlen_attention(parts)
    attended = (softmax_attention(q, k, v, bias=bias) for q, k, v, bias in parts)
    # Attention writes its results token by token: putting them together is one copy.
    return torch.cat([out.transpose(1, 2).flatten(0, 1) for out in attended])


def _varlen_attention(parts: Sequence[Heads]) -> Tensor:
    """The same by torch's attention for sequences of any length (CUDA, half precision)."""
    from torch.nn.attention.varlen import varlen_attn

    shapes = [(part.query.shape[0], part.query.shape[2]) for part in parts]
    lengths = torch.tensor([length for batch, length in shapes for _ in range(batch)])
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    ends = ends.to(device=parts[0].query.device, dtype=torch.int32)
    query, key, value = (
        torch.cat([heads.transpose(1, 2).flatten(0, 1) for heads in each])
        for each in zip(*(part[:3] for part in parts), strict=True)
    )
    longest = int(lengths.max())
    out = varlen_attn(query, key, value, ends, ends, longest, longest)
    assert isinstance(out, Tensor)  # a pair where sums of exponentials are asked for
    return out


# ---------------------------------------------------------------- query, key and value


def fused_qkv(
    qkv: nn.Module, x: Tensor, num_heads: int, queries: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one layer that gives all three.

    Args:
        qkv: from ``(B, T, C)`` to ``(B, T, 3 H D)``.
        x: ``(B, T, C)``.
        num_heads: H.
        queries: how many of the first tokens attend; ``None`` for all.

    Returns:
        ``(B, H, T or queries, D)``, ``(B, H, T, D)`` and ``(B, H, T, D)``.
    """
    if queries is not None and is_plain(qkv):
        return partial_qkv(x, qkv.weight, qkv.bias, num_heads, queries)
    query, key, value = separate(qkv(x), num_heads)
    return query[:, :, :queries], key, value


def partial_qkv(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, queries: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by the layer's weights, without the queries of tokens that don't attend.

    Args:
        x: ``(B, T, C)``.
        weight: ``(3 H D, C)``.
        bias: ``(3 H D)`` or ``None``.
        num_heads: H.
        queries: how many of the first tokens attend.
    """
    width = weight.shape[0] // 3
    parts = (None, None) if bias is None else (bias[:width], bias[width:])
    asked = F.linear(x[:, :queries], weight[:width], parts[0])
    key, value = separate(F.linear(x, weight[width:], parts[1]), num_heads, 2)
    return asked.unflatten(-1, (num_heads, -1)).transpose(1, 2), key, value


def first_products(
    x: Tensor, query: Tensor, query_bias: Tensor | None, key: Tensor, num_heads: int
) -> Tensor:
    """The first token's query times each token's key, without computing the keys.

    The product with ``W x`` is that of ``Wᵀ query`` with ``x``: H C operations a token in place of
    C². A bias of the keys would add the same to all products of a head, and is left out.

    Args:
        x: ``(B, T, C)``, what the layers read.
        query: ``(H D, C)``, the weights that give queries.
        query_bias: ``(H D)`` or ``None``.
        key: ``(H D, C)``, the weights that give keys.
        num_heads: H.

    Returns:
        ``(B, H, T)``, divided by √D.
    """
    asked = F.linear(x[:, 0], query, query_bias).unflatten(-1, (num_heads, -1)).transpose(0, 1)
    asked = asked * asked.shape[-1] ** -0.5
    # Head by head, with the batch as rows: the keys' weights are not copied for every image.
    weights = key.unflatten(0, (num_heads, -1)).to(asked.dtype)
    return torch.bmm(torch.bmm(asked, weights).transpose(0, 1), x.transpose(1, 2).to(asked.dtype))


def separate(x: Tensor, num_heads: int, count: int = 3) -> tuple[Tensor, ...]:
    """``count`` tensors ``(B, H, T, D)`` from ``(B, T, count H D)``."""
    batch, length, _ = x.shape
    return x.reshape(batch, length, count, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer is no more than its weights, so that it may be taken apart.

    Others compute something else, or want to be called: layers that are quantized or have an
    adapter (LoRA), weights that are no plain tensors, layers whose calls somebody watches.
    """
    if type(layer) not in (nn.Linear, OneDNNLinear) or is_watched(layer):
        return False
    # A compiler or exporter has put its own kind of tensors there.
    return torch.compiler.is_compiling() or type(layer.weight) in (nn.Parameter, torch.Tensor)


# ---------------------------------------------------------------- modules that are not called


def is_watched(module: nn.Module) -> bool:
    """Whether somebody watches the module's calls: by hooks, or by a ``forward`` in its place."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return "forward" in vars(module) or any(hooks)


def as_module(module: nn.Module, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What ``work`` gives, called as the module's own forward: with the module's hooks around it.

    For work that is done by a module's parts, so that whoever watches the module sees its inputs
    and outputs, and what moves weights to where they are needed (accelerate) moves them. A compiler
    sees the work alone.

    Args:
        module: stays as it is.
        work: gets the arguments.
        *args: what hooks see as the module's inputs.
        **kwargs: further arguments.
    """
    watched = is_watched(module) or _has_any_global_hook()
    if torch.compiler.is_compiling() or not watched:
        return work(*args, **kwargs)
    held, thread = vars(module), get_ident()
    slot = "_old_forward" if "_hf_hook" in held else "forward"  # the former where accelerate is
    with _replacing:
        instead = held.get(slot)
        if not isinstance(instead, _Instead):
            instead = held[slot] = _Instead(getattr(module, slot), slot in held)
        inside = thread in instead.work
        instead.work.setdefault(thread, work)
    if inside:
        return work(*args, **kwargs)
    try:
        return nn.Module.__call__(module, *args, **kwargs)
    finally:
        with _replacing:
            del instead.work[thread]
            if not instead.work:  # no other thread's
                del held[slot]
                if instead.held:
                    held[slot] = instead.before


def through_backbone(path: _Path) -> _Path:
    """Make the path of a network run as its backbone's own forward: with hooks around it."""

    @wraps(path)
    def run(self: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        return as_module(self.backbone, partial(path, self), images, *args, **kwargs)

    return cast(_Path, run)


_replacing = Lock()


class _Instead:
    """Work in the place of a module's forward while the module is called, of each thread its own.

    Args:
        before: the module's forward, which a thread without work gets.
        held: whether it was the module's own attribute, not its class's.
    """

    def __init__(self, before: Callable[..., Any], held: bool) -> None:
        self.before, self.held = before, held
        self.work: dict[int, Callable[..., Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.work.get(get_ident(), self.before)(*args, **kwargs)
