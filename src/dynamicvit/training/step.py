"""The gradients of one step: student against teacher (Section 3.3), however the batch is split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from timm.data import Mixup
from torch import Tensor, nn

from dynamicvit.core.decisions import best_k_sampler, gumbel_sampler, gumbel_top_k_sampler
from dynamicvit.core.losses import Losses, LossWeights, dynamicvit_loss
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import image_channels, own_image_size
from dynamicvit.core.outputs import MaskedOutput
from dynamicvit.data import UNLABELED, Batch
from dynamicvit.errors import InputError
from dynamicvit.training.draws import NoisySampler, SplitDraws
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.teachers import Teachers
from dynamicvit.utils.distributed import Processes

SAMPLERS: dict[str, NoisySampler] = {
    "independent": gumbel_sampler,
    "top-k": gumbel_top_k_sampler,
    "best-k": best_k_sampler,
}


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

    The parts of the loss are means over the images, the token loss is one over all surviving
    tokens of the whole batch (Eq. 13). Each pass counts for its share of them, so the gradients
    are those of one pass over the whole batch, up to rounding.

    Args:
        model: the student, in ``train()``, as :meth:`Processes.student` gave it; its sampler is
            set.
        teachers: whom the losses ask.
        recipe: of the run.
        processes: that share the batch.
        precision: dtype of autocast, or none.
        accumulate: passes in which a process works off its images, to save memory.
        mixup: of images and labels, if any. It mixes the images of a pass.
    """

    def __init__(
        self,
        model: DynamicViT,
        teachers: Teachers,
        recipe: Recipe,
        processes: Processes,
        *,
        precision: torch.dtype | None = None,
        accumulate: int = 1,
        mixup: Mixup | None = None,
    ) -> None:
        self.recipe = recipe
        self.processes = processes
        self.accumulate = accumulate
        self.draws = SplitDraws(SAMPLERS[recipe.decisions], processes.device)
        model.sampler, model.masking = self.draws, recipe.masking
        self.scaler = torch.amp.GradScaler(
            processes.device.type, enabled=precision is torch.float16
        )
        self._pass = _Pass(model, teachers, recipe, precision, mixup)
        self._wrapped = processes.wrap(self._pass)

    def backward(self, batch: Batch, split: Split) -> Measured:
        """Leave the gradients, scaled by :attr:`scaler`, in the student's parameters."""
        pieces = _pieces(batch, self.accumulate)
        counts = [len(piece) for piece in pieces]
        if not pieces:  # the other processes wait for this one's gradients, which are zero
            pieces, counts = [_placeholder(self._pass.model, self.processes.device)], [0]
        if self.processes.holders > 1:  # they put the weights together in each pass
            missing = self.accumulate - len(pieces)
            pieces += missing * [_placeholder(self._pass.model, self.processes.device)]
            counts += missing * [0]
        survivors = self._survivors_ahead(pieces, counts, split) if self.accumulate > 1 else None
        weights = self.recipe.losses.weights()
        sums: Tensor | float = 0.0
        names: list[str] = []
        bad_masks: list[Tensor] = []
        for number, (piece, count) in enumerate(zip(pieces, counts, strict=True)):
            self._begin(split, number, counts)
            is_last = number == len(pieces) - 1
            with nullcontext() if is_last else self.processes.no_sync(self._wrapped):
                first = split.first + sum(counts[:number])
                losses, shares, alive, bad = self.processes.run(
                    self._pass.model, self._wrapped, piece, first
                )
                images = count / split.total
                tokens = self._token_share(alive, count, split, survivors)
                parts = {
                    name: part * (tokens if name == "token" else images)
                    for name, part in vars(losses).items()
                    if name != "total"
                }
                parts["total"] = sum(getattr(weights, name) * part for name, part in parts.items())
                # DDP and FSDP divide the sum of the processes' gradients by their number.
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

    def _begin(self, split: Split, number: int, counts: Sequence[int]) -> None:
        """Seed what a pass draws from: decisions for the whole batch, the rest for itself."""
        seed_everything(self.recipe.seed, split.step, self.processes.rank, number)
        first = split.first + sum(counts[:number])
        self.draws.begin(_draw(self.recipe.seed, split.step), first, split.total)

    @property
    def _survivors_vary(self) -> bool:
        """Whether chance decides how many tokens survive, and that matters to the loss."""
        return self.recipe.decisions == "independent" and self.recipe.losses.token > 0

    def _token_share(
        self, alive: Tensor, count: int, split: Split, survivors: Tensor | None
    ) -> Tensor | float:
        """This pass's share of the surviving tokens of the whole batch."""
        if not self._survivors_vary:  # of each image as many survive
            return count / split.total
        alive = alive * (count > 0)
        survivors = self.processes.sum(alive) if survivors is None else survivors
        return alive / survivors.clamp(min=1.0)

    def _survivors_ahead(
        self, pieces: Sequence[Batch], counts: Sequence[int], split: Split
    ) -> Tensor | None:
        """Surviving tokens of the whole batch, before the first of several backward passes.

        That takes one more forward pass of the student, where chance decides how many they are.
        """
        if not self._survivors_vary:
            return None
        survivors = torch.zeros((), device=self.processes.device)
        for number, (piece, count) in enumerate(zip(pieces, counts, strict=True)):
            self._begin(split, number, counts)
            alive = self.processes.run(self._pass.model, self._pass.survivors, piece)
            survivors = survivors + alive * (count > 0)
        return self.processes.sum(survivors)


class _Pass(nn.Module):
    """One pass as a module, for DDP to wrap.

    Of what it gives nothing but the losses has a gradient: DDP waits for the gradients of all
    weights that the output hangs on.
    """

    def __init__(
        self,
        model: DynamicViT,
        teachers: Teachers,
        recipe: Recipe,
        precision: torch.dtype | None,
        mixup: Mixup | None,
    ) -> None:
        super().__init__()
        self.model = model
        self._fixed = teachers, recipe, precision, mixup  # in a tuple: nothing of it is trained

    def forward(self, batch: Batch, first: int) -> tuple[Losses, Tensor, Tensor, Tensor]:
        """The losses, and what is only counted.

        Args:
            batch: of this pass.
            first: place of its first image in the step's whole batch.

        Returns:
            The losses; ``(2 · stages,)`` the kept shares, by decision and by score; the number of
            surviving tokens; ``(B,)`` bool, the images whose logits are not finite.
        """
        output, losses = step_losses(
            self.model, self._fixed[0], batch, *self._fixed[1:], first=first
        )
        drawn = [decision.detach().float().mean() for decision in output.decisions]
        # Without scores there is nothing but the decisions to say what is kept.
        likely = [(odds.detach() > 0).float().mean() for odds in output.log_odds] or drawn
        shares = torch.stack(drawn + likely) if drawn else output.logits.new_zeros(0)
        bad = ~output.logits.detach().isfinite().all(dim=1)
        return losses, shares, _survivors(output), bad

    @torch.no_grad()
    def survivors(self, batch: Batch) -> Tensor:
        """The number of surviving tokens alone; draws as :meth:`forward` does."""
        _, recipe, precision, mixup = self._fixed
        images, _ = mix(batch, recipe, mixup)
        with torch.autocast(images.device.type, precision, enabled=precision is not None):
            return _survivors(self.model.forward_masked(images))


def step_losses(
    model: DynamicViT,
    teachers: Teachers,
    batch: Batch,
    recipe: Recipe,
    precision: torch.dtype | None,
    mixup: Mixup | None = None,
    first: int = 0,
) -> tuple[MaskedOutput, Losses]:
    """Teachers, student under its decisions, and the losses (Eq. 12-16) of one batch.

    It may be part of a larger one, in which its first image has place ``first``.
    """
    images, labels = mix(batch, recipe, mixup)
    weights = loss_weights(model, recipe)
    guided = _guided(first, len(images), recipe.guided) if weights.guidance else None
    shares_stem = recipe.share_stem and model.schedule.stages
    with torch.autocast(images.device.type, precision, enabled=precision is not None):
        start = teachers.shared_stem(model, images) if shares_stem else images
        taught = teachers.ask(start, images, guided)
        output = model.forward_masked(start)
        losses = dynamicvit_loss(
            output,
            model.schedule.keep_ratios,
            labels=labels,
            teacher=taught.dense,
            teacher_logits=taught.logits,
            distillation=recipe.teacher.distillation(),
            label_smoothing=recipe.augment.smoothing,
            weights=weights,
        )
    return output, losses


def loss_weights(model: DynamicViT, recipe: Recipe) -> LossWeights:
    """The recipe's, without guidance where no ranking is learned: it would teach nothing."""
    weights = recipe.losses.weights()
    learns = any(True for _ in model.predictors.parameters())
    return weights if learns else replace(weights, guidance=0.0)


def create_mixup(recipe: Recipe, num_classes: int) -> Mixup | None:
    """timm's mixup and cutmix, if asked for."""
    augment = recipe.augment
    if not (augment.mixup or augment.cutmix) or not augment.mixup_prob:
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mixup_prob,
        mode=augment.mixup_mode,
        label_smoothing=0.0,  # after mixing, see mix
        num_classes=num_classes + 1,  # the last is that of images without a label
    )


def seed_everything(*entropy: int) -> None:
    """Seed the generators, so that a run that goes on draws what it would have drawn.

    torch draws dropped paths, numpy timm's mixup; decisions have a generator of their own.
    """
    draw = _draw(*entropy)
    random.seed(draw)
    torch.manual_seed(draw)
    np.random.seed(draw)  # noqa: NPY002 - timm's mixup uses the global generator


def _draw(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _guided(first: int, count: int, share: float) -> Tensor:
    """``(count,)`` bool: every so many images of the whole batch, however it is split."""
    ends = ((torch.arange(first, first + count + 1, dtype=torch.float64) * share) + 1e-9).floor()
    return ends.diff() > 0


def mix(batch: Batch, recipe: Recipe, mixup: Mixup | None) -> tuple[Tensor, Tensor]:
    """Images ``(B, 3, H, W)`` and labels, mixed if asked for."""
    images, labels = batch.images, batch.labels
    if mixup is None:
        return images, labels
    if len(images) % 2:  # timm's mixup pairs images: one of them is its own partner
        images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
    nothing, smoothing = mixup.num_classes - 1, recipe.augment.smoothing
    if (labels >= nothing).any():
        raise InputError(f"label {int(labels.max())}, but the model has {nothing} classes")
    # It mixes in place; a second pass over the same images must find them as they were.
    images, targets = mixup(images.clone(), labels.masked_fill(labels == UNLABELED, nothing))
    known = targets[:, nothing:] == 0  # of half a label nothing is learned
    return images, (targets[:, :nothing] * (1 - smoothing) + smoothing / nothing) * known


def _survivors(output: MaskedOutput) -> Tensor:
    """How many patch tokens of all images survived the last stage."""
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
    images = torch.zeros(1, image_channels(model), *own_image_size(model), device=device)
    return Batch(images, torch.zeros(1, dtype=torch.long, device=device))
