"""The linear decoder of Segmenter (Strudel et al., ICCV 2021, Section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn


class LinearHead(nn.Module):
    """Classifies every patch by itself.

    Args:
        width: C, of the tokens.
        num_classes: of a patch.

    Attributes:
        num_classes: of a patch.
    """

    name = "linear"

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    @property
    def classifier(self) -> nn.Module:
        """The last layer."""
        return self.linear

    def forward(self, full_map: Tensor) -> Tensor:
        """``(B, classes, rows, columns)`` from ``(B, rows, columns, C)``."""
        return self.linear(full_map).movedim(-1, 1)
