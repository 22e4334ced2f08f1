"""A video classifier that drops tubelets, as a model of Hugging Face transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoModelForVideoClassification

from dynamicvit.core.model import DynamicViT
from dynamicvit.errors import InputError
from dynamicvit.transformers.config import DynamicViTConfig
from dynamicvit.transformers.model import ClassifierOutput, DynamicViTForImageClassification


class DynamicViTForVideoClassification(DynamicViTForImageClassification):
    """The same for clips: VideoMAE, ViViT or V-JEPA 2 inside.

    Args:
        config: of backbone and schedule.
    """

    takes_clips = True

    def __init__(self, config: DynamicViTConfig, dynamicvit: DynamicViT | None = None) -> None:
        super().__init__(config, dynamicvit)
        dense: Any = self.dynamicvit.backbone
        self.main_input_name = dense.main_input_name

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_values_videos: Tensor | None = None,
    ) -> ClassifierOutput | tuple[Tensor, ...]:
        """Logits, and the loss, as of :class:`DynamicViTForImageClassification`.

        Args:
            pixel_values: ``(B, frames, channels, height, width)``.
            labels: as the dense model takes them.
            output_attentions: not supported.
            output_hidden_states: likewise.
            return_dict: ``False`` for a tuple; by default the config's.
            pixel_values_videos: V-JEPA 2's name of ``pixel_values``.

        Raises:
            InputError: for missing or unsuitable clips, or unsupported arguments.
        """
        if pixel_values is not None and pixel_values_videos is not None:
            raise InputError("pixel_values and pixel_values_videos are the same clips: give one")
        return super().forward(
            pixel_values_videos if pixel_values is None else pixel_values,
            labels,
            None,
            output_attentions,
            output_hidden_states,
            return_dict,
        )


AutoModelForVideoClassification.register(
    DynamicViTConfig, DynamicViTForVideoClassification, exist_ok=True
)
