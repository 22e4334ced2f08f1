"""Squeezing: a dropped patch is fused into the kept one that is most like it.

Token Pruning and Squeezing (Wei et al., "Joint Token Pruning and Squeezing Towards More Aggressive
Compression of Vision Transformers", CVPR 2023, Section 3) in its form eTPS, whose scores are those
of EViT. The other form, dTPS, has DynamicViT's prediction modules; what DynamicViT does here with
policy "merged" is near to it, but takes means and counts patches.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dynamicvit.core.merging import join, most_alike
from dynamicvit.core.registry import register_method
from dynamicvit.layers.tokens import Tokens
from dynamicvit.methods.class_attention import ClassAttention


@register_method(
    "tps",
    does="the same, and each dropped one is fused into the kept one most like it",
    paper="Wei et al., CVPR 2023",
)
class TPS(ClassAttention):
    """Keeps the patches that the class token attends to most; the others are squeezed into them.

    A dropped token is matched with the kept token of the largest cosine c, its host (Section 3.2).
    The host becomes a mean in which it weighs e and each of its matches exp(c): as much as another
    host if they are equal, less the less alike they are. In attention it still counts for one.
    """

    merges = True

    def absorb(
        self,
        tokens: Tokens,
        dropped: Tensor,
        kept: Tensor,
        alike: Tensor,
        keep_scores: Tensor | None,
    ) -> Tokens:
        """The tokens after the hosts have taken up what was matched with them."""
        del keep_scores
        host = most_alike(alike, kept)
        cosine = alike.gather(2, host[..., None])[..., 0]
        weight = torch.where(kept, torch.ones_like(cosine), cosine).exp()
        return replace(join(tokens, dropped, host, weight=weight), size=tokens.size)
