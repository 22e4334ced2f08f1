"""Which network a released checkpoint is of: from names, shapes, metadata and the file's name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from dynamicvit.checkpoints.released.layouts import (
    Layout,
    match_layout,
    released_name,
    rename_released,
)
from dynamicvit.checkpoints.released.metadata import Metadata, find_keep_ratio
from dynamicvit.checkpoints.released.nearest import known_network, likeness
from dynamicvit.checkpoints.released.shapes import Shapes
from dynamicvit.checkpoints.released.zoo import Architecture, architecture_of
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.sparsification import sparsify
from dynamicvit.utils.weights import Weights, load_exactly, open_weights, weights_in

#: timm's network that one without a name of its own is built from, by layout.
BUILT_FROM = {"DeiT": "deit_small_patch16_224", "LV-ViT": "lvvit_s"}
#: Channels per head in every DeiT.
HEAD_WIDTH = 64
#: The authors' evaluation makes 224 px out of the middle of 256; timm's crop for DeiT is wider.
CROP_PCT = 224 / 256
_DEFAULT_STAGES = len(Schedule.for_depth(4).stages)


@dataclass(frozen=True)
class Recognized:
    """A released checkpoint, and what it was found to be.

    Attributes:
        source: what messages call it.
        weights: its tensors under the released names.
        layout: whose names they are.
        shapes: what the shapes say.
        architecture: the row of the paper's tables; ``None`` for a size that they lack.
        num_heads: H.
        residual_divisor: what each residual branch is divided by.
        keep_ratio: ρ, or one ratio for each stage.
        keep_ratio_from: where that was found: ``"as given"``, ``"from its metadata"`` or
            ``"from its name"``.
        stages: blocks before which tokens are dropped; ``None`` for 1/4, 2/4, 3/4 of the depth.
    """

    source: str
    weights: Weights = field(repr=False)
    layout: Layout
    shapes: Shapes
    architecture: Architecture | None
    num_heads: int
    residual_divisor: float
    keep_ratio: float | Sequence[float]
    keep_ratio_from: str
    stages: Sequence[int] | None

    @property
    def name(self) -> str:
        """The architecture's name, or its layout and size."""
        if self.architecture is not None:
            return self.architecture.name
        return f"{self.layout.name} layout, {self.shapes.width} wide, {self.shapes.depth} blocks"

    def build(self) -> DynamicViT:
        """The model with these weights, in ``eval()``.

        Raises:
            InputError: if a tensor's shape does not go with the others.
        """
        known = self.architecture
        args = self.shapes.backbone_args() | {"num_heads": self.num_heads}
        if self.layout.name == "LV-ViT":
            args["residual_divisor"] = self.residual_divisor
        backbone = timm.create_model(
            known.model if known else BUILT_FROM[self.layout.name],
            pretrained_cfg_overlay={"crop_pct": CROP_PCT},
            **args,
        )
        model = sparsify(backbone, self.keep_ratio, self.stages)
        tensors = rename_released(self.weights.tensors)
        source = f"{self.source}: does not fit {self.name}"
        load_exactly(model, tensors, source, spoken=released_name)
        return model.eval()


def recognize(
    path_or_state_dict: str | Path | Mapping[str, Any],
    keep_ratio: float | Sequence[float] | None = None,
    num_heads: int | None = None,
    *,
    stages: Sequence[int] | None = None,
    residual_divisor: float | None = None,
    ema: bool = False,
) -> Recognized:
    """What a released checkpoint is of; see :func:`load_released` for what it takes.

    Raises:
        InputError: if the file can't be read, is of another architecture, or leaves open what
            neither metadata nor arguments say.
    """
    if isinstance(path_or_state_dict, (str, Path)):
        source, file_name = str(path_or_state_dict), Path(path_or_state_dict).name
        weights = open_weights(path_or_state_dict, ema)
    else:
        source, file_name = "the state dict", ""
        weights = weights_in(path_or_state_dict, source, ema=ema)
    layout = _pruned_layout(weights.tensors, source)
    shapes = Shapes.read(weights.tensors, layout, source)
    said = Metadata(weights.metadata, source)
    architecture = architecture_of(layout.name, shapes.width, shapes.depth)
    relative = architecture or said.relative()
    num_heads = said.number_of_heads() if num_heads is None else num_heads
    if residual_divisor is None:
        residual_divisor = said.residual_divisor()
    if residual_divisor is None and relative is not None and relative.layout == layout.name:
        residual_divisor = relative.residual_divisor
    stages = said.stages() if stages is None else stages
    return Recognized(
        source,
        weights,
        layout,
        shapes,
        architecture,
        _heads(num_heads, architecture, layout, shapes, source),
        _divisor(residual_divisor, layout, shapes, source),
        *find_keep_ratio(keep_ratio, said, file_name),
        _stage_positions(stages, shapes, source),
    )


# ---------------------------------------------------------------- names


def _pruned_layout(tensors: Mapping[str, Tensor], source: str) -> Layout:
    """The layout, if it is one with prediction modules; else what to do with the file."""
    instead = "give its timm name, and this file as its checkpoint"
    if any(name.startswith("predictors.") for name in tensors):
        raise InputError(
            f"{source}: is no released DynamicViT, but this library's own state dict; {instead}"
        )
    layout = match_layout(tensors)
    if layout is None:
        like = likeness(tensors)
        other = "" if like.nearest and like.layout.pruned else f"; for another network {instead}"
        raise InputError(f"{source}: is no released checkpoint, {like}{other}")
    if layout.pruned:
        return layout
    known = known_network(tensors)
    name = None if known is None else known.architecture.timm_name(known.image_size)
    example = "" if name is None else f" (--model {name} --checkpoint {source})"
    raise InputError(
        f"{source}: has no score_predictor, so it is a dense network; {instead}{example}"
    )


# ---------------------------------------------------------------- what shapes can't tell


def _heads(
    given: int | None,
    architecture: Architecture | None,
    layout: Layout,
    shapes: Shapes,
    source: str,
) -> int:
    """The given number of heads if it divides the width, or the architecture's."""
    width = shapes.width
    if given is not None:
        if given < 1 or width % given:
            raise InputError(f"num_heads must divide the width {width}, got {given}")
        return given
    if architecture is not None:
        return architecture.num_heads
    if layout.name == "DeiT" and width % HEAD_WIDTH == 0:
        return width // HEAD_WIDTH
    raise InputError(
        f"{source}: no {layout.name} of the paper is {width} wide with {shapes.depth} blocks, so "
        f"the number of heads is open; give num_heads (dynamicvit convert --num-heads)"
    )


def _divisor(given: float | None, layout: Layout, shapes: Shapes, source: str) -> float:
    """What residual branches are divided by: 1 in DeiT."""
    if layout.name == "DeiT":
        if given not in (None, 1):
            raise InputError(
                f"{source}: is a {layout.name}, which divides no residual branches; leave "
                f"residual_divisor (--residual-divisor) out, got {given}"
            )
        return 1.0
    if given is None:
        raise InputError(
            f"{source}: no {layout.name} of the paper is {shapes.width} wide with {shapes.depth} "
            f"blocks, so what divides its residual branches is open; give residual_divisor "
            f"(dynamicvit convert --residual-divisor)"
        )
    if not 0 < given < math.inf:
        raise InputError(f"residual_divisor must be positive, got {given}")
    return given


def _stage_positions(
    stages: Sequence[int] | None, shapes: Shapes, source: str
) -> Sequence[int] | None:
    """The given stages if they are as many as the prediction modules."""
    given = _DEFAULT_STAGES if stages is None else len(stages)
    if given != shapes.num_stages:
        raise InputError(
            f"{source}: holds {shapes.num_stages} prediction modules, but {given} stages are "
            f"{'the default' if stages is None else 'given'}; give stages, one block index each"
        )
    return stages
