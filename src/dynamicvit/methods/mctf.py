"""Multi-criteria token fusion: tokens merge that are alike, matter little and are small.

After Lee et al., "Multi-criteria Token Fusion with One-step-ahead Attention for Efficient Vision
Transformers" (CVPR 2024), Section 3. The attention that tells what matters is that of the coming
block over the tokens that enter it here. There the block then uses the same map, its rows and
columns merged; here it makes its own of the merged tokens, which costs more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynamicvit.backbones import Backbone
from dynamicvit.core.combination import merge, merged_at_once
from dynamicvit.core.merging import cosines, halves, sizes_of
from dynamicvit.core.registry import register_method
from dynamicvit.layers.attention import proportional
from dynamicvit.layers.tokens import Tokens, top
from dynamicvit.methods.tome import TokenMerging

#: Powers of the three criteria (Section 4.1): likeness, informativeness and size.
SIMILARITY, INFORMATIVENESS, SIZE = 1.0, 1 / 20, 1 / 40


@register_method(
    "mctf",
    does="merges tokens that are alike, attended to little and small, before every block",
    paper="Lee et al., CVPR 2024",
)
class MCTF(TokenMerging):
    """Merges the pairs that attract each other most, half of them the other way round.

    The attraction of two tokens is the product of powers of (1 + cosine) / 2, of one over the
    attention that each receives in the coming block, and of one over each one's size (Section 3.2).
    A merged token is the mean of its patches, weighted by that attention, and counts for as many.

    Args:
        bound: the network, whose coming block is looked at.
    """

    looks_back = False

    def __init__(self, bound: Backbone) -> None:
        super().__init__()
        self.bound = bound

    @classmethod
    def for_stage(cls, bound: Backbone) -> MCTF:
        """One that looks at this network."""
        return cls(bound)

    def combine(self, tokens: Tokens, count: int) -> Tokens:
        """The tokens after the pairs that attract each other most have merged.

        In rounds of at most half of them; the schedules that budgets choose from need one.
        """
        while (number := merged_at_once(tokens, count)) > 0:
            received = self._received(tokens)
            cost = received.log() * INFORMATIVENESS
            if tokens.size is not None:
                cost = cost + tokens.size.log() * SIZE
            near = (1 + cosines(*halves(tokens.patches))).clamp(min=1e-6) / 2
            attraction = SIMILARITY * near.log() - cost[:, ::2, None] - cost[:, None, 1::2]
            pairs = match_both_ways(attraction, number)
            tokens = merge(tokens, *pairs, weight=received * sizes_of(tokens))
        return tokens

    @torch.no_grad()
    def _received(self, tokens: Tokens) -> Tensor:
        """``(B, M)``: attention to each patch in the coming block, mean of queries and heads."""
        i = tokens.block
        heads = self.bound.placed(i, self.bound.qkv(self.bound.blocks[i], tokens.x), tokens)
        logits = (heads.query * heads.query.shape[-1] ** -0.5) @ heads.key.transpose(-2, -1)
        bias = proportional(heads.bias, tokens.over_all(tokens.size), logits.dtype)
        logits = logits if bias is None else logits + bias
        weights = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
        received = weights.mean(dim=(1, 2))[:, tokens.num_prefix :]
        return received.clamp(min=torch.finfo(received.dtype).tiny)


def match_both_ways(attraction: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Bidirectional bipartite matching (Section 3.2): which tokens become part of which others.

    Half of the tokens at even positions that choose best merge; then of those at odd positions as
    many merge into the even ones that are left, with all that has become part of them.

    Args:
        attraction: ``(B, ⌈M/2⌉, ⌊M/2⌋)``, of the even ones to the odd ones.
        number: how many merge into another, at most M / 2.

    Returns:
        ``(B, number)`` positions of those that merge, and of the ones that they become part of,
        which merge no further.
    """
    nearest, partner = attraction.max(dim=-1)
    even = top(nearest, number // 2)
    partner = partner.gather(1, even)  # among the odd ones
    left = torch.zeros_like(nearest).scatter(1, even, float("-inf"))
    back, host = (attraction + left[..., None]).max(dim=1)
    odd = top(back, number - number // 2)
    # Where each odd one is in the end: itself, or the even one that it became part of.
    here = torch.arange(host.shape[1], device=host.device).expand_as(host)
    end = (2 * here + 1).scatter(1, odd, 2 * host.gather(1, odd))
    merging = torch.cat([2 * even, 2 * odd + 1], dim=1)
    return merging, torch.cat([end.gather(1, partner), end.gather(1, odd)], dim=1)
