"""Whole maps: every position stays, and takes the slow or the cheap path through a block.

Strided layers and heads for dense prediction need all positions of a hierarchical network's map
("Dynamic Spatial Sparsification", Rao et al., TPAMI 2023): what is unimportant costs less there,
but does not leave.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dynamicvit.layers.tokens import Tokens, flat_rows


class CheapPath(nn.Module):
    """Norm and one linear layer, for positions that don't go through a block's MLP.

    Args:
        dim: C.
        eps: of the norm.
        scale: initial value of a layer scale, for blocks that have one; or ``None``.
    """

    def __init__(self, dim: int, eps: float, scale: float | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.linear = nn.Linear(dim, dim)
        self.gamma = None if scale is None else nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)``."""
        x = self.linear(self.norm(x))
        return x if self.gamma is None else x * self.gamma


@dataclass(frozen=True)
class Map(Tokens):
    """All N positions of a map, each of which is a patch token; none ever leaves.

    The masked path says by ``decision`` who takes the slow path, the pruned path by rows.

    Attributes:
        cheap: the cheap path of each block up to the next stage, by its index; those of blocks that
            are not there give nothing.
        order: ``(B N)``, rows of ``(B N, C)``, those on the slow path first, or ``None`` for all.
        num_slow: how many those are.
        place: ``(B N)``, where each row is in that order.
        unnormed: the final map before the final norm, where the head pools that.
    """

    cheap: nn.ModuleDict | None = None
    order: Tensor | None = None
    num_slow: int = 0
    place: Tensor | None = None
    unnormed: Tensor | None = None

    def masked(self, decision: Tensor, cheap: nn.ModuleDict | None) -> Map:
        """From here on the masked path: ``decision`` ``(B, N)`` says who takes the slow path."""
        return replace(self, decision=decision, cheap=cheap, order=None, place=None)

    def directed(self, slow: Tensor, cheap: nn.ModuleDict | None) -> Map:
        """From here on the pruned path.

        Args:
            slow: who takes the slow path: ``(B, K)`` positions, ascending; or ``(B, N)`` bool,
                of which images may have different numbers.
            cheap: of :class:`Map`.
        """
        batch, held = self.x.shape[:2]
        if slow.dtype == torch.bool:
            rows, others = (each.flatten().nonzero()[:, 0] for each in (slow, ~slow))
        elif slow.shape[1] == held:
            return replace(self, decision=None, cheap=cheap, order=None, place=None)
        else:
            here = torch.arange(held, device=slow.device)
            marks = slow.new_zeros(batch, held).scatter(1, slow, held)
            # Numbers that all differ: every runtime sorts them alike.
            order = (marks - here).topk(held, dim=1).indices
            rows, others = (
                flat_rows(each, held)
                for each in (order[:, : slow.shape[1]], order[:, slow.shape[1] :])
            )
        order = torch.cat([rows, others])
        here = torch.arange(batch * held, device=order.device)
        place = torch.zeros_like(order).scatter(0, order, here)
        return replace(
            self, decision=None, cheap=cheap, order=order, num_slow=rows.shape[0], place=place
        )

    @property
    def slow(self) -> Tensor | None:
        """``(R,)`` rows of ``(B N, C)`` on the slow path; ``None`` for all."""
        return None if self.order is None else self.order[: self.num_slow]

    def kept(self) -> Tensor:
        """``(B, N)`` bool: who takes the slow path."""
        if self.decision is not None:
            return self.decision > 0.5
        marks = torch.zeros(self.x.shape[0] * self.num_patches, device=self.x.device)
        marks = marks + 1 if self.slow is None else marks.index_fill(0, self.slow, 1.0)
        return marks.unflatten(0, self.x.shape[:2]) > 0

    def kept_index(self) -> Tensor:
        """``(B, K)``: the positions on the slow path, ascending, where images have as many."""
        if self.slow is None:
            return super().kept_index()
        return (self.slow % self.num_patches).reshape(self.x.shape[0], -1)

    def membership(self) -> Tensor:
        """``(B, N)``: each position's own, -1 on the cheap path."""
        here = torch.arange(self.num_patches, device=self.x.device)
        return torch.where(self.kept(), here, -1)

    def remembering(self) -> Map:
        """The same: nothing is dropped that would have to be remembered."""
        return self

    def full_map(self) -> Tensor:
        """``(B, *grid, C)``."""
        return self.x.unflatten(1, self.grid)
