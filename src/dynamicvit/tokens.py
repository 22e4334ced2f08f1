"""Tokens on their way through the network: what the two paths hand from block to block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
            all N are held, in order.
        decision: ``(B, M)``, 1 for kept and 0 for dropped; ``None`` when every held token is kept.
    """

    x: Tensor
    num_prefix: int
    index: Tensor | None = None
    decision: Tensor | None = None

    @property
    def patches(self) -> Tensor:
        """``(B, M, C)``: the patch tokens without the prefix."""
        return self.x[:, self.num_prefix :]

    @property
    def num_patches(self) -> int:
        """M: how many patch tokens are held."""
        return self.x.shape[1] - self.num_prefix

    def key_decision(self) -> Tensor | None:
        """``(B, P + M)``: the decision of every token as a key; prefix tokens are never dropped."""
        if self.decision is None:
            return None
        prefix = self.decision.new_ones(self.decision.shape[0], self.num_prefix)
        return torch.cat([prefix, self.decision], dim=1)

    def with_x(self, x: Tensor) -> Tokens:
        """The same tokens after a block: new values, same bookkeeping."""
        return Tokens(x, self.num_prefix, self.index, self.decision)
