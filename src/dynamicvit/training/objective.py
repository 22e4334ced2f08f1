"""What training minimizes: the losses of a student under its decisions, against its teachers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.core.decisions import Sampler, gumbel_sampler
from dynamicvit.core.losses import (
    Distillation,
    Losses,
    LossWeights,
    distillation_loss,
    dynamicvit_loss,
)
from dynamicvit.core.method import Masking
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import eval_mode
from dynamicvit.core.outputs import DenseOutput, MaskedOutput
from dynamicvit.core.teacher import ask, dense_teacher, warn_if_fresh_classifier, weigh_some
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens
from dynamicvit.training.budgets import Budgets
from dynamicvit.training.draws import SAMPLERS, SplitDraws
from dynamicvit.training.external_teacher import ExternalTeacher
from dynamicvit.training.recipe import Recipe


class TrainingObjective(nn.Module):
    """The training loss of a model (Section 3.3, Eq. 12-16) as one module.

    It asks the teachers, runs the student's masked path, and gives the losses. ``fit`` and
    ``train`` use it, and so can a loop of your own, wrapped in DDP as any module::

        objective = TrainingObjective(model).train()
        for images, labels in loader:
            objective(images, labels).total.backward()

    The dense teacher is a frozen copy of the backbone as it is now; a frozen backbone is its own.
    Teachers move with the objective, but are neither among its parameters nor in its state dict. A
    part without a weight is not computed, and a teacher that no part needs is not kept.

    Args:
        model: the student.
        weights: of the parts; by default the paper's.
        teacher: another network, whose logits are distilled in place of the dense backbone's.
        sampler: draws the decisions, see :meth:`DynamicViT.forward_masked`.
        masking: when dropped tokens leave memory, see :meth:`DynamicViT.forward_masked`.
        share_first_blocks: run the blocks before the first stage once for teacher and student, and
            leave them as they are: where nothing has been dropped yet, the dense weights are right.
        guided: share of the images that the guidance loss looks at.
        freeze_backbone: the prediction modules alone learn. The backbone itself then is the dense
            teacher, so no copy is in memory, and no gradient of its weights is computed; it stays
            in ``eval()``.
        distillation: the loss of the logits, of :mod:`dynamicvit.core.losses`.
        label_smoothing: of targets that are class indices.
        budgets: least and greatest keep ratio that steps are spread over, so that one model serves
            any budget between them (:class:`~dynamicvit.training.budgets.Budgets`); by default
            every step has the model's own.

    Attributes:
        model: the student.
        weights: of the parts; guidance has none where no ranking is learned.
        dense_teacher: the backbone's dense self; ``None`` where no part needs it.
        external_teacher: the other network; ``None`` where there is none or distillation is off.
        budgets: of the steps; ``None`` where there is one.
        step: number of the next call, which says its budget.

    Raises:
        InputError: for budgets that the model can't have, or with decisions that keep as many
            tokens at every budget (:func:`~dynamicvit.core.decisions.gumbel_sampler`).
    """

    def __init__(
        self,
        model: DynamicViT,
        *,
        weights: LossWeights | None = None,
        teacher: ExternalTeacher | None = None,
        sampler: Sampler = gumbel_sampler,
        masking: Masking = "full",
        share_first_blocks: bool = False,
        guided: float = 1.0,
        freeze_backbone: bool = False,
        distillation: Distillation = distillation_loss,
        label_smoothing: float = 0.0,
        budgets: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        weights = LossWeights() if weights is None else weights
        if not learns_ranking(model):
            weights = replace(weights, guidance=0.0)
        self.model = model
        self.weights = weights
        self.sampler = sampler
        self.masking: Masking = masking
        self.share_first_blocks = share_first_blocks and bool(model.schedule.stages)
        self.guided = guided
        self.freeze_backbone = freeze_backbone
        self.distillation = distillation
        self.label_smoothing = label_smoothing
        self.budgets = None if budgets is None else Budgets(model, *budgets)
        self.step = 0
        if budgets is not None and getattr(sampler, "sampler", sampler) is gumbel_sampler:
            raise InputError(
                f"budgets {list(budgets)} need a sampler that keeps as many tokens as a budget "
                "says: best_k_sampler or gumbel_top_k_sampler"
            )
        external = teacher if weights.distillation else None
        by_dense = weights.token or weights.feature or weights.guidance
        by_dense = by_dense or (weights.distillation and external is None)
        if weights.guidance or (weights.distillation and external is None):
            warn_if_fresh_classifier(model)
        if freeze_backbone:
            _check_learns(model)
            model.backbone.requires_grad_(False).eval()
        # In a tuple, so that they are no submodules.
        dense = dense_teacher(model, shared=freeze_backbone) if by_dense else None
        self._teachers = dense, external

    @property
    def dense_teacher(self) -> DynamicViT | None:
        """The backbone's dense self as it was at the start, frozen."""
        return self._teachers[0]

    @property
    def external_teacher(self) -> ExternalTeacher | None:
        """Another network, for its logits."""
        return self._teachers[1]

    @property
    def teachers(self) -> list[nn.Module]:
        """Those that there are."""
        return [each for each in self._teachers if each is not None]

    def train(self, mode: bool = True) -> TrainingObjective:
        """The student in ``train()``; a frozen backbone stays in ``eval()``, as its own teacher."""
        super().train(mode)
        if self.freeze_backbone:
            self.model.backbone.eval()
        return self

    def forward(self, images: Tensor, targets: Tensor | None = None) -> Losses:
        """Each part of the loss, and the weighted total to call ``backward`` on.

        Args:
            images: ``(B, channels, height, width)``, normalized as the student wants them.
            targets: ``(B,)`` class indices, negative for images without a label; or
                ``(B, classes)`` probabilities, as of timm's mixup. Needed for classification only.
        """
        return self.with_output(images, targets)[1]

    def with_output(
        self, images: Tensor, targets: Tensor | None = None, *, first: int = 0
    ) -> tuple[MaskedOutput, Losses]:
        """The same with what the masked path gave.

        Args:
            images: as in :meth:`forward`.
            targets: as in :meth:`forward`.
            first: place of the first image in a larger batch: it decides which images are guided.
        """
        start = self._first_blocks(images) if self.share_first_blocks else images
        taught, logits = self._ask(images, start, first)
        student = self._student()
        output = self._run(student, start)
        if logits is not None and logits.ndim == 4:  # a map, of the other network's own size
            size = output.logits.shape[2:]
            logits = F.interpolate(logits.float(), size, mode="bilinear")
        self.step += 1
        losses = dynamicvit_loss(
            output,
            student.keep_ratios,
            labels=targets,
            teacher=taught,
            teacher_logits=logits,
            distillation=self.distillation,
            label_smoothing=self.label_smoothing,
            weights=self.weights,
        )
        return output, losses

    def run_student(self, images: Tensor | Tokens) -> MaskedOutput:
        """The student's masked path alone."""
        return self._run(self._student(), images)

    def _student(self) -> DynamicViT:
        """The model at the budget of the next step."""
        return self.model if self.budgets is None else self.model.at(self.budgets.at(self.step))

    def _run(self, student: DynamicViT, images: Tensor | Tokens) -> MaskedOutput:
        return student.forward_masked(images, sampler=self.sampler, masking=self.masking)

    def _first_blocks(self, images: Tensor) -> Tokens:
        """The tokens before the first stage, for student and dense teacher alike."""
        with torch.no_grad(), eval_mode(self.model):
            return self.model.first_blocks(images)

    def _ask(
        self, images: Tensor, start: Tensor | Tokens, first: int
    ) -> tuple[DenseOutput | None, Tensor | None]:
        """What the dense teacher says, and the logits of the other; ``None`` if nobody asks."""
        dense, external = self._teachers
        logits = None if external is None else external(images)
        if dense is None:
            return None, logits
        if not self.weights.guidance:
            return ask(dense, start), logits
        guided = _every_so_many(first, len(images), self.guided)
        return weigh_some(dense, start, guided.to(images.device)), logits

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        for teacher in self.teachers:
            teacher._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)


def objective_of(
    model: DynamicViT,
    recipe: Recipe,
    teacher: ExternalTeacher | None = None,
    device: torch.device | str = "cpu",
) -> TrainingObjective:
    """What a recipe minimizes.

    Args:
        model: the student, as it is at the start.
        recipe: of the run.
        teacher: the network that the recipe names, if it does.
        device: where the decisions will be drawn.

    Raises:
        InputError: if the recipe names a network that is not given, or none for one that is.
    """
    name = recipe.teacher.model
    if teacher is not None and name is None:
        raise InputError("a teacher is given, but the recipe names none: set its teacher.model")
    if teacher is None and recipe.asks_external_teacher:
        raise InputError(f"the recipe's teacher is {name}: give that network, as ExternalTeacher")
    return TrainingObjective(
        model,
        weights=recipe.losses.weights(),
        teacher=teacher,
        sampler=SplitDraws(SAMPLERS[recipe.decisions], torch.device(device)),
        masking=recipe.masking,
        share_first_blocks=recipe.share_first_blocks,
        guided=recipe.guided,
        freeze_backbone=recipe.freeze_backbone,
        distillation=recipe.teacher.distillation(),
        label_smoothing=recipe.augment.smoothing,
        budgets=recipe.budgets,
    )


def learns_ranking(model: DynamicViT) -> bool:
    """Whether its method has weights that guidance teaches which tokens matter."""
    has_weights = any(True for _ in model.predictors.parameters())
    return has_weights and not model.method.works_untrained


def taught_by_dense_self(recipe: Recipe, model: DynamicViT) -> tuple[str, ...]:
    """The parts of a recipe's loss that look at the dense model; guidance, if it has a ranking."""
    parts = recipe.taught_by_dense_self
    return parts if learns_ranking(model) else tuple(part for part in parts if part != "guidance")


def _check_learns(model: DynamicViT) -> None:
    """Refuse a model of which nothing is left to learn without its backbone."""
    if not any(parameter.requires_grad for parameter in model.predictors.parameters()):
        raise InputError(
            f"method {model.method.name!r} has no weights of its own, so nothing learns with a "
            "frozen backbone: take method dynamicvit, or let the backbone learn"
        )


def _every_so_many(first: int, count: int, share: float) -> Tensor:
    """``(count,)`` bool: every so many images of the whole batch, however it is split."""
    ends = ((torch.arange(first, first + count + 1, dtype=torch.float64) * share) + 1e-9).floor()
    return ends.diff() > 0
