"""What a file of weights says of the model that it is of, where no config says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynamicvit.checkpoints.dense import is_sparse
from dynamicvit.checkpoints.released import is_released, read_metadata
from dynamicvit.checkpoints.released.spatial import spatial_layout
from dynamicvit.core.hub import DESCRIPTION, policy_in
from dynamicvit.core.schedule import Policy
from dynamicvit.errors import InputError
from dynamicvit.utils.fields import MOST_OF_RECIPES, parse_json
from dynamicvit.utils.weights import Weights
from dynamicvit.utils.words import shortened


@dataclass(frozen=True)
class Description:
    """Of a DynamicViT's weights; ``None`` where the file does not say.

    Attributes:
        method: name of the method that they were trained for.
        policy: for dropped tokens.
        keep_ratio: ρ, or one ratio for each stage.
        stages: block indices.
        restore_before: block before which dropped tokens come back.
    """

    method: str | None = None
    policy: Policy | None = None
    keep_ratio: float | tuple[float, ...] | None = None
    stages: tuple[int, ...] | None = None
    restore_before: int | None = None


def described(weights: Weights) -> Description:
    """What a file says: our safetensors' header, a checkpoint's recipe, or the authors' format."""
    if is_released(weights.tensors):
        stages = read_metadata(weights).get("stages")
        policy = "removed" if spatial_layout(weights.tensors) is None else "cheap"
        return Description("dynamicvit", policy, stages=stages and tuple(stages))
    if not is_sparse(weights):
        return Description()
    values = values_of(weights)
    schedule = values.get("schedule", values)  # a recipe has them at its top
    if not isinstance(schedule, dict):
        raise InputError(f"{weights.source}: schedule must be a mapping, got {shortened(schedule)}")
    ratios, stages = schedule.get("keep_ratios", schedule.get("keep_ratio")), schedule.get("stages")
    known = "policy" in schedule or "dropped" in schedule
    method = values.get("method") or "dynamicvit"
    return Description(
        # Without the module that a recipe may name: a file imports nothing.
        method=method.rpartition(":")[2],
        policy=policy_in(schedule) if known else None,
        keep_ratio=tuple(ratios) if isinstance(ratios, list) else ratios,
        stages=None if stages is None else tuple(stages),
        restore_before=schedule.get("restore_before"),
    )


def values_of(weights: Weights) -> Mapping[str, Any]:
    """What the header says of method, schedule and, of an add-on, its backbone.

    Raises:
        InputError: for anything but checked fields of JSON.
    """
    source = f"{weights.source}: its metadata"
    values = parse_json(weights.metadata.get(DESCRIPTION, "{}"), source, MOST_OF_RECIPES)
    if not isinstance(values, dict):
        raise InputError(f"{source}: {DESCRIPTION} must be a mapping, got {shortened(values)}")
    return values
