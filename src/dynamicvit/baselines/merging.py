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

from dynamicvit.decisions import regroup
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
        key = tokens.heads.key.detach().mean(dim=1)[:, tokens.num_prefix :]
        return merge(tokens, *match(key, leaving))

    def macs(self, crowd: Crowd) -> int:
        """Of each token at an even position with each at an odd one."""
        odd = crowd.num_patches // 2
        return (crowd.num_patches - odd) * odd * crowd.head_width


def match(key: Tensor, leaving: int) -> tuple[Tensor, Tensor]:
    """Which tokens become part of which others.

    Tokens at even positions choose the token at an odd position whose key points most nearly where
    theirs does; of these pairs the most alike merge.

    Args:
        key: ``(B, M, D)``, what tokens are compared by.
        leaving: how many merge into another, at most M / 2.

    Returns:
        ``(B, leaving)`` positions of those that leave, and of the ones that they become part of.
    """
    key = F.normalize(key, dim=-1)
    alike, partner = (key[:, ::2] @ key[:, 1::2].transpose(1, 2)).max(dim=-1)
    pairs = alike.topk(leaving, dim=1, sorted=False).indices
    return 2 * pairs, 2 * partner.gather(1, pairs) + 1


def merge(tokens: Tokens, leaving: Tensor, into: Tensor) -> Tokens:
    """The tokens after some have become part of others.

    Args:
        tokens: M patch tokens.
        leaving: ``(B, R)`` positions of those that leave, each once.
        into: ``(B, R)`` positions of the ones that they become part of, which stay.

    Returns:
        The tokens that stay, each the mean of its patches, in the order that they had.
    """
    patches, prefix = tokens.patches, tokens.num_prefix
    batch, held, width = patches.shape
    left = held - leaving.shape[1]
    size = tokens.size
    if size is None:
        size = patches.new_ones(batch, held, dtype=torch.float32)
    total = size.scatter_add(1, into, size.gather(1, leaving))
    # Weights sum to 1; exactly 1 for a token that stays alone: it is not rounded at every stage.
    share = (size / total).to(patches.dtype)
    moved = (size.gather(1, leaving) / total.gather(1, into)).to(patches.dtype)
    scaled = patches * share[..., None]  # of those that leave, by 1
    joined = scaled.scatter_add(
        1, into[..., None].expand(-1, -1, width), _rows(scaled, leaving) * moved[..., None]
    )
    own = torch.arange(held, device=into.device).expand(batch, -1)
    stays = torch.ones_like(own).scatter(1, leaving, 0)
    now = stays.cumsum(dim=1) - 1
    # Each that stays writes its position where it is now, the others all into one more column.
    target = torch.where(stays > 0, now, left)
    position = own.new_zeros(batch, left + 1).scatter(1, target, own)[:, :left]
    now = now.scatter(1, leaving, now.gather(1, into))
    return replace(
        tokens,
        x=torch.cat([tokens.x[:, :prefix], _rows(joined, position)], dim=1),
        index=position if tokens.index is None else tokens.index.gather(1, position),
        size=total.gather(1, position),
        groups=now if tokens.groups is None else regroup(tokens.groups, now),
        heads=None,
    )


def _rows(x: Tensor, position: Tensor) -> Tensor:
    """Rows ``(B, K, C)`` of ``(B, M, C)``; whole rows at a time, which ``gather`` does not do."""
    batch, held, width = x.shape
    first = held * torch.arange(batch, device=x.device)[:, None]
    rows = x.reshape(batch * held, width).index_select(0, (first + position).flatten())
    return rows.reshape(batch, position.shape[1], width)
