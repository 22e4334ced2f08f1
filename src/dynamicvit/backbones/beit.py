"""timm's ``Beit``: BEiT and BEiT v2, with relative position bias gathered for each image."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.beit import Attention, Beit, Block
from torch import Tensor

from dynamicvit.backbones.eva import gamma_scaled, split_qkv
from dynamicvit.backbones.timm_vit import TimmBackbone
from dynamicvit.layers.tokens import Heads, Tokens


class BeitBackbone(TimmBackbone):
    """Pre-norm blocks with a bias for every pair of places, per block or shared."""

    family = "timm Beit (BEiT, BEiT v2)"
    model_classes = (Beit,)
    block_classes = (Block,)
    attention_classes = (Attention,)

    def embed(self, images: Tensor) -> Tokens:
        module = self.module
        x = module.patch_embed(images)
        x = torch.cat([module.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if module.pos_embed is not None:
            x = x + module.pos_embed
        shared = None if module.rel_pos_bias is None else module.rel_pos_bias()
        return self.tokens(module.pos_drop(x), images, shared)

    def can_pool(self, kind: str) -> bool:
        return kind in ("token", "avg")

    def qkv(
        self, block: Any, x: Tensor, queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return split_qkv(block.attn, block.norm1(x), queries)

    def placed(
        self, i: int, qkv: tuple[Tensor, Tensor, Tensor], tokens: Tokens, queries: int | None = None
    ) -> Heads:
        bias, attn = tokens.position, self.blocks[i].attn  # the position is shared by the blocks
        if attn.relative_position_bias_table is not None:
            own = attn._get_rel_pos_bias()[0]
            bias = own if bias is None else own + bias
        bias = pair_bias(bias, tokens, queries)
        return Heads(*qkv, None if bias is None else bias.to(qkv[0].dtype))

    def call_arguments(self, i: int, tokens: Tokens) -> tuple[Any, ...] | None:
        # Its bias is of all pairs of places, and nothing is added to it.
        whole = tokens.index is None and tokens.size is None and not tokens.added
        return (tokens.x, tokens.position) if whole else None

    def layer_scale(self, block: Any, branch: int, x: Tensor) -> Tensor:
        return gamma_scaled(block, branch, x)


def pair_bias(bias: Tensor | None, tokens: Tokens, queries: int | None = None) -> Tensor | None:
    """The relative position bias of the held tokens.

    Args:
        bias: ``(H, P + N, P + N)``, the backbone's own P prefix tokens first; or ``None``.
        tokens: prefix tokens and the M held patch tokens. Added prefix tokens take the place of
            the first of all.
        queries: how many of the first tokens attend, which are the rows; ``None`` for all.

    Returns:
        ``(1, H, P + N, P + N)``, or ``(B, H, P + M, P + M)`` gathered for each image.
    """
    if bias is None:
        return None
    if tokens.index is None and not tokens.added:
        return bias[None, :, :queries]
    own = tokens.num_prefix - tokens.added
    index = tokens.kept_index()
    prefix = torch.arange(own, device=bias.device).expand(index.shape[0], -1)
    added = prefix.new_zeros(index.shape[0], tokens.added)
    place = torch.cat([prefix, added, index + own], dim=1)
    return bias[:, place[:, :queries, None], place[:, None, :]].transpose(0, 1)
