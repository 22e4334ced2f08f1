"""DynamicViT: a vision transformer that drops patch tokens on its way (Fig. 2 of the paper)."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from dynamicvit.backbones import Backbone, backbone_for
from dynamicvit.core.hub import HubMixin
from dynamicvit.core.method import Method
from dynamicvit.core.paths import Paths
from dynamicvit.core.per_image import PerImage, calibrated
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.core.spatial import check_policy, method_for
from dynamicvit.core.timm_surface import TimmSurface
from dynamicvit.errors import InputError, UntrainedWarning
from dynamicvit.utils.renamed import Renamed

#: Schedules of keep ratios that a model keeps.
_MOST_KNOWN = 256


class DynamicViT(Paths, TimmSurface, HubMixin, nn.Module):
    """A vision transformer with a method at each of its stages that drops patch tokens.

    In ``eval()`` calling the model gives logits ``(B, classes)`` through the pruned path; in
    ``train()`` it gives a :class:`~dynamicvit.MaskedOutput`. Each path can be called by name in
    either mode. The backbone's batch norms keep their statistics in either mode (:meth:`train`).

    Args:
        backbone: a supported vision transformer. It is used as it is and not changed: calling it
            directly still gives its dense output.
        schedule: where and how much to drop.
        predictors: a :class:`~dynamicvit.core.method.Method` for each stage; or the class of which
            each stage gets a fresh one, by default the paper's prediction modules.

    Attributes:
        bound: the backbone with what its family says of it.
        per_image: what gives each image a number of tokens of its own (:meth:`calibrate`); ``None``
            for the same number for all.
        warns_untrained: whether the next inference says so if nobody has trained the scores.

    Raises:
        UnsupportedBackboneError: if no family covers the backbone.
        InputError: if the schedule does not fit its depth, or a method not its stage.
    """

    def __init__(
        self,
        backbone: nn.Module | Backbone,
        schedule: Schedule,
        predictors: Sequence[Method] | type[Method] = PredictionModule,
    ) -> None:
        super().__init__()
        self.bound = backbone_for(backbone)
        self.backbone: nn.Module = self.bound.module
        self._schedule = schedule.checked(self.depth)
        kind = predictors if isinstance(predictors, type) else PredictionModule
        self._without_stages = kind = method_for(kind, self.bound)
        if isinstance(predictors, type):
            predictors = kind.for_stages(self.bound, schedule.stages)
        if len(predictors) != len(schedule.stages):
            raise InputError(f"{len(schedule.stages)} stages, but {len(predictors)} predictors")
        for predictor, block in zip(predictors, schedule.stages, strict=True):
            self._check_method(predictor, block)
        self.predictors = nn.ModuleList(predictors)
        self._check_policy(schedule)
        self.per_image: PerImage | None = None
        self.warns_untrained = True
        self._known: dict[tuple[Any, ...], Schedule] = {}
        self._freeze_statistics()

    @property
    def method(self) -> type[Method]:
        """How tokens are chosen or combined: the class of the stages' modules."""
        if not len(self.predictors):
            return self._without_stages
        first = self.methods[0]
        return type(getattr(first, "original_module", first))  # where PEFT trains it whole

    @property
    def methods(self) -> list[Method]:
        """What happens at each stage: the predictors."""
        return [cast(Method, predictor) for predictor in self.predictors]

    # ---------------------------------------------------------------- budget

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.bound.blocks)

    @property
    def blocks(self) -> nn.ModuleList | nn.Sequential:
        """The backbone's transformer blocks, in order."""
        return self.bound.blocks

    @property
    def schedule(self) -> Schedule:
        """Where and how much is dropped, and what becomes of it.

        Set it to change all of that. The stages of prediction modules stay where they were trained;
        those of a method without weights can be anywhere.
        """
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        schedule = schedule.checked(self.depth)
        self._check_policy(schedule)
        if schedule.stages != self._schedule.stages:
            if any(method.state_dict() and not method.is_fresh for method in self.methods):
                raise InputError(
                    f"stages can't be moved from {self._schedule.stages} to {schedule.stages}: "
                    f"{self.method.name or self.method.__name__} was trained where they are"
                )
            weights, moved = (
                next(self.backbone.parameters()),
                DynamicViT(self.bound, schedule, self.method),
            )
            self.predictors = moved.predictors.to(weights.device, weights.dtype)
            self.predictors.train(self.training)
        self._schedule = schedule

    @property
    def keep_ratios(self) -> tuple[float, ...]:
        """The share of the original patches that each stage keeps. Set it to change the budget."""
        return self._schedule.keep_ratios

    @keep_ratios.setter
    def keep_ratios(self, keep_ratios: Sequence[float]) -> None:
        self.keep_ratio = keep_ratios

    @property
    def keep_ratio(self) -> float | None:
        """ρ; ``None`` where no ρ gives the stages' ratios (see :attr:`keep_ratios`).

        Set it to change the budget of the same model: a number for ρ, a sequence for one ratio per
        stage, both as :func:`~dynamicvit.sparsify` takes them.
        """
        return self.method.keep_ratio_of(self.bound, self._schedule)

    @keep_ratio.setter
    def keep_ratio(self, keep_ratio: float | Sequence[float]) -> None:
        self._schedule = self._schedule_at(keep_ratio)

    @property
    def policy(self) -> Policy:
        """What becomes of dropped tokens. Set it before training: who is kept depends on it."""
        return self._schedule.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        back = self._schedule.restore_before
        back = None if policy == "removed" or back == self.depth else back
        self.schedule = replace(self._schedule, policy=policy, restore_before=back)

    def at(self, budget: float | Sequence[float] | Schedule) -> DynamicViT:
        """The model at another budget: a view that shares every weight; this one keeps its own.

        A view costs microseconds and no memory, so each request can have one, in any thread:
        ``model.at(0.5)(images)``. Make it in the mode that it should run in: ``train()`` and
        ``eval()`` change the shared modules. It runs as it is written, not as
        ``model.compile()`` or a hook on the whole model has changed this one.

        Args:
            budget: a keep ratio, or one for each stage, as :attr:`keep_ratio` takes them; or a
                schedule, as :attr:`schedule` does.

        Raises:
            InputError: as setting those.
        """
        if self.warns_untrained:  # looked up once, not for every view
            self.warns_untrained = any(method.is_fresh for method in self.methods)
        view = object.__new__(type(self))
        vars(view).update(vars(self), _modules=dict(self._modules))
        # What hides a method of the class is bound to this object, and so to its budget.
        for name in [k for k, v in vars(self).items() if callable(v) and hasattr(type(self), k)]:
            del vars(view)[name]
        if isinstance(budget, Schedule):
            view.schedule = budget
        else:
            view.keep_ratio = budget
        return view

    def like(
        self,
        backbone: nn.Module | Backbone,
        schedule: Schedule,
        predictors: Sequence[Method] | type[Method] = (),
    ) -> DynamicViT:
        """A model for the same task: with another schedule or method, or on a copied backbone.

        What the answer is read with is the backbone's own here; a subclass that has more shares it.

        Args:
            backbone: this one's, which is then shared; or a copy of it.
            schedule: as for the class.
            predictors: likewise.
        """
        return DynamicViT(backbone, schedule, predictors)

    def blank_labels(self, images: Tensor) -> Tensor:
        """Labels of class 0, as training would get them for these images: ``(B,)`` here."""
        return torch.zeros(len(images), dtype=torch.long, device=images.device)

    def dense(self, images: Tensor) -> Tensor:
        """Logits of the dense network, as its own library computes them."""
        return self.bound.dense(images)

    def _schedule_at(self, keep_ratio: float | Sequence[float]) -> Schedule:
        """What a keep ratio means here; the last are kept, as some methods choose among many."""
        now = self._schedule
        found = self._without_restoring(keep_ratio)
        if now.restore_before is None:
            return found
        return replace(found, restore_before=now.restore_before)

    def _without_restoring(self, keep_ratio: float | Sequence[float]) -> Schedule:
        now = self._schedule
        if not isinstance(keep_ratio, float):
            return self.method.schedule(self.bound, keep_ratio, now.stages, now.policy)
        key = keep_ratio, now.stages, now.policy, self.bound.image_size
        found = self._known.get(key)
        if found is None:
            found = self.method.schedule(self.bound, keep_ratio, now.stages, now.policy)
            if len(self._known) == _MOST_KNOWN:
                self._known.clear()
            self._known[key] = found
        return found

    def calibrate(self, images: Tensor | Iterable[Tensor], cap: float | None = None) -> None:
        """From now on give each image a number of tokens of its own, the schedule's on average.

        A stage then keeps the patches whose keep score passes a threshold, which is the same for
        every image; an image keeps halfway between the mean and as many. The mean is that of these
        images at the keep ratio of the moment. At one that is set later, the stages after the first
        miss it by some percent: calibrate again. Training is as ever, and
        ``model.per_image = None`` gives all images the same number again.

        Args:
            images: some hundreds of the kind that will come, without labels:
                ``(n, channels, height, width)`` or batches of that, normalized.
            cap: no image keeps more than so many times the mean at a stage; by default any number.

        Raises:
            InputError: for a method whose scores don't compare images, too few images, images of
                a size that the model does not take, or a cap below 1.
        """
        self.per_image = calibrated(self, images, cap)

    dropped = Renamed('policy, "removed", "merged" or "bypassed"')
    sampler = Renamed("an argument: forward_masked(sampler=)")
    leave = Renamed("an argument: forward_masked(masking=)")
    stem = Renamed("first_blocks, which gives Tokens")

    # ---------------------------------------------------------------- the mode

    def train(self, mode: bool = True) -> Self:
        """Training or inference; the statistics of batch norms stay the pretrained ones.

        The released code lets LV-ViT's stem collect new ones. With frozen ones teacher and student
        see the same stem, no image depends on its batch, and training sees what inference does.

        Args:
            mode: whether to train.
        """
        super().train(mode)
        self._freeze_statistics()
        return self

    def _freeze_statistics(self) -> None:
        for module in self.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    # ---------------------------------------------------------------- untrained scores

    def _warn_if_untrained(self, x: Tensor) -> None:
        """Once, where values are computed that somebody may use."""
        unseen = torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta
        if self.training or unseen:
            return
        self.warns_untrained = False
        if any(method.is_fresh for method in self.methods):
            warnings.warn(
                f"what chooses the tokens ({self.method.__name__}) is untrained, so those that are "
                "dropped mean nothing yet: train the model (dynamicvit.train) or load its weights"
                + or_untrained(self.policy),
                UntrainedWarning,
                stacklevel=frames_to_the_caller(),
            )

    def _check_policy(self, schedule: Schedule) -> None:
        check_policy(schedule, self.bound)
        if schedule.policy == "bypassed" and any(method.merges for method in self.methods):
            name = self.method.name or self.method.__name__
            raise InputError(
                f"policy 'bypassed' is for methods that drop tokens, as dynamicvit; {name} makes "
                "them part of others"
            )

    def _check_method(self, predictor: Method, block: int) -> None:
        name = type(predictor).__name__
        if not isinstance(predictor, Method):
            raise InputError(f"predictors are Methods (dynamicvit.core.method), got a {name}")
        method_for(type(predictor), self.bound)
        if predictor.looks_back and block == 0:
            raise InputError(f"{name} looks at the block before, but stage 0 has none")
        if predictor.reactivates and (predictor.looks_back or predictor.adds or predictor.merges):
            raise InputError(f"{name} reactivates: it can't look back, add tokens or merge as well")
        if predictor.needs_class_token and not self.bound.has_class_token:
            raise InputError(f"{name} needs a class token; this backbone has none")


def or_untrained(policy: Policy) -> str:
    """What to do in place of training, where there is something; for messages."""
    return "" if policy == "cheap" else ', or take a method that needs no training, as "lookahead"'


def frames_to_the_caller() -> int:
    """How many frames up the user's own line is: past this package's and torch's."""
    ours = str(Path(__file__).parents[1]), str(Path(torch.__file__).parent)
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame, level = frame.f_back, level + 1
    return level
