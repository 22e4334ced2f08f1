"""Random tokens: the same network, the same number of tokens, chosen by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from dynamicvit.core.method import Choice
from dynamicvit.layers.tokens import Tokens


class RandomScores(Choice):
    """Every token has the same chance, drawn anew each call. A control, not a method to use."""

    untrained = True

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """Log-odds of uniform random probabilities."""
        shape = tokens.patches.shape[:2]
        return torch.rand(shape, device=tokens.x.device).clamp(1e-6, 1 - 1e-6).logit()
