"""Random tokens: the same network, the same number of tokens, chosen by chance."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RandomScores(nn.Module):
    """Stands in for a prediction module; every token has the same chance, drawn anew each call."""

    def forward(self, patches: Tensor, decision: Tensor | None = None) -> Tensor:
        """Log-probabilities ``(B, M, 2)`` for patch tokens ``(B, M, C)``; no decision is used."""
        del decision
        keep = torch.rand(patches.shape[:2], device=patches.device)
        return torch.stack([keep, 1 - keep], dim=-1).clamp(min=1e-6).log()
