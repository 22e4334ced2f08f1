"""What timm's users expect of a model: its names for sizes, classifier, weight decay, input."""

from __future__ import annotations

from typing import Any

from torch import nn

from dynamicvit.backbones import Adapter


class TimmModelMixin:
    """timm's methods for a network around a backbone; its adapter knows the answers."""

    backbone: nn.Module
    _adapter: Adapter

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the backbone's weights and input."""
        return self._adapter.pretrained_cfg(self.backbone)

    @property
    def default_cfg(self) -> dict[str, Any]:
        """timm's older name for :attr:`pretrained_cfg`."""
        return self.pretrained_cfg

    @property
    def num_classes(self) -> int:
        """Number of classes of the head."""
        return self._adapter.num_classes(self.backbone)

    @property
    def num_features(self) -> int:
        """Width of the pooled features that the classifier takes."""
        return self._adapter.num_features(self.backbone)

    @property
    def num_prefix_tokens(self) -> int:
        """P, the tokens that are never dropped."""
        return self._adapter.num_prefix_tokens(self.backbone)

    @property
    def in_chans(self) -> int:
        """Number of image channels."""
        return self._adapter.in_chans(self.backbone)

    def get_classifier(self) -> nn.Module:
        """The backbone's classifier."""
        return self._adapter.classifier(self.backbone)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the backbone a fresh classifier; with another pool, if it can have it.

        Raises:
            InputError: for a pool that the backbone can't have, or that leaves tokens unpooled.
        """
        self._adapter.reset_classifier(self.backbone, num_classes, global_pool)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone."""
        names = self._adapter.no_weight_decay(self.backbone)
        return {f"backbone.{name}" for name in names}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade computation for memory in training: blocks are run again in the backward pass."""
        self._adapter.set_grad_checkpointing(self.backbone, enable)
