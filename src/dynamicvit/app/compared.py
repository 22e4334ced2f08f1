"""What a model says of one input dense and sparse, and what this very run of each cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import Tensor

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import eval_mode, untrained_on_purpose
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.core.schedule import Schedule
from dynamicvit.costs import Costs, costs_of
from dynamicvit.data import Prediction, class_names, top_classes

#: Timed calls of each path; ``dynamicvit bench`` measures for longer, and gives the spread.
ROUNDS = 3


@dataclass(frozen=True)
class Side:
    """One of the two paths.

    Attributes:
        logits: ``(classes,)``, or a map ``(classes, rows, columns)``.
        top: the likeliest classes, of a map those with most places; empty without a classifier.
        milliseconds: of one call at batch 1, median of :data:`ROUNDS`.
        gmacs: billions of multiply-adds.
    """

    logits: Tensor
    top: list[Prediction]
    milliseconds: float
    gmacs: float


@dataclass(frozen=True)
class SideBySide:
    """One input, dense and sparse.

    Attributes:
        method: name of the method.
        keep_ratio: ρ; ``None`` where the schedule is none that a keep ratio gives.
        output: of the pruned path: kept patches and keep scores, stage by stage.
        sparse: the pruned path.
        dense: the dense network.
        agreement: whether both say the same class, 1 or 0; of maps the share of equal places.
        untrained: whether nobody has trained what chooses the patches.
    """

    method: str
    keep_ratio: float | None
    output: PrunedOutput
    sparse: Side
    dense: Side
    agreement: float
    untrained: bool

    @property
    def speedup(self) -> float:
        """How many times as fast the sparse path was as the dense one."""
        return self.dense.milliseconds / self.sparse.milliseconds

    @property
    def kept(self) -> list[int]:
        """Patches kept after each stage."""
        return [int(kept.sum()) for kept in self.output.kept]


@torch.inference_mode()
def side_by_side(
    model: DynamicViT,
    image: Tensor,
    names: Sequence[str] | None = None,
    costs: Costs | None = None,
) -> SideBySide:
    """Run one input dense and sparse, in turn.

    Args:
        model: at the budget to look at, as ``model.at(0.5)``; its mode is restored.
        image: ``(C, H, W)``, or a clip ``(T, C, H, W)``; normalized.
        names: of the classes; by default the model's own.
        costs: of the model's parts (:func:`~dynamicvit.costs.costs_of`), if they are known.

    Raises:
        InputError: for an image of a size that the model does not take, or names of another number.
    """
    names = class_names(model) if names is None else names
    images = image[None].to(next(model.parameters()).device)
    untrained = any(method.is_fresh for method in model.methods)
    with eval_mode(model), untrained_on_purpose(model):
        output, dense = model.forward_pruned(images), model.dense(images)
        seconds = _in_turn(lambda: model(images), lambda: model.dense(images))
    schedule = _as_run(model, output)
    if costs is None:
        costs = costs_of(model, len(schedule.stages), image.shape[-2:])
    sparse, whole = (
        Side(
            logits[0].cpu(),
            top_classes(logits[0].cpu(), names) if model.num_classes > 0 else [],
            1000 * median(taken),
            macs / 1e9,
        )
        for logits, taken, macs in (
            (output.logits, seconds[0], costs.total(schedule)),
            (dense, seconds[1], costs.dense),
        )
    )
    same = sparse.logits.argmax(dim=0) == whole.logits.argmax(dim=0)
    return SideBySide(
        model.method.name or model.method.__name__,
        model.keep_ratio,
        output,
        sparse,
        whole,
        float(same.float().mean()),
        untrained,
    )


def _in_turn(*work: Callable[[], Tensor]) -> list[list[float]]:
    """Seconds of calls of each piece of work, which take turns: a machine's speed drifts."""
    taken: list[list[float]] = [[] for _ in work]
    for _ in range(ROUNDS):
        for call, times in zip(work, taken, strict=True):
            before = time.perf_counter()
            call().flatten()[:1].tolist()  # waits for the device
            times.append(time.perf_counter() - before)
    return taken


def _as_run(model: DynamicViT, output: PrunedOutput) -> Schedule:
    """The schedule, with what this very image kept where each has a number of its own."""
    if model.per_image is None:
        return model.schedule
    shares = tuple(max(float(kept.float().mean()), 1 / kept.shape[1]) for kept in output.kept)
    return replace(model.schedule, keep_ratios=shares)
