"""timm's ``Beit``: BEiT and BEiT v2, with relative position bias gathered for each image."""

from __future__ import annotations

import torch
from timm.models.beit import Attention, Beit, Block
from torch import Tensor, nn

from dynamicvit.adapters.eva import scaled, split_heads
from dynamicvit.adapters.timm_common import TimmAdapter
from dynamicvit.adapters.vit import project
from dynamicvit.attention import attend
from dynamicvit.tokens import Tokens


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
            x = x + backbone.pos_embed
        shared = None if backbone.rel_pos_bias is None else backbone.rel_pos_bias()
        return Tokens(backbone.pos_drop(x), backbone.num_prefix_tokens), shared

    def block(
        self, block: nn.Module, depth: int, tokens: Tokens, position: Tensor | None
    ) -> Tensor:
        x, attn = tokens.x, block.attn
        bias = position
        if attn.relative_position_bias_table is not None:
            own = attn._get_rel_pos_bias()[0]
            bias = own if position is None else own + position
        attended = self.attention(
            attn, block.norm1(x), tokens.key_decision(), pair_bias(bias, tokens.index)
        )
        x = x + block.drop_path1(scaled(block.gamma_1, attended))
        return x + block.drop_path2(scaled(block.gamma_2, block.mlp(block.norm2(x))))

    def attention(
        self, attn: nn.Module, x: Tensor, decision: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Self-attention of ``(B, T, C)`` under a key decision ``(B, T)`` and a pair bias."""
        query, key, value = split_heads(attn, x)
        out = attend(
            query,
            key,
            value,
            decision=decision,
            bias=None if bias is None else bias.to(query.dtype),
            dropout_p=attn.attn_drop.p if attn.training else 0.0,
        )
        return project(attn, x, out)


def pair_bias(bias: Tensor | None, index: Tensor | None) -> Tensor | None:
    """The relative position bias of the held tokens.

    Args:
        bias: ``(H, 1 + N, 1 + N)``, the class token first; or ``None``.
        index: ``(B, M)`` original patch of each held token, or ``None`` when all are held.

    Returns:
        ``(1, H, 1 + N, 1 + N)``, or ``(B, H, 1 + M, 1 + M)`` gathered for each image.
    """
    if bias is None:
        return None
    if index is None:
        return bias[None]
    place = torch.cat([index.new_zeros(index.shape[0], 1), index + 1], dim=1)
    return bias[:, place[:, :, None], place[:, None, :]].transpose(0, 1)
