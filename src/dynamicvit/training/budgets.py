"""The budget of each training step, where one model should serve many."""

from __future__ import annotations

from dataclasses import replace

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError

#: The golden ratio's fractional part. Of its multiples' fractional parts any few in a row are
#: spread evenly.
_GOLDEN = (5**0.5 - 1) / 2

#: Powers of a schedule's shares that are looked at, and halvings between them.
_STEEPEST, _HALVINGS = 16.0, 40


class Budgets:
    """Schedules between two keep ratios, one for each step.

    The ratios are spread evenly, so that the few steps which an optimizer's momentum averages hold
    small, middle and large ones; steps drawn by chance need not. They depend on the number of the
    step alone: neither resuming nor another number of processes or passes changes them.

    A schedule that no ρ gives (:attr:`~dynamicvit.DynamicViT.keep_ratio` is ``None``) keeps its
    form: its shares to such a power that it holds as many tokens, on average over the blocks, as
    the paper's three stages at ρ.

    Args:
        model: what is trained.
        least: the smallest keep ratio ρ.
        greatest: the greatest.

    Raises:
        InputError: for a model without a stage, budgets that are not ascending or outside (0, 1],
            or ones that its own schedule does not lie between.
    """

    def __init__(self, model: DynamicViT, least: float, greatest: float) -> None:
        said = f"budgets [{least:g}, {greatest:g}]"
        if not 0 < least <= greatest <= 1:
            raise InputError(f"{said}: give two keep ratios in (0, 1], ascending")
        if not model.schedule.stages:
            raise InputError(f"{said}: the model has no stage that drops tokens; set budgets=null")
        self._model, self._own = model, model.schedule
        self._has_ratio = model.keep_ratio is not None
        self.least, self.greatest = least, greatest
        low, own, high = (
            schedule.mean_kept(model.depth)
            for schedule in (self.schedule(least), self._own, self.schedule(greatest))
        )
        if not low - 1e-6 <= own <= high + 1e-6:
            ratio = model.keep_ratio
            ratios = self._own.keep_ratios if ratio is None else (ratio,)
            kept = ", ".join(f"{each:.3g}" for each in ratios)
            raise InputError(
                f"{said} leave out the model's own, {kept}: widen them, or set budgets=null to "
                "train for that one alone"
            )

    def at(self, step: int) -> Schedule:
        """The schedule of a step, counted from 0."""
        share = (0.5 + step * _GOLDEN) % 1.0
        return self.schedule(self.least + share * (self.greatest - self.least))

    def schedule(self, keep_ratio: float) -> Schedule:
        """The model's schedule at a keep ratio.

        Raises:
            InputError: for one below what the form of a schedule can reach.
        """
        if self._has_ratio:
            return self._model.at(keep_ratio).schedule
        depth = self._model.depth
        wanted = Schedule.for_depth(depth, keep_ratio).mean_kept(depth)
        low, high = 0.0, _STEEPEST
        if self._raised(high).mean_kept(depth) > wanted:
            raise InputError(
                f"budget {keep_ratio:g}: the schedule's stages {self._own.stages} are too late for "
                "that; set greater budgets"
            )
        for _ in range(_HALVINGS):
            power = (low + high) / 2
            more = self._raised(power).mean_kept(depth) > wanted
            low, high = (power, high) if more else (low, power)
        return self._raised(high)

    def _raised(self, power: float) -> Schedule:
        ratios = tuple(ratio**power for ratio in self._own.keep_ratios)
        return replace(self._own, keep_ratios=ratios)
