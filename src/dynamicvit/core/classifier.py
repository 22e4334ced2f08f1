"""What evaluation and pictures ask of a model, in PyTorch or from an exported file."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.core.schedule import Schedule


class PrunedClassifier(Protocol):
    """A classifier that says which patches it kept."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def in_chans(self) -> int:
        """Number of image channels."""
        ...

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Its preprocessing and labels, as timm describes them."""
        ...

    @property
    def schedule(self) -> Schedule:
        """Where and how much is dropped."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` for ``(B, channels, height, width)``, normalized."""
        ...

    def forward_pruned(self, images: Tensor) -> PrunedOutput:
        """Logits, and the patches kept at each stage."""
        ...
