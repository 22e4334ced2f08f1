"""Which network a released checkpoint is of: from names, shapes, metadata and the file's name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from dynamicvit.checkpoints.released.layouts import (
    Layout,
    Shapes,
    known_network,
    released_name,
    rename_released,
)
from dynamicvit.checkpoints.released.zoo import (
    ARCHITECTURES,
    Architecture,
    architecture_of,
    keep_ratio_in,
)
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.sparsification import sparsify
from dynamicvit.utils.weights import (
    Weights,
    first_few,
    load_exactly,
    open_weights,
    weights_in,
)

#: timm's network that one without a name of its own is built from, by layout.
BUILT_FROM = {"DeiT": "deit_small_patch16_224", "LV-ViT": "lvvit_s"}
#: Channels per head in every DeiT.
HEAD_WIDTH = 64
#: The authors' evaluation makes 224 px out of the middle of 256; timm's crop for DeiT is wider.
CROP_PCT = 224 / 256
_DEFAULT_STAGES = len(Schedule.for_depth(4).stages)
#: What a safetensors file may say about itself, and how to read it.
_METADATA: dict[str, Callable[[str], Any]] = {
    "rho": float,
    "num_heads": int,
    "residual_divisor": float,
    "stages": lambda text: [int(number) for number in json.loads(text)],
    "kind": str,  # timm's name of the full-size network that a small one is like
}


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
    """What a released checkpoint is of, or another one with the same names.

    Image and patch size, width, depth, MLP ratio, classes and the number of stages come from the
    shapes of the tensors. What shapes can't tell comes from the arguments, else from a safetensors
    file's metadata (``rho``, ``num_heads``, ``residual_divisor``, ``stages``), else from what is
    known of the networks of the paper.

    Args:
        path_or_state_dict: a ``.safetensors`` file, a ``torch.save`` file (only its tensors are
            loaded), or a state dict; the names may be wrapped in ``model`` or ``state_dict``.
        keep_ratio: ρ, or one ratio for each stage; else from the metadata or the file's name
            (``dynamic-vit_384_r0.7.pth``).
        num_heads: needed for a size that the paper does not have; for DeiT width / 64.
        stages: blocks before which tokens are dropped; by default 1/4, 2/4, 3/4 of the depth for
            three stages.
        residual_divisor: of LV-ViT; needed for a size that it does not come in.
        ema: take the moving average of the weights, where the file holds one beside them. The
            published accuracy is that of the weights themselves.

    Raises:
        InputError: if the file can't be read, is of another architecture, or leaves open what
            neither metadata nor arguments say.
    """
    if isinstance(path_or_state_dict, (str, Path)):
        source = str(path_or_state_dict)
        weights = open_weights(path_or_state_dict, ema)
    else:
        source = "the state dict"
        weights = weights_in(path_or_state_dict, source, ema=ema)
    layout = _pruned_layout(weights.tensors, source)
    shapes = Shapes.read(weights.tensors, layout, source)
    said = read_metadata(weights.metadata, source)
    architecture = architecture_of(layout.name, shapes.width, shapes.depth)
    relative = architecture or _relative(said.get("kind"), layout)
    if num_heads is None:
        num_heads = said.get("num_heads")
    if residual_divisor is None:
        residual_divisor = said.get("residual_divisor", relative and relative.residual_divisor)
    return Recognized(
        source,
        weights,
        layout,
        shapes,
        architecture,
        _heads(num_heads, architecture, layout, shapes, source),
        _divisor(residual_divisor, layout, shapes, source),
        *find_keep_ratio(keep_ratio, said, source),
        _stage_positions(said.get("stages") if stages is None else stages, shapes, source),
    )


def _relative(kind: str | None, layout: Layout) -> Architecture | None:
    """The full-size network that a small one says it is a kind of, if that has the same layout."""
    rows = (row for row in ARCHITECTURES if (row.model, row.layout) == (kind, layout.name))
    return next(rows, None)


def read_metadata(entries: Mapping[str, str], source: str) -> dict[str, Any]:
    """What a safetensors file says about itself, as values.

    Raises:
        InputError: for an entry that can't be read.
    """
    said = {}
    for key, read in _METADATA.items():
        if key in entries:
            try:
                said[key] = read(entries[key])
            except (ValueError, TypeError) as error:
                raise InputError(f"{source}: its metadata has {key}={entries[key]!r}") from error
    return said


def find_keep_ratio(
    given: float | Sequence[float] | None, said: Mapping[str, Any], source: str
) -> tuple[float | Sequence[float], str]:
    """ρ of a released checkpoint, or one ratio for each stage, and where that is from.

    Args:
        given: goes first.
        said: what :func:`read_metadata` read; goes before the file's name.
        source: the file, such as ``dynamic-vit_384_r0.7.pth``.

    Returns:
        The ratio, and ``"as given"``, ``"from its metadata"`` or ``"from its name"``.

    Raises:
        InputError: if none of them tells.
    """
    named = keep_ratio_in(Path(source).name)
    known = {"as given": given, "from its metadata": said.get("rho"), "from its name": named}
    for origin, ratio in known.items():
        if ratio is not None:
            return ratio, origin
    raise InputError(
        f"{source}: does not say its keep ratio, and neither do shapes; give keep_ratio "
        f"(--keep-ratio), such as 0.7"
    )


# ---------------------------------------------------------------- names


def _pruned_layout(tensors: Mapping[str, Tensor], source: str) -> Layout:
    """The layout, if it is one with prediction modules; else what to do with the file."""
    instead = "give its timm name, and this file as its checkpoint"
    if any(name.startswith("predictors.") for name in tensors):
        raise InputError(
            f"{source}: is no released DynamicViT, but this library's own state dict; {instead}"
        )
    layout = Layout.of(tensors)
    if not layout.fits(tensors):
        expected = layout.expected(tensors)
        kind = f"{'DynamicViT of' if layout.pruned else 'dense'} {layout.name}"
        parts = (
            f"{source}: its names are not those of a released {kind}",
            first_few("missing", [name for name in expected if name not in tensors]),
            first_few("unexpected", [name for name in tensors if name not in expected]),
            "" if layout.pruned else f"for another network {instead}",
        )
        raise InputError("; ".join(part for part in parts if part))
    if layout.pruned:
        return layout
    known = known_network(tensors)
    name = known and known.architecture.timm_name(known.image_size)
    example = f" (--model {name} --checkpoint {source})" if name else ""
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
