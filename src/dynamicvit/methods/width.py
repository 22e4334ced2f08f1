"""Width scaling: the same depth, narrower and dense, cut out of the dense weights.

The paper's Fig. 4 sets DynamicViT against smaller models of the same family. Here the smaller one
starts from the weights that the others start from: it is sliced out of them and fine-tuned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, cast

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dynamicvit.core.method import Method
from dynamicvit.core.registry import register_method
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError


@register_method(
    "narrow",
    does="drops no tokens: a narrower network, cut out of the dense weights",
    paper="Rao et al., NeurIPS 2021, Section 4 (model scaling)",
)
class Narrow(Method):
    """A structural control, which has no stages: the network itself is another (:func:`narrow`)."""

    takes_any_schedule = False

    @classmethod
    def schedule(cls, *_: object, **__: object) -> Schedule:
        """None.

        Raises:
            InputError: always, since the budget lies in the weights.
        """
        raise InputError(
            "a narrow network drops no tokens, its budget is its width: cut another out of the "
            'dense one, sparsify(dense, keep_ratio, method="narrow")'
        )


def narrow(backbone: nn.Module, head_width: int) -> nn.Module:
    """A narrower copy: all heads, each ``head_width`` wide; embedding and MLP in proportion.

    Kept are the channels that weigh most, in the order that they had. Of the embedding: by what is
    written to them times what is read from them, the same channels in every layer, since residuals
    add them. (The loudest are hardly read, but every norm hangs on them.) In each head: query and
    key by the product of their norms, value by the product of its norm and its column's in the
    projection. Of an MLP likewise.

    Args:
        backbone: a ``VisionTransformer`` of timm with heads as wide together as its tokens.
        head_width: of each head, less than it has.

    Returns:
        The copy; the backbone is not changed.

    Raises:
        InputError: for another kind of backbone, or a width that can't be.
    """
    _check(backbone, head_width)
    small = cast(Any, copy.deepcopy(backbone))
    heads = small.blocks[0].attn.num_heads
    old = small.embed_dim
    width = heads * head_width
    kept = _best(_read(small) * _written(small), width)
    for block in small.blocks:
        _narrow_attention(block.attn, kept, head_width)
        mlp = block.mlp
        hidden = mlp.fc1.out_features * width // old
        inner = _best(mlp.fc1.weight.norm(dim=1) * mlp.fc2.weight.norm(dim=0), hidden)
        _cut(mlp.fc1, out=inner, into=kept)
        _cut(mlp.fc2, out=kept, into=inner)
        for norm in (block.norm1, block.norm2, block.ls1, block.ls2):
            _cut(norm, out=kept)
    for part in ("norm_pre", "norm", "fc_norm"):
        _cut(getattr(small, part), out=kept)
    _cut(small.patch_embed.proj, out=kept)
    for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        value = getattr(small, name, None)
        if value is not None:
            setattr(small, name, nn.Parameter(value.detach()[..., kept]))
    for part in _classifiers(small):
        _cut(part, into=kept)
    small.embed_dim = small.num_features = small.head_hidden_size = width
    if hasattr(small, "_model_args"):  # timm's record of what the network was made with
        small._model_args = {**small._model_args, "embed_dim": width}
    return small


def _narrow_attention(attn: Any, kept: Tensor, head_width: int) -> None:
    """Slice one attention; queries and keys lose the same channels of each head."""
    heads, old = attn.num_heads, attn.head_dim
    query, key, value = attn.qkv.weight.norm(dim=1).reshape(3, heads, old)
    out = attn.proj.weight.norm(dim=0).reshape(heads, old)
    first = torch.arange(heads, device=out.device)[:, None] * old
    paired = (_best(query * key, head_width) + first).flatten()
    mixed = (_best(value * out, head_width) + first).flatten()
    whole = heads * old
    _cut(attn.qkv, out=torch.cat([paired, whole + paired, 2 * whole + mixed]), into=kept)
    _cut(attn.proj, out=kept, into=mixed)
    attn.head_dim, attn.attn_dim = head_width, heads * head_width
    attn.scale = head_width**-0.5


def _cut(module: nn.Module, out: Tensor | None = None, into: Tensor | None = None) -> None:
    """Keep some of a layer's outputs and inputs; of a norm or a scale, some of its channels."""
    with torch.no_grad():
        for name, value in list(module.named_parameters(recurse=False)):
            if out is not None:
                value = value[out]
            if into is not None and value.ndim > 1:
                value = value[:, into]
            setattr(module, name, nn.Parameter(value.clone()))
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        module.out_channels = len(module.weight)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)


def _read(backbone: Any) -> Tensor:
    """``(C,)``: how much the layers that read the embedding weigh each channel of it."""
    readers = [(block.norm1, block.attn.qkv) for block in backbone.blocks]
    readers += [(block.norm2, block.mlp.fc1) for block in backbone.blocks]
    last = backbone.norm if isinstance(backbone.norm, nn.LayerNorm) else backbone.fc_norm
    readers += [(last, part) for part in _classifiers(backbone)]
    weights = (linear.weight * norm.weight for norm, linear in readers)
    return torch.stack([weight.square().sum(dim=0) for weight in weights]).sum(dim=0)


def _written(backbone: Any) -> Tensor:
    """``(C,)``: how much embedding and blocks write to each channel of it."""
    parts = [backbone.patch_embed.proj.weight.flatten(1).square().sum(dim=1)]
    if backbone.pos_embed is not None:
        parts.append(backbone.pos_embed.square().mean(dim=(0, 1)))
    for block in backbone.blocks:
        for linear, scale in ((block.attn.proj, block.ls1), (block.mlp.fc2, block.ls2)):
            gamma = getattr(scale, "gamma", None)
            rows = linear.weight if gamma is None else linear.weight * gamma[:, None]
            parts.append(rows.square().sum(dim=1))
    return torch.stack(parts).sum(dim=0)


def _classifiers(backbone: Any) -> Iterable[nn.Linear]:
    parts = (getattr(backbone, name, None) for name in ("head", "head_dist"))
    return [part for part in parts if isinstance(part, nn.Linear)]


def _best(score: Tensor, count: int) -> Tensor:
    """Ascending indices of the highest scores along the last dimension."""
    return score.detach().topk(count, dim=-1).indices.sort(dim=-1).values


def _check(backbone: nn.Module, head_width: int) -> None:
    problem = why_not(backbone)
    if problem is not None:
        raise InputError(f"width scaling: {type(backbone).__name__} has {problem}")
    old = cast(Any, backbone).blocks[0].attn.head_dim
    if not 0 < head_width < old:
        raise InputError(f"a narrower head is 1 to {old - 1} wide, got {head_width}")


def why_not(backbone: nn.Module) -> str | None:
    """``None`` if the backbone can be narrowed, else what it has that can't be sliced."""
    if type(backbone) not in (VisionTransformer, VisionTransformerDistilled):
        return "another layout than timm's VisionTransformer"
    network = cast(Any, backbone)
    if network.attn_pool is not None:
        return "attention pooling"
    for block in network.blocks:
        attn = block.attn
        if attn.num_heads * attn.head_dim != network.embed_dim:
            return "heads of another width than its tokens"
        parts = (attn.q_norm, attn.k_norm, attn.norm, block.mlp.norm)
        if any(not isinstance(part, nn.Identity) for part in parts) or attn.gate is not None:
            return "norms or gates inside attention or MLP"
        if type(block.mlp).__name__ != "Mlp":
            return f"the MLP class {type(block.mlp).__name__}"
    return None
