"""From a dense vision transformer to one that drops patch tokens, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, overload

from torch import nn

from dynamicvit.backbones import Hierarchical, backbone_for
from dynamicvit.core.method import Method
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import core_of
from dynamicvit.core.per_image import PerImage, check_compares_images
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.core.schedule_file import ScheduleFile, ScheduleSource
from dynamicvit.core.spatial import method_for
from dynamicvit.errors import InputError
from dynamicvit.methods import at_macs, method_named, own_schedules
from dynamicvit.methods.budgets import NETWORKS
from dynamicvit.utils.renamed import renamed_arguments

if TYPE_CHECKING:
    from dynamicvit.transformers import DynamicViTForImageClassification


DEFAULT_METHOD, DEFAULT_KEEP_RATIO = "lookahead", 0.7
"""What a model gets where nobody says otherwise, here and in every command."""

KeepRatio = float | Sequence[float]
Stages = Sequence[int] | None


class TransformersModel(Protocol):
    """A model of Hugging Face transformers to type checkers, which need not have it installed."""

    main_input_name: str
    base_model_prefix: str


@overload
def sparsify(
    model: TransformersModel,
    keep_ratio: KeepRatio = DEFAULT_KEEP_RATIO,
    stages: Stages = None,
    policy: Policy | None = None,
    method: str | None = None,
    schedule: ScheduleSource | None = None,
    per_image: bool = False,
) -> DynamicViTForImageClassification: ...


@overload
def sparsify(
    model: nn.Module,
    keep_ratio: KeepRatio = DEFAULT_KEEP_RATIO,
    stages: Stages = None,
    policy: Policy | None = None,
    method: str | None = None,
    schedule: ScheduleSource | None = None,
    per_image: bool = False,
) -> DynamicViT: ...


@renamed_arguments(dropped='policy="removed" or "merged"')
def sparsify(
    model: nn.Module | TransformersModel,
    keep_ratio: KeepRatio = DEFAULT_KEEP_RATIO,
    stages: Stages = None,
    policy: Policy | None = None,
    method: str | None = None,
    schedule: ScheduleSource | None = None,
    per_image: bool = False,
) -> DynamicViT | DynamicViTForImageClassification:
    """Turn a vision transformer into one that drops patch tokens.

    By default by look-ahead merging, which can be used at once. The paper's prediction modules
    (``method="dynamicvit"``) are fresh: fine-tune the result, or load its weights. Used before
    that, it warns (:class:`~dynamicvit.UntrainedWarning`).

    Args:
        model: a supported vision transformer, or a dense model of this library
            (:func:`~dynamicvit.segmenter`); used as it is, not copied.
        keep_ratio: ρ, from which the paper's three stages keep ρ, ρ², ρ³ of the original patches;
            or one ratio for each stage. A method with stages of its own ("lookahead", "tome",
            "diffrate" and others) holds about as many tokens, on average over the blocks, as that.
        stages: indices of the blocks before which tokens are dropped, for a method that has none of
            its own; by default at 1/4, 2/4 and 3/4 of the depth.
        policy: what becomes of dropped tokens: ``"merged"`` into the kept token that is most like
            each, which costs a little and loses far less; ``"removed"``, as in the papers; or
            ``"bypassed"``, back in its place at the end. By default DynamicViT merges and the
            other methods do as published.
        method: how tokens are chosen or combined: a name in :data:`~dynamicvit.methods.METHODS`.
            "narrow" drops none: it copies the network, narrower by as much work; "fewer-pixels"
            likewise, for smaller frames. By default "lookahead", or what the schedule's file says.
        schedule: in place of ``keep_ratio``, ``stages`` and ``policy``: where and how much to drop,
            or a file of that (:class:`~dynamicvit.ScheduleFile`), as ``dynamicvit tune`` writes it.
        per_image: easy images keep fewer tokens and hard ones more, as many on average as the
            schedule says; ``model.calibrate(images)`` finds out how many. For a method whose keep
            scores compare images, as "dynamicvit", "class-attention" and "evit".

    Returns:
        A :class:`~dynamicvit.DynamicViT`; for a model of Hugging Face transformers, one of
        transformers around it (:mod:`dynamicvit.transformers`).

    Raises:
        UnsupportedBackboneError: naming the class that is not supported, and the families.
        InputError: for a value that can't be, something that is no dense model, an unknown method,
            or one that the model can't have.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"sparsify takes a model, as timm.create_model makes it, got {model!r}")
    dense = core_of(model)
    if isinstance(dense, DynamicViT):
        if dense.schedule.stages:
            raise InputError("the model is a DynamicViT already: set its keep_ratio instead")
        model = dense.backbone
    if schedule is not None:
        for name, value in (("stages", stages), ("policy", policy)):
            if value is not None:
                raise InputError(f"{name} {value}: the schedule says that already, give one")
    bound, chosen = backbone_for(model), None
    if schedule is not None:
        found = ScheduleFile.of(schedule, len(bound.blocks))
        method, chosen = found.method if method is None else method, found.schedule
    if method is None:
        method = PredictionModule.name if isinstance(bound, Hierarchical) else DEFAULT_METHOD
    kind = method_for(method_named(method), bound)
    if chosen is not None and not kind.takes_any_schedule:
        raise InputError(f"method {method} can't drop tokens by a schedule that is given")
    if per_image:
        check_compares_images(kind)
    if kind in NETWORKS:
        shares = Schedule.for_depth(len(bound.blocks), keep_ratio, stages)
        return at_macs(method, dense, shares.mean_kept(len(bound.blocks)), policy=policy)
    if chosen is None:
        if not isinstance(keep_ratio, Sequence):
            own_schedules(method, bound, stages)
        chosen = kind.schedule(bound, keep_ratio, stages, policy)
    if bound.reads_map:
        chosen = _with_every_patch(chosen, policy, kind, len(bound.blocks))
    if isinstance(dense, DynamicViT):  # a dense segmentation model gives a sparse one
        return dense.like(bound, chosen, kind)
    sparse = DynamicViT(bound, chosen, kind)
    sparse.per_image = PerImage() if per_image else None
    if bound.source != "transformers":
        return sparse
    from dynamicvit.transformers import model_class_for

    found: Any = model_class_for(bound).around(sparse)
    return found


def _with_every_patch(
    schedule: Schedule, policy: Policy | None, kind: type[Method], depth: int
) -> Schedule:
    """The schedule with every patch back at the end; removed ones wait instead, unless asked."""
    if schedule.policy == "removed" and policy is None:
        schedule = replace(schedule, policy="merged" if kind.merges else "bypassed")
    back = depth if schedule.restore_before is None else schedule.restore_before
    return replace(schedule, restore_before=back)
