"""A segmentation model of ours as one of transformers, for its Trainer and image processors."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSemanticSegmentation
from transformers.modeling_outputs import SemanticSegmenterOutput
from typing_extensions import Self

from dynamicvit.core.losses import ratio_loss
from dynamicvit.core.method import Method
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Schedule
from dynamicvit.core.segmenter import Segmenter
from dynamicvit.errors import InputError
from dynamicvit.transformers.base import DynamicViTPreTrainedModel
from dynamicvit.transformers.config import DynamicViTConfig


class DynamicViTForSemanticSegmentation(DynamicViTPreTrainedModel):
    """A :class:`~dynamicvit.Segmenter` on a backbone of transformers; :meth:`around` makes one.

    Image processors' ``post_process_semantic_segmentation`` takes its outputs. In ``train()`` the
    loss is cross-entropy on pixels with the ratio loss.

    Attributes:
        dynamicvit: the :class:`~dynamicvit.Segmenter` inside.
        ratio_weight: of the ratio loss.
    """

    ratio_weight = 2.0

    def _built(self, backbone: nn.Module, schedule: Schedule, method: type[Method]) -> DynamicViT:
        config: Any = self.config
        names = dict(config.id2label)
        made = Segmenter(
            backbone, schedule, method, head=config.decode_head, num_classes=len(names)
        )
        made.bound.reset_classifier(0, None)
        _name(config, names)
        return made

    @classmethod
    def around(cls, model: nn.Module) -> Self:
        """A transformers model around a segmentation model on a backbone of transformers.

        Raises:
            InputError: for another model.
        """
        if not isinstance(model, Segmenter) or model.bound.source != "transformers":
            raise InputError("give a segmenter on a model of transformers")
        made = super().around(model)
        config: Any = made.config
        config.decode_head = model.decode_head.name
        names = model.labels.class_names or [f"LABEL_{i}" for i in range(model.num_classes)]
        _name(config, dict(enumerate(names)))
        config.semantic_loss_ignore_index = model.labels.ignore_index
        return made

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        return_dict: bool | None = None,
    ) -> SemanticSegmenterOutput | tuple[Tensor, ...]:
        """Logits ``(B, classes, rows, columns)`` of the patches, and the loss if there are labels.

        Args:
            pixel_values: ``(B, channels, height, width)``.
            labels: ``(B, height, width)`` class indices; those of
                ``config.semantic_loss_ignore_index`` (255) don't count.
            interpolate_pos_encoding: take images of another size than the config's.
            return_dict: ``False`` for a tuple; by default the config's.
        """
        images = self._images(pixel_values, bool(interpolate_pos_encoding))
        core, loss = self.dynamicvit, None
        masked = core.forward_masked(images) if self.training else None
        logits = core(images) if masked is None else masked.logits
        if labels is not None:
            wide = F.interpolate(logits.float(), labels.shape[-2:], mode="bilinear")
            ignored = getattr(self.config, "semantic_loss_ignore_index", 255)
            loss = F.cross_entropy(wide, labels, ignore_index=ignored)
            if masked is not None and masked.decisions:
                loss = loss + self.ratio_weight * ratio_loss(masked.decisions, core.keep_ratios)
        output = SemanticSegmenterOutput(loss=cast(Any, loss), logits=cast(Any, logits))
        named = self.config.return_dict if return_dict is None else return_dict
        return output if named else output.to_tuple()


def _name(config: Any, names: dict[int, str]) -> None:
    """The classes of the map, which the backbone's config has room for."""
    config.id2label = names
    config.label2id = {name: index for index, name in names.items()}


AutoModelForSemanticSegmentation.register(
    DynamicViTConfig, DynamicViTForSemanticSegmentation, exist_ok=True
)
