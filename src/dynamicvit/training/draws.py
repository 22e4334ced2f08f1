"""Decisions that don't depend on how a batch is split over processes and passes."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class NoisySampler(Protocol):
    """A sampler of :mod:`dynamicvit.core.decisions`, which takes its noise from outside."""

    def __call__(
        self, log_probs: Tensor, decision: Tensor, k: int, noise: Tensor | None = None
    ) -> Tensor:
        """Decisions ``(B, M)``; ``noise`` as ``log_probs``, ``(B, M, 2)``."""
        ...


class SplitDraws:
    """A sampler that draws for some images of a batch what it would draw for the whole batch.

    It draws the noise of the whole batch, which costs next to nothing, and takes its rows of it.

    Args:
        sampler: what makes decisions of the noise.
        device: of the model.
    """

    def __init__(self, sampler: NoisySampler, device: torch.device) -> None:
        self.sampler = sampler
        self._generator = torch.Generator(device)
        self._first = self._total = 0

    def begin(self, seed: int, first: int, total: int) -> None:
        """Before each forward pass.

        Args:
            seed: of the whole batch.
            first: place in the whole batch of the first image.
            total: images in the whole batch.
        """
        self._generator.manual_seed(seed)
        self._first, self._total = first, total

    @torch.compiler.disable
    def _noise(self, log_probs: Tensor) -> Tensor:
        last = self._first + len(log_probs)
        shape = (max(self._total, last), *log_probs.shape[1:])
        noise = torch.empty(shape, dtype=log_probs.dtype, device=log_probs.device)
        return noise.exponential_(generator=self._generator)[self._first : last]

    def __call__(self, log_probs: Tensor, decision: Tensor, k: int) -> Tensor:
        """A stage's decisions, see :data:`~dynamicvit.core.decisions.Sampler`."""
        return self.sampler(log_probs, decision, k, self._noise(log_probs))
