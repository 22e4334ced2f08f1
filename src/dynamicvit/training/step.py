"""The gradients of one step: student against teacher (Section 3.3), however the batch is split."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamicvit.core.losses import Losses
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import input_shape
from dynamicvit.core.outputs import MaskedOutput
from dynamicvit.data import Batch
from dynamicvit.training.draws import Mixing, SplitDraws, seed_everything, seed_of
from dynamicvit.training.objective import TrainingObjective
from dynamicvit.training.recipe import Recipe
from dynamicvit.utils.distributed import Processes


@dataclass(frozen=True)
class Split:
    """How the images of a step lie on processes and passes.

    Attributes:
        step: counted from 0.
        first: place in the whole batch of this process's first image.
        total: images in the whole batch, over all processes.
    """

    step: int
    first: int
    total: int


@dataclass(frozen=True)
class Measured:
    """What a step was, over the whole batch.

    Attributes:
        losses: each part by name, unweighted, and the total.
        kept: for each stage the mean share of patches that the decisions kept.
        kept_by_score: for each stage the mean share of patches that are still there and likelier
            kept than not by the scores alone.
        bad_answers: images whose logits were not finite.
        bad_places: which of this process's images they are, as far as they are its own.
    """

    losses: dict[str, float]
    kept: tuple[float, ...]
    kept_by_score: tuple[float, ...]
    bad_answers: int
    bad_places: tuple[int, ...]


class Step:
    """Computes the gradients of the whole batch's loss.

    The parts of the loss are means over the images, the token loss is one over all kept tokens of
    the whole batch (Eq. 13). Each pass counts for its share of them, so the gradients are those of
    one pass over the whole batch, up to rounding.

    Args:
        objective: of :func:`~dynamicvit.training.objective.objective_of`; its model is in
            ``train()``.
        recipe: of the run.
        processes: that share the batch.
        precision: dtype of autocast, or none.
        accumulate: passes in which a process works off its images, to save memory.
    """

    def __init__(
        self,
        objective: TrainingObjective,
        recipe: Recipe,
        processes: Processes,
        *,
        precision: torch.dtype | None = None,
        accumulate: int = 1,
    ) -> None:
        self.recipe = recipe
        self.processes = processes
        self.accumulate = accumulate
        self.scaler = torch.amp.GradScaler(
            processes.device.type, enabled=precision is torch.float16
        )
        self.mixing = Mixing(recipe.augment, objective.model.num_classes)
        self._pass = _Pass(objective, self.mixing, precision)
        self._wrapped = processes.wrap(self._pass)

    def backward(self, batch: Batch, split: Split) -> Measured:
        """Leave the gradients, scaled by :attr:`scaler`, in the student's parameters."""
        pieces = _pieces(batch, self.accumulate)
        counts = [len(piece) for piece in pieces]
        if not pieces:  # the other processes wait for this one's gradients, which are zero
            pieces, counts = [_placeholder(self._objective.model, self.processes.device)], [0]
        kept_tokens = self._kept_ahead(pieces, counts, split) if self.accumulate > 1 else None
        sums: Tensor | float = 0.0
        names: list[str] = []
        bad_masks: list[Tensor] = []
        for number, (piece, count) in enumerate(zip(pieces, counts, strict=True)):
            first = self._begin(split, number, counts)
            is_last = number == len(pieces) - 1
            with nullcontext() if is_last else self.processes.no_sync(self._wrapped):
                losses, shares, kept, bad = self._wrapped(piece, first)
                images = count / split.total
                tokens = self._token_share(kept, count, split, kept_tokens)
                parts = {
                    name: part * (tokens if name == "token" else images)
                    for name, part in vars(losses).items()
                    if name != "total"
                }
                weights = self._objective.weights
                parts["total"] = sum(getattr(weights, name) * part for name, part in parts.items())
                # DDP divides the sum of the processes' gradients by their number.
                self.scaler.scale(parts["total"] * self.processes.count).backward()
            names = list(parts)
            values = torch.stack(list(parts.values())).detach()
            bad_masks.append(bad[:count])
            sums = sums + torch.cat([values, shares * images, bad_masks[-1].sum().float()[None]])
        *values, bad_answers = self.processes.sum(sums).tolist()
        bad = torch.cat(bad_masks).nonzero()[:, 0].tolist() if bad_answers else ()
        half = (len(names) + len(values)) // 2  # of the shares, those by decision come first
        return Measured(
            losses=dict(zip(names, values, strict=False)),
            kept=tuple(values[len(names) : half]),
            kept_by_score=tuple(values[half:]),
            bad_answers=round(bad_answers),
            bad_places=tuple(bad),
        )

    @property
    def _objective(self) -> TrainingObjective:
        return self._pass.objective

    def _begin(self, split: Split, number: int, counts: Sequence[int]) -> int:
        """Seed what a pass draws from: decisions for the whole batch, the rest for itself.

        Returns:
            Place of its first image in the whole batch.
        """
        seed_everything(self.recipe.seed, split.step, self.processes.rank, number)
        first = split.first + sum(counts[:number])
        draws = self._objective.sampler
        assert isinstance(draws, SplitDraws)
        draws.begin(seed_of(self.recipe.seed, split.step), first, split.total)
        self._objective.step = split.step
        return first

    @property
    def _kept_vary(self) -> bool:
        """Whether chance decides how many tokens are kept, and that matters to the loss."""
        return self.recipe.decisions == "independent" and self.recipe.losses.token > 0

    def _token_share(
        self, kept: Tensor, count: int, split: Split, kept_tokens: Tensor | None
    ) -> Tensor | float:
        """This pass's share of the kept tokens of the whole batch."""
        if not self._kept_vary:  # of each image as many are kept
            return count / split.total
        kept = kept * (count > 0)
        total = self.processes.sum(kept) if kept_tokens is None else kept_tokens
        return kept / total.clamp(min=1.0)

    @torch.no_grad()
    def _kept_ahead(
        self, pieces: Sequence[Batch], counts: Sequence[int], split: Split
    ) -> Tensor | None:
        """Kept tokens of the whole batch, before the first of several backward passes.

        That takes one more forward pass of the student, where chance decides how many they are.
        """
        if not self._kept_vary:
            return None
        total = torch.zeros((), device=self.processes.device)
        for number, (piece, count) in enumerate(zip(pieces, counts, strict=True)):
            self._begin(split, number, counts)
            images, _ = self.mixing(piece)
            with self._pass.autocast(images):
                output = self._objective.run_student(images)
            total = total + _kept_tokens(output) * (count > 0)
        return self.processes.sum(total)


class _Pass(nn.Module):
    """One pass as a module, for DDP to wrap.

    Of what it gives nothing but the losses has a gradient: DDP waits for the gradients of all
    weights that the output hangs on.
    """

    def __init__(
        self, objective: TrainingObjective, mixing: Mixing, precision: torch.dtype | None
    ) -> None:
        super().__init__()
        self.objective = objective
        self.mixing = mixing
        self.precision = precision

    def forward(self, batch: Batch, first: int) -> tuple[Losses, Tensor, Tensor, Tensor]:
        """The losses, and what is only counted.

        Args:
            batch: of this pass.
            first: place of its first image in the step's whole batch.

        Returns:
            The losses; ``(2 · stages,)`` the kept shares, by decision and by score; the number of
            kept tokens; ``(B,)`` bool, the images whose logits are not finite.
        """
        images, targets = self.mixing(batch)
        with self.autocast(images):
            output, losses = self.objective.with_output(images, targets, first=first)
        drawn = [decision.detach().float().mean() for decision in output.decisions]
        # Without scores there is nothing but the decisions to say what is kept.
        likely = [(odds.detach() > 0).float().mean() for odds in output.keep_scores] or drawn
        shares = torch.stack(drawn + likely) if drawn else output.logits.new_zeros(0)
        bad = ~output.logits.detach().isfinite().flatten(1).all(dim=1)
        return losses, shares, _kept_tokens(output), bad

    def autocast(self, images: Tensor) -> torch.autocast:
        """The run's precision on the images' device."""
        return torch.autocast(
            images.device.type, self.precision, enabled=self.precision is not None
        )


def _kept_tokens(output: MaskedOutput) -> Tensor:
    """How many patch tokens of all images the last stage kept."""
    features = output.features
    if features.decision is None:
        return torch.tensor(float(features.patches.shape[:2].numel()), device=features.x.device)
    return features.decision.detach().sum()


def _pieces(batch: Batch, passes: int) -> list[Batch]:
    """The batch in so many parts, fewer where it has fewer images; none of none."""
    if not len(batch):
        return []
    images, labels = batch.images.chunk(passes), batch.labels.chunk(passes)
    return [Batch(*piece) for piece in zip(images, labels, strict=True)]


def _placeholder(model: DynamicViT, device: torch.device) -> Batch:
    images = torch.zeros(1, *input_shape(model), device=device)
    return Batch(images, model.blank_labels(images))
