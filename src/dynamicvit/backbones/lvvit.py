"""Our ``LVViT``: a vision transformer whose patches have a classifier of their own."""

from __future__ import annotations

from torch import Tensor

from dynamicvit.backbones.base import Answers
from dynamicvit.backbones.networks.lvvit import LVViT
from dynamicvit.backbones.networks.lvvit_layers import ConvStem, DividedBlock
from dynamicvit.backbones.timm_vit import ViTBackbone
from dynamicvit.layers.pooling import masked_max
from dynamicvit.layers.tokens import Tokens


class LVViTBackbone(ViTBackbone):
    """The second classifier reads the kept patches only; where none is kept it adds nothing."""

    family = "LV-ViT"
    model_classes = (LVViT,)
    block_classes = (DividedBlock,)
    embed_classes = (ConvStem,)

    @property
    def reads(self) -> None:
        """All: every patch has its say."""

    def can_pool(self, kind: str) -> bool:
        return kind == "token"

    def head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        return super().head(tokens, True) if pre_logits else self.answers(tokens).logits

    def answers(self, tokens: Tokens) -> Answers:
        # As released: in training the class token answers alone, and each patch for itself.
        pooled = super().head(tokens, pre_logits=True)
        if self.num_classes == 0:
            return Answers(pooled, pooled, pooled)
        classed = self.module.head(pooled)
        patches = self.module.aux_head(tokens.patches)
        best = masked_max(patches, tokens.weight)
        return Answers(classed + LVViT.aux_weight * best, pooled, classed, patches)
