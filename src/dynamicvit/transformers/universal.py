"""EoMT that drops the patches it does not need, for transformers' processors and pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import Tensor
from transformers import AutoModelForUniversalSegmentation
from transformers.models.eomt.modeling_eomt import EomtForUniversalSegmentationOutput

from dynamicvit.backbones.hf_eomt import HFEomtBackbone
from dynamicvit.core.losses import ratio_loss
from dynamicvit.transformers.base import DynamicViTPreTrainedModel
from dynamicvit.transformers.config import DynamicViTConfig


class DynamicViTForUniversalSegmentation(DynamicViTPreTrainedModel):
    """``EomtForUniversalSegmentation`` whose first blocks drop patches; all are back for its last.

    Its outputs are EoMT's, so ``post_process_semantic_segmentation`` and the others of its image
    processor take them. In ``train()`` the loss is EoMT's and the ratio loss, and the blocks that
    hold queries run twice.

    Attributes:
        dynamicvit: the :class:`~dynamicvit.DynamicViT` inside; its logits are the scores of the
            classes, ``(B, classes, rows, columns)``.
        ratio_weight: of the ratio loss.
    """

    ratio_weight = 2.0

    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | None = None,
        class_labels: list[Tensor] | None = None,
        patch_offsets: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> EomtForUniversalSegmentationOutput:
        """EoMT's output, of the pruned path in ``eval()`` and the masked path in ``train()``.

        Args:
            pixel_values: ``(B, channels, height, width)``, of the config's size.
            mask_labels: as EoMT takes them.
            class_labels: likewise.
            patch_offsets: likewise.
            **kwargs: likewise.

        Raises:
            InputError: for images of another size.
        """
        images, core = self._images(pixel_values, False), self.dynamicvit
        bound = cast(HFEomtBackbone, core.bound)
        masked = core.forward_masked(images) if self.training else None
        tokens = core.forward_tokens(images) if masked is None else masked.features
        output = bound.rest(
            tokens,
            mask_labels=mask_labels,
            class_labels=class_labels,
            patch_offsets=patch_offsets,
            **kwargs,
        )
        if masked is None or output.loss is None or not masked.decisions:
            return output
        ratio = ratio_loss(masked.decisions, core.keep_ratios)
        return cast(Any, replace(output, loss=output.loss + self.ratio_weight * ratio))


AutoModelForUniversalSegmentation.register(
    DynamicViTConfig, DynamicViTForUniversalSegmentation, exist_ok=True
)
