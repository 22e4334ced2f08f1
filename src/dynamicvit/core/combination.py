"""Methods that make one token of several, in place of dropping some."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from dynamicvit.core.merging import added, halves, missed, sizes_of
from dynamicvit.core.method import Draw, Masked, Method
from dynamicvit.core.schedule import Policy
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens, regroup, rows_of, top


class Combination(Method):
    """Several tokens become one, by a rule that is the same in training and at inference.

    There are no decisions: what is reported in their place is which patches give the tokens that
    go on their places (``Tokens.index``); which patches those are made of is in ``Tokens.groups``.
    """

    merges = True

    @abstractmethod
    def combine(self, tokens: Tokens, count: int) -> Tokens:
        """Fewer tokens.

        Args:
            tokens: those that come to the stage.
            count: how many patch tokens should go on.
        """

    def prune(
        self, tokens: Tokens, count: int, policy: Policy = "removed"
    ) -> tuple[Tokens, Tensor | None]:
        """The combined tokens; no scores."""
        del policy
        return self.combine(tokens, count), None

    def prune_to(self, tokens: Tokens, position: Tensor, policy: Policy = "removed") -> Tokens:
        """None.

        Raises:
            InputError: always.
        """
        raise InputError(f"{type(self).__name__} combines tokens: it takes no decisions")

    def mask(self, tokens: Tokens, count: int, policy: Policy, draw: Draw) -> Masked:
        """The same tokens as in the pruned path."""
        del policy
        if draw.given is not None:
            raise InputError(f"{type(self).__name__} combines tokens: it takes no decisions")
        after = self.combine(tokens, count)
        held = after.x.new_ones(after.patches.shape[:2], dtype=torch.float32)
        return Masked(after, after.to_grid(held), None)


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
    pairs = top(nearest if worth is None else -halves(worth)[0] - missed(nearest), number)
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
        keep_length: as long as its patches on average, not as their mean, which is shorter: what
            blocks add to it then turns it no further than it would turn them.
        weight: ``(B, M)``, what each token counts for in the mean; by default its patches.

    Returns:
        The kept tokens, each the mean of its patches, in image order.
    """
    size = sizes_of(tokens)
    weight = size if weight is None else weight
    number, held = merging.shape[1], tokens.num_patches
    # Counted as floats and sorted as numbers that all differ: every runtime can do that.
    here = torch.arange(held, dtype=size.dtype, device=merging.device)
    gone = torch.zeros_like(size).scatter(1, merging, 1.0)
    kept = (here + held * gone).sort(dim=1).values[:, : held - number].long()
    place = ((1 - gone).cumsum(dim=1) - 1).long()  # of the kept ones among themselves
    host = place.gather(1, into)

    pairs = torch.cat([merging, into], dim=1)
    rows = rows_of(tokens.x, pairs + tokens.num_prefix).to(weight.dtype)
    leaving, hosts = rows.split(number, dim=1)
    theirs, own = weight.gather(1, pairs)[..., None].split(number, dim=1)
    # By differences: a token is not rounded where nothing joins it, nor where equal ones do. Side
    # by side, to be summed at once: the differences, what they count for, that of the lengths.
    joining = [leaving - hosts, torch.ones_like(theirs)]
    if keep_length:
        shorter, length = lengths(rows).split(number, dim=1)
        joining.append(shorter - length)
    # Summed where the first of all that join one host stands: among the few that merge.
    joining = theirs * torch.cat(joining, dim=2)
    order = torch.arange(number, device=into.device)
    first = torch.where(into[:, :, None] == into[:, None, :], order, number).amin(dim=2)
    joined = added(torch.zeros_like(joining), first, joining)
    width = hosts.shape[2]
    share = joined / (own + joined[..., width : width + 1])
    mean = hosts + share[..., :width]
    if keep_length:
        mean = mean * ((length + share[..., width + 1 :]) / lengths(mean).clamp(min=1e-6))
    after = replace(tokens, size=None, groups=None).keep(kept)
    x = added(after.x.to(mean.dtype), host + tokens.num_prefix, mean - hosts)
    return replace(
        after,
        x=x.to(after.x.dtype),
        size=added(size.gather(1, kept), host, size.gather(1, merging)).detach(),
        groups=regroup(tokens.membership(), place.scatter(1, merging, host)),
    )


def lengths(x: Tensor) -> Tensor:
    """``(B, M, 1)``: Euclidean norm of each row."""
    return x.norm(dim=-1, keepdim=True)
