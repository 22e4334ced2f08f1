"""Token merging: the most alike become one, instead of the least wanted being dropped.

Bipartite soft matching with proportional attention, after Bolya et al., "Token Merging: Your ViT
But Faster" (ICLR 2023), Section 3. Here tokens merge between two blocks, by the keys of the one
before, where they merge inside each block there, between attention and MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

from dynamicvit.backbones import Backbone
from dynamicvit.core.combination import Combination, match, merge, merged_at_once
from dynamicvit.core.merging import cosines, halves
from dynamicvit.core.registry import register_method
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens


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
    def schedules(cls, bound: Backbone) -> Sequence[Schedule]:
        """A stage before every block but the first, at each as many merged while there are enough.

        The number varies by one from block to block, so that any budget is met; a stage that has
        fewer merges half of what it has. From dense on down.
        """
        if len(bound.blocks) < 2:
            raise InputError(f"{cls.name} needs a network of 2 blocks or more, got 1")
        return _schedules(range(1, len(bound.blocks)), prod(bound.grid(*bound.image_size)))

    def combine(self, tokens: Tokens, count: int) -> Tokens:
        """The tokens after the most alike pairs have merged, in rounds of at most half of them."""
        while (number := merged_at_once(tokens, count)) > 0:
            features = tokens.patches  # of a second round: merged tokens have no keys yet
            if tokens.heads is not None:
                features = tokens.heads.key.mean(dim=1)[:, tokens.num_prefix :]
            tokens = merge(tokens, *match(cosines(*halves(features)), number))
        return tokens


@lru_cache
def _schedules(stages: range, num_patches: int) -> tuple[Schedule, ...]:
    # Every total that can be told apart, up to half of all tokens each time.
    totals = range(num_patches // 2 * len(stages) + 1)
    return tuple(dict.fromkeys(_merged(num_patches, stages, n / len(stages)) for n in totals))


def _merged(num_patches: int, stages: Sequence[int], each: float) -> Schedule:
    """So many tokens merged at each stage on average; a stage can merge half of its tokens."""
    held, kept = num_patches, []
    for number in range(1, len(stages) + 1):
        held = max(num_patches - round(each * number), held - held // 2)
        kept.append(held)
    return Schedule(tuple(stages), tuple(k / num_patches for k in kept))
