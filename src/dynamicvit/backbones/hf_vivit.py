"""transformers' ``VivitForVideoClassification`` (Arnab et al., ICCV 2021, model 1)."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.models.vivit.modeling_vivit import (
    VivitAttention,
    VivitForVideoClassification,
    VivitLayer,
)

from dynamicvit.backbones.hf_base import SQUASHED
from dynamicvit.backbones.hf_video import HFVideoBackbone
from dynamicvit.backbones.hf_vit import HFViTBackbone


class HFVivitBackbone(HFVideoBackbone, HFViTBackbone):
    """The blocks and the class token of transformers' ViT, over tubelets."""

    family = "transformers ViViT for video classification"
    model_classes = (VivitForVideoClassification,)
    block_classes = (VivitLayer,)
    attention_classes = (VivitAttention,)
    processing: ClassVar[dict[str, Any]] = {**SQUASHED, "interpolation": "bilinear"}

    @property
    def encoder(self) -> Any:
        return self.module.vivit

    @property
    def tubelet(self) -> int:
        return self.encoder.config.tubelet_size[0]

    @property
    def patch_size(self) -> tuple[int, int]:
        rows, columns = self.encoder.config.tubelet_size[1:]
        return rows, columns
