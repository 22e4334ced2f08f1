"""Recognize the network of a released checkpoint: by names, shapes, metadata and file name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from dynamicvit.checkpoints.released.layouts import Layout, Shapes, is_released
from dynamicvit.checkpoints.released.spatial import (
    SpatialShapes,
    known_network,
    placed_stages,
    spatial_layout,
    under_our_names,
)
from dynamicvit.checkpoints.released.zoo import ARCHITECTURES, keep_ratio_in
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.sparsification import sparsify
from dynamicvit.utils.fields import check_values
from dynamicvit.utils.weights import Weights, load_exactly, open_weights, weights_in
from dynamicvit.utils.words import first_few, shortened

#: timm's network for sizes that the paper lacks, by layout.
_BUILT_FROM = {
    "DeiT": "deit_small_patch16_224",
    "LV-ViT": "lvvit_s",
    "ConvNeXt": "convnext_tiny",
    "Swin": "swin_tiny_patch4_window7_224",
}
#: Channels per head in every DeiT.
_HEAD_WIDTH = 64
#: The authors evaluate the center 224 px of 256; timm's crop for DeiT is larger.
CROP_PCT = 224 / 256
#: Keys of a safetensors file's metadata, and how to read each.
_METADATA: dict[str, Callable[[str], Any]] = {
    "rho": float,
    "num_heads": int,
    "residual_divisor": float,
    "stages": json.loads,
    "kind": str,  # timm's name of the full-size network that a small one resembles
}


@dataclass(frozen=True)
class Recognized:
    """A released checkpoint and its network.

    Attributes:
        weights: its tensors under the released names.
        shapes: its sizes.
        num_heads: H.
        residual_divisor: what each residual branch is divided by; 1 in DeiT.
        keep_ratio: ρ, or one ratio for each stage.
        keep_ratio_from: its origin: ``"as asked for"``, ``"from its metadata"`` or
            ``"from its name"``.
        stages: blocks before which tokens are dropped; ``None`` for 1/4, 2/4, 3/4 of the depth.
    """

    weights: Weights
    shapes: Shapes | SpatialShapes
    num_heads: int
    residual_divisor: float
    keep_ratio: float | Sequence[float]
    keep_ratio_from: str
    stages: Sequence[int] | None

    @property
    def name(self) -> str:
        """The architecture's name, or its layout and size."""
        return self.shapes.architecture.name if self.shapes.architecture else str(self.shapes)

    def build(self) -> DynamicViT:
        """The model with these weights, in ``eval()``.

        Raises:
            InputError: if a tensor's shape does not fit the others.
        """
        known, layout = self.shapes.architecture, self.shapes.layout
        args = self.shapes.backbone_args()
        if isinstance(self.shapes, Shapes):
            args["num_heads"] = self.num_heads
        if layout == "LV-ViT":
            args["residual_divisor"] = self.residual_divisor
        backbone = timm.create_model(
            known.model if known else _BUILT_FROM[layout],
            pretrained_cfg_overlay={"crop_pct": CROP_PCT},
            **args,
        )
        policy = "removed" if isinstance(self.shapes, Shapes) else "cheap"
        model = sparsify(backbone, self.keep_ratio, self.stages, policy, "dynamicvit")
        source = f"{self.weights.source}: does not fit {self.name}"
        tensors, spoken = under_our_names(self.weights.tensors, model)
        load_exactly(model, tensors, source, spoken)
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
    """Recognize a released checkpoint, or another one with the same names.

    Image and patch size, width, depth, MLP ratio, classes and the number of stages come from the
    shapes of the tensors; the rest from the arguments, else from a safetensors file's metadata
    (``rho``, ``num_heads``, ``residual_divisor``, ``stages``), else from the paper's tables.

    Args:
        path_or_state_dict: a ``.safetensors`` or ``torch.save`` file (only tensors are loaded), or
            a state dict, on its own or under ``model`` or ``state_dict``.
        keep_ratio: ρ, or one ratio for each stage; else from the metadata or the file's name
            (``dynamic-vit_384_r0.7.pth``).
        num_heads: needed for sizes that the paper lacks; of DeiT width / 64 by default.
        stages: blocks before which tokens are dropped; by default 1/4, 2/4, 3/4 of the depth for
            three stages.
        residual_divisor: of LV-ViT; needed for sizes that the paper lacks.
        ema: take the moving average of the weights, if the file holds both. The published accuracy
            is that of the weights themselves.

    Raises:
        InputError: if the file can't be read, is of another architecture, or something needed is
            neither in it nor given.
    """
    if isinstance(path_or_state_dict, (str, Path)):
        weights = open_weights(path_or_state_dict, ema)
    else:
        weights = weights_in(path_or_state_dict, "the state dict", ema=ema)
    spatial = spatial_layout(weights.tensors)
    if spatial is not None:
        if not is_released(weights.tensors):
            raise _dense_network(weights)
        said = read_metadata(weights)
        sizes = SpatialShapes.read(weights.tensors, spatial, weights.source)
        where = placed_stages(sizes, stages or said.get("stages"), weights.source)
        return Recognized(
            weights, sizes, 0, 1.0, *find_keep_ratio(keep_ratio, said, weights.source), where
        )
    layout = _pruned_layout(weights)
    shapes = Shapes.read(weights.tensors, layout, weights.source)
    said = read_metadata(weights)
    if stages is None:
        stages = said.get("stages")
    expected = len(Schedule.for_depth(4).stages if stages is None else stages)
    if expected != shapes.num_stages:
        raise InputError(
            f"{weights.source}: holds {shapes.num_stages} prediction modules, but {expected} "
            f"stages are {'the default' if stages is None else 'given'}; give one block index each"
        )
    if num_heads is None:
        num_heads = said.get("num_heads")
    if residual_divisor is None:
        kind = (said.get("kind"), layout.name)
        rows = (row for row in ARCHITECTURES if (row.model, row.layout) == kind)
        relative = shapes.architecture or next(rows, None)
        residual_divisor = said.get("residual_divisor", relative and relative.residual_divisor)
    return Recognized(
        weights,
        shapes,
        _heads(num_heads, shapes, weights.source),
        _divisor(residual_divisor, shapes, weights.source),
        *find_keep_ratio(keep_ratio, said, weights.source),
        stages,
    )


def read_metadata(weights: Weights) -> dict[str, Any]:
    """The known entries of a safetensors file's metadata, as values.

    Raises:
        InputError: for an entry that can't be read.
    """
    said = {}
    for key in _METADATA.keys() & weights.metadata.keys():
        value = weights.metadata[key]
        try:
            said[key] = _METADATA[key](value)
        except (ValueError, TypeError, RecursionError) as error:
            given = shortened(value)
            raise InputError(f"{weights.source}: its metadata has {key}={given}") from error
    check_values(said, f"{weights.source}: its metadata")
    return said


def find_keep_ratio(
    given: float | Sequence[float] | None, said: Mapping[str, Any], source: str
) -> tuple[float | Sequence[float], str]:
    """ρ of a released checkpoint, or one ratio for each stage, and its origin.

    Args:
        given: takes precedence.
        said: what :func:`read_metadata` returns; precedes the file's name.
        source: the file, such as ``dynamic-vit_384_r0.7.pth``.

    Returns:
        The ratio, and ``"as asked for"``, ``"from its metadata"`` or ``"from its name"``.

    Raises:
        InputError: without any of them.
    """
    named = keep_ratio_in(Path(source).name)
    known = {"as asked for": given, "from its metadata": said.get("rho"), "from its name": named}
    for origin, ratio in known.items():
        if ratio is not None:
            return ratio, origin
    raise InputError(
        f"{source}: neither metadata nor name give its keep ratio; give keep_ratio "
        f"(--keep-ratio), such as 0.7"
    )


# ---------------------------------------------------------------- names


def _pruned_layout(weights: Weights) -> Layout:
    """The layout, if it has prediction modules; else an error that says how to load the file."""
    tensors, source = weights.tensors, weights.source
    instead = "give its timm name, and this file as its checkpoint"
    if any(name.startswith("predictors.") for name in tensors):
        raise InputError(f"{source}: is this library's own state dict; {instead}")
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
    raise _dense_network(weights)


def _dense_network(weights: Weights) -> InputError:
    known, source = known_network(weights.tensors), weights.source
    name = known and known.architecture.timm_name(known.image_size)
    example = f" (--model {name} --checkpoint {source})" if name else ""
    return InputError(
        f"{source}: is a dense network, without score_predictor; give its timm name, and this file "
        f"as its checkpoint{example}"
    )


# ---------------------------------------------------------------- what shapes don't tell


def _heads(given: int | None, shapes: Shapes, source: str) -> int:
    """The given number of heads if it divides the width, or the architecture's."""
    if given is not None:
        if given < 1 or shapes.width % given:
            raise InputError(f"num_heads must divide the width {shapes.width}, got {given}")
        return given
    if shapes.architecture is not None:
        return shapes.architecture.num_heads
    if shapes.layout == "DeiT" and shapes.width % _HEAD_WIDTH == 0:
        return shapes.width // _HEAD_WIDTH
    raise InputError(
        f"{source}: the paper has no {shapes}; give num_heads (dynamicvit convert --num-heads)"
    )


def _divisor(given: float | None, shapes: Shapes, source: str) -> float:
    """The divisor of residual branches: 1 in DeiT."""
    if shapes.layout == "DeiT":
        if given not in (None, 1):
            raise InputError(
                f"{source}: is a DeiT, which divides no residual branches; leave residual_divisor "
                f"(--residual-divisor) out, got {given}"
            )
        return 1.0
    if given is None:
        raise InputError(
            f"{source}: the paper has no {shapes}; give residual_divisor "
            f"(dynamicvit convert --residual-divisor)"
        )
    if not 0 < given < math.inf:
        raise InputError(f"residual_divisor must be positive, got {given}")
    return given
