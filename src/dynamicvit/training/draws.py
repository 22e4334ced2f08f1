"""What a step draws: decisions and mixtures of images, the same however its batch is split."""

from __future__ import annotations

import random
from typing import Protocol

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor

from dynamicvit.core.decisions import best_k_sampler, gumbel_sampler, gumbel_top_k_sampler
from dynamicvit.data import UNLABELED, Batch
from dynamicvit.errors import InputError
from dynamicvit.training.recipe import Decisions
from dynamicvit.training.recipe_parts import AugmentRecipe


class NoisySampler(Protocol):
    """A sampler of :mod:`dynamicvit.core.decisions`, which takes its noise from outside."""

    def __call__(
        self, keep_scores: Tensor, decision: Tensor, k: int, noise: Tensor | None = None
    ) -> Tensor:
        """Decisions ``(B, M)`` from scores ``(B, M)``; ``noise`` is ``(B, M, 2)``."""
        ...


SAMPLERS: dict[Decisions, NoisySampler] = {
    "independent": gumbel_sampler,
    "top-k": gumbel_top_k_sampler,
    "best-k": best_k_sampler,
}


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
    def _noise(self, keep_scores: Tensor) -> Tensor:
        last = self._first + len(keep_scores)
        shape = (max(self._total, last), *keep_scores.shape[1:], 2)
        noise = torch.empty(shape, dtype=keep_scores.dtype, device=keep_scores.device)
        return noise.exponential_(generator=self._generator)[self._first : last]

    def __call__(self, keep_scores: Tensor, decision: Tensor, k: int) -> Tensor:
        """A stage's decisions, see :data:`~dynamicvit.core.decisions.Sampler`."""
        return self.sampler(keep_scores, decision, k, self._noise(keep_scores))


class Mixing:
    """timm's mixup and cutmix, of images with and without labels; nothing where none is asked for.

    Args:
        augment: the recipe's part.
        num_classes: of the model.
    """

    def __init__(self, augment: AugmentRecipe, num_classes: int) -> None:
        self.num_classes, self.smoothing = num_classes, augment.smoothing
        self.mixup = None
        if (augment.mixup or augment.cutmix) and augment.mixup_prob:
            self.mixup = Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                prob=augment.mixup_prob,
                mode=augment.mixup_mode,
                label_smoothing=0.0,  # after mixing, below
                num_classes=num_classes + 1,  # the last is that of images without a label
            )

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images ``(B, 3, H, W)``, and ``(B, classes)`` targets, or the labels as they are.

        Of clips ``(B, T, 3, H, W)`` all frames are mixed alike.

        An odd batch becomes even: its last image would have no partner.

        Raises:
            InputError: for a label that the model lacks.
        """
        images, labels = batch.images, batch.labels
        if self.mixup is None:
            return images, labels
        if len(images) % 2:  # timm's mixup pairs images: one of them is its own partner
            images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
        nothing = self.num_classes
        if (labels >= nothing).any():
            raise InputError(f"label {int(labels.max())}, but the model has {nothing} classes")
        # It mixes in place; a second pass over the same images must find them as they were.
        shape = images.shape
        # Of clips, cutmix would take channels and rows for rows and columns.
        flat = images.flatten(1, -3).clone()
        images, targets = self.mixup(flat, labels.masked_fill(labels == UNLABELED, nothing))
        images = images.reshape(shape)
        known = targets[:, nothing:] == 0  # of half a label nothing is learned
        smoothed = targets[:, :nothing] * (1 - self.smoothing) + self.smoothing / nothing
        return images, smoothed * known


def seed_everything(*entropy: int) -> None:
    """Seed the generators, so that a run that goes on draws what it would have drawn.

    torch draws dropped paths, numpy timm's mixup; decisions have a generator of their own.
    """
    seed = seed_of(*entropy)
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm's mixup uses the global generator


def seed_of(*entropy: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
