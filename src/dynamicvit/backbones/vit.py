"""timm's ``VisionTransformer``: DeiT (distilled too), DeiT-III, AugReg, DINOv2, CLIP, SigLIP."""

from __future__ import annotations

from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dynamicvit.backbones.timm_common import TimmAdapter
from dynamicvit.layers.projections import fused_heads
from dynamicvit.layers.tokens import Heads, Tokens


class ViTAdapter(TimmAdapter):
    """Pre-norm blocks with learned absolute positions; any number of prefix tokens."""

    family = "timm VisionTransformer (ViT, DeiT, DeiT-III, DINOv2, CLIP, SigLIP, registers)"
    model_classes = (VisionTransformer, VisionTransformerDistilled)
    block_classes = (Block,)
    attention_classes = (Attention,)

    def embed(self, backbone: nn.Module, images: Tensor) -> tuple[Tokens, Tensor | None]:
        x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images)))
        return Tokens(x, backbone.num_prefix_tokens), None

    def heads(
        self,
        attn: nn.Module,
        x: Tensor,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> Heads:
        query, key, value = fused_heads(attn.qkv, x, attn.num_heads, queries)
        return Heads(attn.q_norm(query), attn.k_norm(key), value)

    def layer_scale(self, block: nn.Module, branch: int, x: Tensor) -> Tensor:
        return (block.ls1 if branch == 1 else block.ls2)(x)

    def reads(self, backbone: nn.Module) -> int | None:
        return 2 if isinstance(backbone, VisionTransformerDistilled) else super().reads(backbone)

    def can_pool(self, backbone: nn.Module, kind: str) -> bool:
        if isinstance(backbone, VisionTransformerDistilled):
            return kind == "token"  # its two heads read the two prefix tokens
        return super().can_pool(backbone, kind)

    def head(self, backbone: nn.Module, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        if not isinstance(backbone, VisionTransformerDistilled):
            return super().head(backbone, tokens, pre_logits)
        classed, distilled = backbone.head_drop(tokens.x[:, :2]).unbind(1)
        if pre_logits:
            return (classed + distilled) / 2
        return (backbone.head(classed) + backbone.head_dist(distilled)) / 2
