"""Tokens on their way through the network: what both paths hand from block to block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, prod
from typing import NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, ...]
"""Patches along each axis of the input: rows and columns; of a clip frames, rows and columns."""

#: Share of the last kept score by which others may differ and tie: rounding moves them by 1e-6.
TIE = 1e-4


class Heads(NamedTuple):
    """What a block's attention works on.

    Attributes:
        query: ``(B, H, Q, D)``, normed and rotated; its products with keys are divided by √D. Q is
            T, or fewer where only the first tokens attend.
        key: ``(B, H, T, D)``, likewise.
        value: ``(B, H, T, D)``.
        bias: broadcastable to ``(B, H, Q, T)``, or ``None``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch between two blocks.

    Patch tokens are always in image order. The pruned path holds the kept ones only; the masked
    path may hold dropped ones too, whose decision is 0.

    Attributes:
        x: ``(B, P + M, C)``, the P prefix tokens first, then the M patch tokens held now.
        num_prefix: P, the number of prefix tokens (class, distillation, registers).
        grid: patches along each axis of the input; N is their product.
        index: ``(B, M)``, index of each held patch token in the grid; ``None`` when all N are held.
            A token made of several patches has the place of one of them.
        decision: ``(B, M)``, 1 for kept and 0 for dropped; ``None`` when every held token is kept.
        size: ``(B, M)``, how many patches each held token is made of; ``None`` for one each.
        groups: ``(B, N)``, position among the held tokens of the one that each patch of the grid is
            part of, -1 for none; ``None`` when every held token is one patch.
        added: how many of the P were added on the way and so have no position: the last ones.
        position: what every block needs to know of places (a rotary table, a shared bias), of the
            whole grid; or ``None``.
        block: index of the block that comes next.
        dropped: ``(B, N, C)``, what each patch was when dropped, or ``None`` (:meth:`remembering`).
        heads: what the attention of the block before worked on, for a method that asked for it.
        motion: ``(B, N)``, how much each tubelet of a clip differs from the one before, for a
            method that asked for it.
        images: ``(B,)``, which images these are, where others hold another number of tokens.
    """

    x: Tensor
    num_prefix: int
    grid: Grid
    index: Tensor | None = None
    decision: Tensor | None = None
    size: Tensor | None = None
    groups: Tensor | None = None
    added: int = 0
    position: Tensor | None = None
    block: int = 0
    dropped: Tensor | None = None
    heads: Heads | None = None
    motion: Tensor | None = None
    images: Tensor | None = None

    # ---------------------------------------------------------------- what is held

    @property
    def patches(self) -> Tensor:
        """``(B, M, C)``: the patch tokens without the prefix."""
        return self.x[:, self.num_prefix :]

    @property
    def num_patches(self) -> int:
        """M: how many patch tokens are held."""
        return self.x.shape[1] - self.num_prefix

    @property
    def grid_size(self) -> int:
        """N: how many patches the input has."""
        return prod(self.grid)

    @property
    def weight(self) -> Tensor | None:
        """``(B, M)``: how much each patch token counts in a pool; ``None`` when all count alike."""
        if self.decision is None or self.size is None:
            return self.size if self.decision is None else self.decision
        return self.decision * self.size

    def over_all(self, values: Tensor | None) -> Tensor | None:
        """``(B, M)`` of the patch tokens as ``(B, P + M)`` of all, with 1 for prefix tokens."""
        if values is None or not self.num_prefix:  # exporters stumble over empty tensors
            return values
        return torch.cat([values.new_ones(values.shape[0], self.num_prefix), values], dim=1)

    def with_x(self, x: Tensor) -> Tokens:
        """The same tokens with other values."""
        return replace(self, x=x, heads=None)

    def with_summary(self, summary: Tensor | None) -> Tokens:
        """With further prefix tokens, ``(B, added, C)``, behind those that are there."""
        if summary is None:
            return self
        added, prefix = summary.shape[1], self.num_prefix
        x = torch.cat([self.x[:, :prefix], summary.to(self.x.dtype), self.patches], dim=1)
        return replace(self, x=x, num_prefix=prefix + added, added=self.added + added, heads=None)

    # ---------------------------------------------------------------- the way back to the grid

    def to_grid(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Put per-token values where the tokens are in the grid.

        Args:
            values: ``(B, M)``.
            fill: what a patch gets whose place no held token has.

        Returns:
            ``(B, N)``, differentiable in ``values``.
        """
        if self.index is None:
            return values
        shape = (values.shape[0], self.grid_size)
        return values.new_full(shape, fill).scatter(1, self.index, values)

    def kept_index(self) -> Tensor:
        """``(B, M)``: index of each held patch token in the grid, ascending."""
        if self.index is not None:
            return self.index
        return torch.arange(self.num_patches, device=self.x.device).expand(self.x.shape[0], -1)

    def kept(self) -> Tensor:
        """``(B, N)`` bool: whose place a held token has."""
        ones = torch.ones(self.patches.shape[:2], device=self.x.device)
        return self.to_grid(ones) > 0  # by way of floats: TensorRT does not scatter booleans

    def membership(self) -> Tensor:
        """``(B, N)``: position of the held token that each patch is part of, -1 for none."""
        if self.groups is not None:
            return self.groups
        position = torch.arange(self.num_patches, device=self.x.device)
        return self.to_grid(position.expand(self.x.shape[0], -1), fill=-1)

    def places(self) -> Tensor | None:
        """``(B, N)``: the place of the token that each patch is part of, its own for none.

        ``None`` when every held token is one patch.
        """
        if self.groups is None or not self.num_patches:
            return None
        place = self.groups.clamp(min=0)
        place = place if self.index is None else self.index.gather(1, place)
        here = torch.arange(self.groups.shape[1], device=self.groups.device)
        return torch.where(self.groups < 0, here.expand_as(self.groups), place)

    def remembering(self) -> Tokens:
        """The same tokens, which from now on remember what is dropped, for :meth:`full_map`."""
        return replace(self, dropped=self.patches)

    def remembered(self) -> Tokens:
        """The same tokens after the values of the kept ones were noted, before some are dropped."""
        if self.dropped is None:
            return self
        now = rows_of(self.patches, self.membership().clamp(min=0))
        here = (self.membership() > -1)[..., None]  # TensorRT has no >=
        if self.decision is not None:  # 0 or 1: a mean of two is one of them, with a gradient
            share = self._decided(self.decision)[..., None].to(now.dtype)
            now = share * now + (1 - share) * self.dropped
        return replace(self, dropped=torch.where(here, now, self.dropped))

    def full_map(self) -> Tensor:
        """Every patch in its place: ``(B, *grid, C)``, differentiable.

        A kept patch's place holds its token, a merged one's what it became part of, a removed
        one's what it was when it was dropped.

        Raises:
            ValueError: if tokens may have been removed and nobody remembered them.
        """
        if self.dropped is None and (self.index is not None or self.decision is not None):
            raise ValueError("dropped tokens were not remembered: start with tokens.remembering()")
        whole = self.patches if self.dropped is None else self.remembered().dropped
        assert whole is not None
        return whole.unflatten(1, self.grid)

    def restored(self) -> Tokens:
        """The same tokens, all N of the grid: each patch in its place as in :meth:`full_map`.

        None of them is dropped, and each is one patch.

        Raises:
            ValueError: as :meth:`full_map`.
        """
        whole = self.full_map().flatten(1, len(self.grid))
        x = torch.cat([self.x[:, : self.num_prefix], whole], dim=1)
        gone = dict.fromkeys(("index", "decision", "size", "groups", "dropped", "heads"))
        return replace(self, x=x, **gone)

    def _decided(self, values: Tensor) -> Tensor:
        """``(B, N)`` of the token that each patch is part of, from ``(B, M)``."""
        if not self.num_patches:
            return values.new_zeros(self.x.shape[0], self.grid_size)
        return values.gather(1, self.membership().clamp(min=0))

    # ---------------------------------------------------------------- fewer tokens

    def keep(self, position: Tensor) -> Tokens:
        """Keep the prefix and some of the patch tokens; the others are removed.

        Args:
            position: ``(B, K)`` positions among the M held patch tokens, ascending.
        """
        batch = self.x.shape[0]  # not len(): torch.export would take it for a constant
        held = position
        if self.num_prefix:
            prefix = torch.arange(self.num_prefix, device=position.device).expand(batch, -1)
            held = torch.cat([prefix, position + self.num_prefix], dim=1)
        x = rows_of(self.x, held)
        groups = self.groups
        if groups is not None:
            there = torch.arange(position.shape[1], device=position.device).expand_as(position)
            now = groups.new_full((batch, self.num_patches), -1).scatter(1, position, there)
            groups = regroup(groups, now)
        decision, size = (
            each if each is None else each.gather(1, position)
            for each in (self.decision, self.size)
        )
        index = position if self.index is None else self.index.gather(1, position)
        return replace(
            self, x=x, index=index, decision=decision, size=size, groups=groups, heads=None
        )

    def compact(self, kept: Tensor) -> Tokens:
        """Let the tokens that are not kept leave memory, as far as rows of equal length allow.

        Args:
            kept: ``(B, M)``, 0 or 1. Images with fewer kept tokens than the fullest image of the
                batch hold some of the others, to fill the rows.
        """
        fullest = int((kept.detach() > 0.5).sum(dim=1).amax())
        if fullest == self.num_patches:
            return self
        return self.keep(top_k(kept.detach(), fullest))

    def unmasked(self) -> Tokens:
        """The same tokens without their decision, if it drops none: attention needs no mask."""
        if self.decision is not None and (self.decision > 0.5).all():
            return replace(self, decision=None)
        return self


def kept_count(num_patches: int, keep_ratio: float, policy: str = "removed") -> int:
    """How many of N patches a keep ratio leaves: floor(N · ratio), at least one."""
    # 0.7 ** 2 * 100 is 48.99999...: the small term gives the 49 that was meant. TPAMI has none.
    return max(1, floor(num_patches * keep_ratio + 1e-9 * (policy != "cheap")))


def top_k(keep_scores: Tensor, k: int) -> Tensor:
    """Positions of the k highest keep scores, in ascending order (Section 3.4).

    Of those that tie (:data:`TIE`) the first: every runtime keeps the same of a plain image.

    Args:
        keep_scores: ``(B, M)``; anything that grows with the probability of keeping.
        k: how many to keep, 0 to M.

    Returns:
        ``(B, k)`` positions among the M held tokens, in image order.
    """
    found = top(keep_scores, k)
    return found if k in (0, keep_scores.shape[1]) else found.sort(dim=1).values


def top(scores: Tensor, k: int) -> Tensor:
    """The positions of :func:`top_k` in any order; in ascending order where it is none or all."""
    batch, held = scores.shape
    if k in (0, held):
        return torch.arange(k, device=scores.device).expand(batch, -1)
    wide, limits = torch.promote_types(scores.dtype, torch.float32), torch.finfo(torch.float32)
    scores = scores.to(wide).clamp(limits.min, limits.max)  # inf - inf is NaN
    cut = scores.topk(k, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    tie = (2 * TIE * cut.abs()).clamp(min=limits.tiny)
    above = ((scores - cut) / tie).round().clamp(-1, 1)  # 0 for a tie
    here = torch.arange(held, dtype=wide, device=scores.device)
    # Numbers that all differ: torch and OpenVINO order equal ones as they like.
    return (held * above - here).topk(k, dim=1, sorted=False).indices


def regroup(groups: Tensor, now: Tensor) -> Tensor:
    """Where each patch is after the held tokens have moved or joined.

    Args:
        groups: ``(B, N)``, the held token that each patch is part of, -1 for none.
        now: ``(B, M)``, where each held token is now, -1 for nowhere.

    Returns:
        ``(B, N)``.
    """
    nowhere = now.new_full((now.shape[0], 1), -1)
    return torch.cat([now, nowhere], dim=1).gather(1, groups.masked_fill(groups < 0, now.shape[1]))


def flat_rows(position: Tensor, held: int) -> Tensor:
    """Positions ``(B, K)`` in ``(B, T, C)`` as rows ``(B K)`` of ``(B T, C)``.

    Args:
        position: of rows of each image.
        held: T.
    """
    first = held * torch.arange(position.shape[0], device=position.device)[:, None]
    return (first + position).flatten()


def rows_of(x: Tensor, position: Tensor) -> Tensor:
    """Rows ``(B, K, C)`` of ``(B, T, C)``, zeros where T is 0.

    Whole rows at a time, where ``gather`` looks up every number: ten times slower on a CPU.
    """
    batch, held, width = x.shape
    if held == 0:
        return x.new_zeros(batch, position.shape[1], width)
    rows = x.reshape(batch * held, width).index_select(0, flat_rows(position, held))
    return rows.reshape(batch, position.shape[1], width)
