"""From a dense vision transformer to one that drops patch tokens, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, overload

from torch import nn

from dynamicvit.backbones import backbone_for
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import core_of
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.errors import InputError

if TYPE_CHECKING:
    from dynamicvit.transformers.model import DynamicViTForImageClassification


KeepRatio = float | Sequence[float]
Stages = Sequence[int] | None


class TransformersModel(Protocol):
    """A model of Hugging Face transformers to type checkers, which need not have it installed."""

    main_input_name: str
    base_model_prefix: str


@overload
def sparsify(
    model: TransformersModel,
    keep_ratio: KeepRatio = 0.7,
    stages: Stages = None,
    policy: Policy = "removed",
) -> DynamicViTForImageClassification: ...


@overload
def sparsify(
    model: nn.Module,
    keep_ratio: KeepRatio = 0.7,
    stages: Stages = None,
    policy: Policy = "removed",
) -> DynamicViT: ...


def sparsify(
    model: nn.Module | TransformersModel,
    keep_ratio: KeepRatio = 0.7,
    stages: Stages = None,
    policy: Policy = "removed",
) -> DynamicViT | DynamicViTForImageClassification:
    """Turn a vision transformer into one that drops patch tokens.

    The prediction modules are fresh: fine-tune the result, or load its weights.

    Args:
        model: a supported vision transformer; used as it is, not copied.
        keep_ratio: ρ, from which the stages keep ρ, ρ², ρ³, ... of the original patches; or one
            ratio for each stage.
        stages: indices of the blocks before which tokens are dropped; by default at 1/4, 2/4 and
            3/4 of the depth.
        policy: what becomes of dropped tokens: ``"removed"``, as in the paper, or ``"merged"`` into
            the kept token that is most like each, which costs a little and loses far less.

    Returns:
        A :class:`~dynamicvit.DynamicViT`; for a model of Hugging Face transformers, one of
        transformers around it (:mod:`dynamicvit.transformers.model`).

    Raises:
        UnsupportedBackboneError: naming the class that is not supported, and the families.
        InputError: for a value that can't be, or something that is no dense model.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"sparsify takes a model, as timm.create_model makes it, got {model!r}")
    if isinstance(core_of(model), DynamicViT):
        raise InputError("the model is a DynamicViT already: set its keep_ratio instead")
    bound = backbone_for(model)
    schedule = Schedule.for_depth(len(bound.blocks), keep_ratio, stages, policy)
    sparse = DynamicViT(bound, schedule)
    if bound.source != "transformers":
        return sparse
    from dynamicvit.transformers.model import DynamicViTForImageClassification

    return DynamicViTForImageClassification.around(sparse)
