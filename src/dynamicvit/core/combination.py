"""Methods that make one token of several, in place of dropping some."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from dynamicvit.core.method import Draw, Masked, Method
from dynamicvit.core.schedule import Policy
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens


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
