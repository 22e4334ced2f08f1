"""transformers' ``VideoMAEForVideoClassification`` (Tong et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.videomae.modeling_videomae import (
    VideoMAEAttention,
    VideoMAEForVideoClassification,
    VideoMAELayer,
)

from dynamicvit.backbones.hf_base import CROPPED
from dynamicvit.backbones.hf_video import HFVideoBackbone
from dynamicvit.layers.pooling import masked_mean
from dynamicvit.layers.tokens import Tokens


class HFVideoMAEBackbone(HFVideoBackbone):
    """No prefix token; the classifier reads the normed mean of the tubelets; keys have no bias."""

    family = "transformers VideoMAE for video classification"
    model_classes = (VideoMAEForVideoClassification,)
    block_classes = (VideoMAELayer,)
    attention_classes = (VideoMAEAttention,)
    processing: ClassVar[dict[str, Any]] = {**CROPPED, "crop_pct": 1.0, "interpolation": "bilinear"}

    def why_not(self) -> str | None:
        if self.module.fc_norm is None:
            return (
                "use_mean_pooling=False (its classifier then reads the first tubelet, which may be "
                "dropped)"
            )
        return super().why_not()

    @property
    def num_prefix(self) -> int:
        return 0

    @property
    def encoder(self) -> Any:
        return self.module.videomae

    @property
    def blocks(self) -> nn.ModuleList:
        return self.encoder.encoder.layer

    def attention_scale(self, attn: Any) -> float:
        return attn.attention.scaling

    def head_dim(self, attn: Any) -> int:
        return attn.attention.attention_head_size

    def projections(self, attn: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
        return attn.attention.query, attn.attention.key, attn.attention.value

    def attention_dropout(self, block: Any) -> float:
        attn = block.attention.attention
        return attn.dropout_prob if attn.training else 0.0

    def first_norm(self, block: Any) -> nn.Module:
        return block.layernorm_before

    def embedded(self, clips: Tensor) -> Tensor:
        return self.encoder.embeddings(clips, None)  # nothing is masked

    def after_attention(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        x = x + block.attention.output(attended.transpose(1, 2).flatten(2), x)
        return block.output(block.intermediate(block.layernorm_after(x)), x)

    def norm(self, x: Tensor) -> Tensor:
        return x  # the norm comes after the mean

    def pool(self, tokens: Tokens) -> Tensor:
        return self.module.fc_norm(masked_mean(tokens.patches, tokens.weight))
