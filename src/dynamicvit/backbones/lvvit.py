"""Our ``LVViT``: a vision transformer whose patches have a classifier of their own."""

from __future__ import annotations

from torch import Tensor, nn

from dynamicvit.backbones.base import Answers
from dynamicvit.backbones.layer_macs import linear_macs
from dynamicvit.backbones.networks.lvvit import ConvStem, DividedBlock, LVViT
from dynamicvit.backbones.vit import ViTAdapter
from dynamicvit.layers.pooling import masked_max
from dynamicvit.layers.tokens import Tokens


class LVViTAdapter(ViTAdapter):
    """The second classifier reads the kept patches only; where none is kept it adds nothing."""

    family = "LV-ViT"
    model_classes = (LVViT,)
    block_classes = (DividedBlock,)
    embed_classes = (ConvStem,)

    def reads(self, backbone: nn.Module) -> None:
        """All: every patch has its say."""

    def can_pool(self, backbone: nn.Module, kind: str) -> bool:
        return kind == "token"

    def head(self, backbone: nn.Module, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        if pre_logits:
            return super().head(backbone, tokens, pre_logits)
        return self.answers(backbone, tokens).logits

    def answers(self, backbone: nn.Module, tokens: Tokens) -> Answers:
        # As released: in training the class token answers alone, and each patch for itself.
        pooled = super().head(backbone, tokens, pre_logits=True)
        if self.num_classes(backbone) == 0:
            return Answers(pooled, pooled, pooled)
        classed = backbone.head(pooled)
        patches = backbone.aux_head(tokens.patches)
        best = masked_max(patches, tokens.weight)
        return Answers(classed + LVViT.aux_weight * best, pooled, classed, patches)

    def head_macs(self, backbone: nn.Module) -> tuple[int, int]:
        image, per_patch = super().head_macs(backbone)
        return image, per_patch + linear_macs(backbone.aux_head)
