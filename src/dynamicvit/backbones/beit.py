"""timm's ``Beit``: BEiT and BEiT v2, with relative position bias gathered for each image."""

from __future__ import annotations

from typing import cast

import torch
from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn

from dynamicvit.backbones.eva import gamma_scaled, split_heads
from dynamicvit.backbones.timm_common import TimmAdapter
from dynamicvit.layers.tokens import Heads, Tokens


class BeitAdapter(TimmAdapter):
    """Pre-norm blocks with a bias for every pair of places, per block or shared."""

    family = "timm Beit (BEiT, BEiT v2)"
    model_classes = (Beit,)
    block_classes = (Block,)
    attention_classes = (Attention,)

    def embed(self, backbone: nn.Module, images: Tensor) -> tuple[Tokens, Tensor | None]:
        x = backbone.patch_embed(images)
        x = torch.cat([backbone.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if backbone.pos_embed is not None:
            x = x + cast(Tensor, backbone.pos_embed)
        shared = None if backbone.rel_pos_bias is None else backbone.rel_pos_bias()
        return Tokens(backbone.pos_drop(x), backbone.num_prefix_tokens), shared

    def can_pool(self, backbone: nn.Module, kind: str) -> bool:
        return kind in ("token", "avg")

    def heads(
        self,
        attn: nn.Module,
        x: Tensor,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> Heads:
        bias = position  # shared by the blocks
        if attn.relative_position_bias_table is not None:
            own = attn._get_rel_pos_bias()[0]
            bias = own if bias is None else own + bias
        query, key, value = split_heads(attn, x, queries)
        bias = pair_bias(bias, tokens, queries)
        return Heads(query, key, value, None if bias is None else bias.to(query.dtype))

    def layer_scale(self, block: nn.Module, branch: int, x: Tensor) -> Tensor:
        return gamma_scaled(block, branch, x)


def pair_bias(bias: Tensor | None, tokens: Tokens, queries: int | None = None) -> Tensor | None:
    """The relative position bias of the held tokens.

    Args:
        bias: ``(H, P + N, P + N)``, the backbone's own P prefix tokens first; or ``None``.
        tokens: prefix tokens and the M patches still held. Added prefix tokens take the place of
            the first of all.
        queries: how many of the first tokens ask, which are the rows; ``None`` for all.

    Returns:
        ``(1, H, P + N, P + N)``, or ``(B, H, P + M, P + M)`` gathered for each image.
    """
    if bias is None:
        return None
    if tokens.index is None and not tokens.added:
        return bias[None, :, :queries]
    own = tokens.num_prefix - tokens.added
    index = tokens.index
    if index is None:
        index = torch.arange(tokens.num_patches, device=bias.device).expand(tokens.x.shape[0], -1)
    prefix = torch.arange(own, device=bias.device).expand(index.shape[0], -1)
    added = prefix.new_zeros(index.shape[0], tokens.added)
    place = torch.cat([prefix, added, index + own], dim=1)
    return bias[:, place[:, :queries, None], place[:, None, :]].transpose(0, 1)
