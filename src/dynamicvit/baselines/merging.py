"""Token merging: the most alike become one, instead of the least wanted being dropped.

Bipartite soft matching with proportional attention, after Bolya et al., "Token Merging: Your ViT
But Faster" (ICLR 2023), Section 3. Here tokens merge between two blocks, by the keys of the one
before, where they merge inside each block there, between attention and MLP.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.decisions import regroup, top_k
from dynamicvit.reduction import Combination, Crowd, Grid
from dynamicvit.tokens import Tokens


class Merging(nn.Module, Combination):
    """Merges the most alike pairs until as many tokens are left as the budget says, at most half.

    Nothing is learned; it works untrained. A merged token is the mean of its patches. It counts for
    as many in attention (``Tokens.size``) and in pools, so that merging equal tokens changes no
    output. ``Tokens.groups`` leads back to the image, and in the token loss a token is compared
    with the mean of the teacher's tokens of its patches.
    """

    looks_back = True

    def combine(self, tokens: Tokens, budget: int, grid: Grid) -> Tokens:
        held = tokens.num_patches
        leaving = min(held - budget, held // 2)
        if leaving <= 0:
            return tokens
        assert tokens.heads is not None  # the model runs a block before each stage that looks back
        into = match(tokens.heads.key.detach().mean(dim=1)[:, tokens.num_prefix :], leaving)
        return merge(tokens, into, held - leaving)

    def macs(self, crowd: Crowd) -> int:
        """Of each token at an even position with each at an odd one."""
        odd = crowd.num_patches // 2
        return (crowd.num_patches - odd) * odd * crowd.head_width


def match(key: Tensor, leaving: int) -> Tensor:
    """Which token each one becomes part of.

    Tokens at even positions choose the token at an odd position whose key points most nearly where
    theirs does; of these pairs the most alike merge.

    Args:
        key: ``(B, M, D)``, what tokens are compared by.
        leaving: how many merge into another, at most M / 2.

    Returns:
        ``(B, M)`` positions; a token that stays has its own.
    """
    key = F.normalize(key, dim=-1)
    alike, partner = (key[:, ::2] @ key[:, 1::2].transpose(1, 2)).max(dim=-1)
    pairs = alike.topk(leaving, dim=1).indices
    own = torch.arange(key.shape[1], device=key.device).expand(len(key), -1)
    return own.scatter(1, 2 * pairs, 2 * partner.gather(1, pairs) + 1)


def merge(tokens: Tokens, into: Tensor, left: int) -> Tokens:
    """The tokens after each has become part of another or stayed.

    Args:
        tokens: M patch tokens.
        into: ``(B, M)``, of :func:`match`.
        left: how many stay.

    Returns:
        The tokens that stay, each the mean of its patches, in the order that they had.
    """
    prefix, patches = tokens.x[:, : tokens.num_prefix], tokens.patches
    own = torch.arange(tokens.num_patches, device=into.device).expand_as(into)
    stays = into == own
    position = top_k(stays.to(torch.float32), left)
    size = tokens.size
    if size is None:
        size = patches.new_ones(into.shape, dtype=torch.float32)
    total = torch.zeros_like(size).scatter_add(1, into, size)
    # Exactly 1 for a token that stays alone: it is not rounded anew at every stage.
    share = (size / total.gather(1, into))[..., None].to(patches.dtype)
    rows = into[..., None].expand_as(patches)
    joined = torch.zeros_like(patches).scatter_add(1, rows, patches * share)
    x = joined.gather(1, position[..., None].expand(-1, -1, patches.shape[-1]))
    now = (stays.cumsum(dim=1) - 1).gather(1, into)
    return replace(
        tokens,
        x=torch.cat([prefix, x], dim=1),
        index=position if tokens.index is None else tokens.index.gather(1, position),
        size=total.gather(1, position),
        groups=now if tokens.groups is None else regroup(tokens.groups, now),
        heads=None,
    )
