"""The methods that a model can be looked at with, each at any budget, on the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import core_of
from dynamicvit.core.schedule import Schedule
from dynamicvit.core.spatial import least_keep_ratio
from dynamicvit.costs import Costs, costs_of
from dynamicvit.errors import InputError
from dynamicvit.methods import METHODS
from dynamicvit.methods.budgets import NETWORKS
from dynamicvit.sparsification import DEFAULT_KEEP_RATIO, DEFAULT_METHOD, sparsify

#: The step of the budget, and its least.
STEP = 0.05


class Choices:
    """A model, and the methods that work untrained on its backbone, by dropping tokens of it.

    Args:
        model: whose method comes first. All share its weights.

    Attributes:
        models: a model of each method, by name.
        own: name of the model's own method.
        schedule: the model's own, where no keep ratio gives it, as of ``dynamicvit tune``.
    """

    def __init__(self, model: DynamicViT) -> None:
        self.own = model.method.name or model.method.__name__
        self.schedule: Schedule | None = None
        if model.schedule.stages and model.keep_ratio is None:
            self.schedule = model.schedule
        self.models = {self.own: model}
        self._costs: dict[tuple[Any, ...], Costs] = {}
        dense = model.like(model.bound, Schedule((), ()))
        for name, method in METHODS.items():
            if method.works_untrained and method not in NETWORKS and name not in self.models:
                try:
                    made = core_of(sparsify(dense, DEFAULT_KEEP_RATIO, method=name)).eval()
                except InputError:  # not for this backbone
                    continue
                assert isinstance(made, DynamicViT)
                self.models[name] = made
        if not model.schedule.stages and len(self.models) > 1:  # dense as it was saved
            del self.models[self.own]
            self.own = next(iter(self.models))
            if DEFAULT_METHOD in self.models:
                self.own = DEFAULT_METHOD

    def costs(self, model: DynamicViT, size: Sequence[int]) -> Costs:
        """What the parts of a model of :meth:`at` cost, measured once.

        Args:
            model: at any budget.
            size: height and width of the images.
        """
        key = (model.method, len(model.schedule.stages), tuple(size))
        if key not in self._costs:
            self._costs[key] = costs_of(model, key[1], key[2])
        return self._costs[key]

    @property
    def keep_ratio(self) -> float:
        """Where the budget begins: the model's own ρ."""
        return self.models[self.own].keep_ratio or DEFAULT_KEEP_RATIO

    @property
    def least(self) -> float:
        """The least ρ that the model's own method takes."""
        model = self.models[self.own]
        return round(least_keep_ratio(model.method, len(model.schedule.stages)) + STEP, 2)

    def at(self, method: str, keep_ratio: float | None = None) -> DynamicViT:
        """A method at a budget: a view, as of :meth:`DynamicViT.at`.

        Args:
            method: its name.
            keep_ratio: ρ; ``None`` for the model's own schedule.

        Raises:
            InputError: for a method that is not among these, or a ratio that it can't have.
        """
        if method not in self.models:
            raise InputError(f"no method {method!r} here: one of {', '.join(self.models)}")
        if keep_ratio is not None:
            return self.models[method].at(float(keep_ratio))
        model = self.models[self.own]
        if method != self.own:
            raise InputError(f"the schedule is of {self.own}; {method} takes a keep ratio")
        return model.at(model.schedule)
