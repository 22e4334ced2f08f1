"""timm's ``VisionTransformer``: DeiT (distilled too), DeiT-III, AugReg, DINOv2, CLIP, SigLIP."""

from __future__ import annotations

from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dynamicvit.adapters.timm_common import TimmAdapter
from dynamicvit.attention import attend
from dynamicvit.tokens import Tokens


class ViTAdapter(TimmAdapter):
    """Pre-norm blocks with learned absolute positions; any number of prefix tokens."""

    family = "timm VisionTransformer (ViT, DeiT, DeiT-III, DINOv2, CLIP, SigLIP, registers)"
    model_classes = (VisionTransformer, VisionTransformerDistilled)
    block_classes = (Block,)
    attention_classes = (Attention,)

    def embed(self, backbone: nn.Module, images: Tensor) -> tuple[Tokens, Tensor | None]:
        x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images)))
        return Tokens(x, backbone.num_prefix_tokens), None

    def block(
        self, block: nn.Module, depth: int, tokens: Tokens, position: Tensor | None
    ) -> Tensor:
        x = tokens.x
        attended = self.attention(block.attn, block.norm1(x), tokens.key_decision())
        x = x + block.drop_path1(block.ls1(attended))
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    def attention(self, attn: nn.Module, x: Tensor, decision: Tensor | None) -> Tensor:
        """Self-attention of ``(B, T, C)`` under a key decision ``(B, T)``."""
        batch, length, _ = x.shape
        qkv = attn.qkv(x).reshape(batch, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        out = attend(
            attn.q_norm(query),
            attn.k_norm(key),
            value,
            decision=decision,
            dropout_p=attn.attn_drop.p if attn.training else 0.0,
        )
        return project(attn, x, out)

    def head(self, backbone: nn.Module, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        if not isinstance(backbone, VisionTransformerDistilled):
            return super().head(backbone, tokens, pre_logits)
        classed, distilled = backbone.head_drop(tokens.x[:, :2]).unbind(1)
        if pre_logits:
            return (classed + distilled) / 2
        return (backbone.head(classed) + backbone.head_dist(distilled)) / 2


def project(attn: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    """What follows attention in timm's attention classes: inner norm, gate, projection.

    Args:
        attn: the attention module.
        x: ``(B, T, C)``, its input.
        out: ``(B, H, T, D)``, the attended values.

    Returns:
        ``(B, T, C)``.
    """
    out = out.transpose(1, 2).flatten(2)
    norm = getattr(attn, "norm", None)
    if norm is not None:
        out = norm(out)
    gate = getattr(attn, "gate", None)
    if gate is not None:
        out = out * gate(x).sigmoid()
    return attn.proj_drop(attn.proj(out))
