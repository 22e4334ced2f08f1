"""Tokens on their way through the network: what the two paths hand from block to block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Heads(NamedTuple):
    """What a block's attention works on.

    Attributes:
        query: ``(B, H, Q, D)``, normed and rotated; its products with keys are divided by √D. Q is
            T where all tokens ask.
        key: ``(B, H, T, D)``, likewise.
        value: ``(B, H, T, D)``.
        bias: broadcastable to ``(B, H, Q, T)``, or ``None``.
        dropout_p: dropout probability of the attention weights, 0 outside training.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None = None
    dropout_p: float = 0.0


@dataclass(frozen=True)
class Tokens:
    """The tokens of a batch between two blocks.

    Patch tokens are always in image order. In the dense network and at the start all N are held;
    in the pruned path only the kept ones are, in the masked path the dropped ones stay and their
    decision is 0.

    Attributes:
        x: ``(B, P + M, C)``, the P prefix tokens first, then the M patch tokens still held.
        num_prefix: P, the number of prefix tokens (class, distillation, registers).
        index: ``(B, M)``, which of the N original patches each held patch token is; ``None`` when
            all N are held, in order. A token made of several patches has the place of one of them.
        decision: ``(B, M)``, 1 for kept and 0 for dropped; ``None`` when every held token is kept.
        added: how many of the P are none of the backbone's own, and so have no place: the last.
        size: ``(B, M)``, how many patches each held token counts for; ``None`` when each counts
            for one.
        groups: ``(B, N)``, the position among the held tokens of the one that each original patch
            is part of, -1 for none; ``None`` when every held token is one patch.
        heads: what the attention of the block before worked on, for these tokens; ``None`` where
            they are not those that the block saw.
    """

    x: Tensor
    num_prefix: int
    index: Tensor | None = None
    decision: Tensor | None = None
    added: int = 0
    size: Tensor | None = None
    groups: Tensor | None = None
    heads: Heads | None = None

    @property
    def patches(self) -> Tensor:
        """``(B, M, C)``: the patch tokens without the prefix."""
        return self.x[:, self.num_prefix :]

    @property
    def num_patches(self) -> int:
        """M: how many patch tokens are held."""
        return self.x.shape[1] - self.num_prefix

    @property
    def weight(self) -> Tensor | None:
        """``(B, M)``: how much each patch token counts in a pool; ``None`` when all count alike."""
        if self.decision is None or self.size is None:
            return self.size if self.decision is None else self.decision
        return self.decision * self.size

    def key_decision(self) -> Tensor | None:
        """``(B, P + M)``: the decision of every token as a key; prefix tokens are never dropped."""
        return self._with_prefix(self.decision)

    def key_size(self) -> Tensor | None:
        """``(B, P + M)``: the size of every token as a key; a prefix token counts for one."""
        return self._with_prefix(self.size)

    def key_weight(self) -> Tensor | None:
        """``(B, P + M)``: how much every token counts in a pool over all of them."""
        return self._with_prefix(self.weight)

    def _with_prefix(self, values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        return torch.cat([values.new_ones(values.shape[0], self.num_prefix), values], dim=1)

    def with_x(self, x: Tensor, heads: Heads | None = None) -> Tokens:
        """The same tokens after a block: new values, same bookkeeping."""
        return replace(self, x=x, heads=heads)
