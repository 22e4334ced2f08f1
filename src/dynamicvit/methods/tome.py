"""Token merging: the most alike become one, instead of the least wanted being dropped.

Bipartite soft matching with proportional attention, after Bolya et al., "Token Merging: Your ViT
But Faster" (ICLR 2023), Section 3. Here tokens merge between two blocks, by the keys of the one
before, where they merge inside each block there, between attention and MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from dynamicvit.backbones import Backbone
from dynamicvit.core.combination import Combination
from dynamicvit.core.merging import cosines, join, missed
from dynamicvit.core.registry import register_method
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens, top_k


@register_method(
    "tome",
    does="merges the most alike tokens after every block but the last",
    paper="Bolya et al., ICLR 2023",
)
class TokenMerging(Combination):
    """Merges the most alike pairs until as many tokens are left as the budget says, at most half.

    Nothing is learned; it works untrained. A merged token is the mean of its patches. It counts for
    as many in attention (``Tokens.size``) and in pools, so that merging equal tokens changes no
    output. ``Tokens.groups`` leads back to the image, and in the token loss a token is compared
    with the mean of the teacher's tokens of its patches.
    """

    works_untrained = True
    looks_back = True

    @classmethod
    def schedules(cls, bound: Backbone) -> list[Schedule]:
        """A stage before every block but the first, at each as many merged while there are enough.

        The number varies by one from block to block, so that any budget is met; a stage that has
        fewer merges half of what it has. From dense on down.
        """
        stages = range(1, len(bound.blocks))
        if not stages:
            raise InputError(f"{cls.name} needs a network of 2 blocks or more, got 1")
        num_patches = prod(bound.grid(*bound.image_size))
        # Every total that can be told apart, up to half of all tokens each time.
        totals = range(num_patches // 2 * len(stages) + 1)
        return list(dict.fromkeys(_merged(num_patches, stages, n / len(stages)) for n in totals))

    def combine(self, tokens: Tokens, count: int) -> Tokens:
        """The tokens after the most alike pairs have merged, in rounds of at most half of them."""
        while (number := merged_at_once(tokens, count)) > 0:
            features = tokens.patches  # of a second round: merged tokens have no keys yet
            if tokens.heads is not None:
                features = tokens.heads.key.mean(dim=1)[:, tokens.num_prefix :]
            tokens = merge(tokens, *match(cosines(features, bipartite=True), number))
        return tokens


def _merged(num_patches: int, stages: Sequence[int], each: float) -> Schedule:
    """So many tokens merged at each stage on average; a stage can merge half of its tokens."""
    held, kept = num_patches, []
    for number in range(1, len(stages) + 1):
        held = max(num_patches - round(each * number), held - held // 2)
        kept.append(held)
    return Schedule(tuple(stages), tuple(k / num_patches for k in kept))


def merged_at_once(tokens: Tokens, count: int) -> int:
    """How many tokens merge in a round that should leave ``count``, at least 1: at most half."""
    held = tokens.num_patches
    return min(held - max(1, count), held // 2)


def match(alike: Tensor, number: int, worth: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which tokens become part of which others.

    Tokens at even positions choose the token at an odd position that is most like them; of these
    pairs the most alike merge.

    Args:
        alike: ``(B, ⌈M/2⌉, ⌊M/2⌋)``, cosines of the even ones with the odd ones.
        number: how many merge into another, at most M / 2.
        worth: ``(B, M)``, logarithm of what each token is worth; the pairs that then merge are
            those by which least is missed (:func:`~dynamicvit.core.merging.missed`).

    Returns:
        ``(B, number)`` positions of those that merge, and of the ones that they become part of.
    """
    nearest, partner = alike.max(dim=-1)
    pairs = top_k(nearest if worth is None else -worth[:, ::2] - missed(nearest), number)
    return 2 * pairs, 2 * partner.gather(1, pairs) + 1


def merge(
    tokens: Tokens,
    merging: Tensor,
    into: Tensor,
    keep_length: bool = False,
    weight: Tensor | None = None,
) -> Tokens:
    """The tokens after some have become part of others.

    Args:
        tokens: M patch tokens.
        merging: ``(B, R)`` positions of those that merge, each once.
        into: ``(B, R)`` positions of the ones that they become part of, which are kept.
        keep_length: see :func:`~dynamicvit.core.merging.join`.
        weight: likewise, ``(B, M)``.

    Returns:
        The kept tokens, each the mean of its patches, in image order.
    """
    held = tokens.num_patches
    merged = tokens.x.new_zeros(tokens.patches.shape[:2], dtype=torch.float32)
    merged = merged.scatter(1, merging, 1.0)
    partner = torch.zeros_like(merged, dtype=torch.long).scatter(1, merging, into)
    here = torch.arange(held, device=merging.device)
    kept = (here + held * merged).sort(dim=1).values[:, : held - merging.shape[1]].long()
    return join(tokens, merged, partner, keep_length, weight).keep(kept)
