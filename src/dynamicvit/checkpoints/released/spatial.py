"""The released checkpoints of the journal version: ConvNeXt and Swin with cheap paths.

Shapes tell everything but ρ, and before which blocks the second and third prediction modules are;
those are where the paper has them unless somebody says otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dynamicvit.checkpoints.released import zoo
from dynamicvit.checkpoints.released.layouts import (
    Known,
    known_vit,
    released_name,
    rename_released,
)
from dynamicvit.checkpoints.released.zoo import Architecture, LayoutName
from dynamicvit.core.model import DynamicViT
from dynamicvit.errors import InputError

#: Patterns of our names and the released ones, the first that matches.
_PREDICTOR = (
    (r"predictors\.(\d+)\.norm", r"score_predictor.\1.in_conv.0"),
    (r"predictors\.(\d+)\.project", r"score_predictor.\1.in_conv.1"),
    (r"predictors\.(\d+)\.mlp", r"score_predictor.\1.out_conv"),
)
_NAMES: dict[LayoutName, tuple[tuple[str, str], ...]] = {
    "ConvNeXt": (
        (r"backbone\.stem", r"downsample_layers.0"),
        (r"backbone\.stages\.(\d)\.downsample", r"downsample_layers.\1"),
        (r"backbone\.stages\.(\d)\.blocks\.(\d+)\.conv_dw", r"stages.\1.\2.dwconv"),
        (r"backbone\.stages\.(\d)\.blocks\.(\d+)\.mlp\.fc", r"stages.\1.\2.pwconv"),
        (r"backbone\.stages\.(\d)\.blocks", r"stages.\1"),
        (r"backbone\.head\.norm", "norm"),
        (r"backbone\.head\.fc", "head"),
        (r"predictors\.\d+\.cheap\.(\d+)\.norm", r"stages.2.\1.fast_path.0"),
        (r"predictors\.\d+\.cheap\.(\d+)\.linear", r"stages.2.\1.fast_path.1"),
        (r"predictors\.\d+\.cheap\.(\d+)\.gamma", r"stages.2.\1.fast_path_gamma"),
        *_PREDICTOR,
    ),
    "Swin": (
        *((rf"backbone\.layers\.{i}\.downsample", f"layers.{i - 1}.downsample") for i in (1, 2, 3)),
        (r"backbone\.head\.fc", "head"),
        (r"predictors\.\d+\.cheap\.(\d+)\.norm", r"layers.2.blocks.\1.fastmlp.fc1.0"),
        (r"predictors\.\d+\.cheap\.(\d+)\.linear", r"layers.2.blocks.\1.fastmlp.fc1.1"),
        *((ours, rf"layers.2.{theirs}") for ours, theirs in _PREDICTOR),
    ),
}
#: Names that only the released layouts have; timm's Swin has its first downsampling a stage later.
_SIGNS: dict[LayoutName, str] = {"ConvNeXt": "downsample_layers.0.", "Swin": "layers.0.downsample."}
#: What Swin's code computes anew.
_DERIVED = ("relative_position_index", "attn_mask")


def spatial_layout(names: Collection[str]) -> LayoutName | None:
    """Which layout these names are of, dense or with prediction modules; ``None`` for neither."""
    for layout, sign in _SIGNS.items():
        if any(name.startswith(sign) for name in names):
            return layout
    return None


def spatial_name(name: str, layout: LayoutName) -> str:
    """The released name for one of :class:`DynamicViT`'s."""
    for ours, theirs in _NAMES[layout]:
        renamed, found = re.subn(f"^{ours}", theirs, name)
        if found:
            return renamed
    return name.removeprefix("backbone.")


def rename_spatial(
    tensors: Mapping[str, Tensor], names: Collection[str], layout: LayoutName
) -> dict[str, Tensor]:
    """Released tensors under our names; unknown ones keep theirs, what Swin derives is left out.

    The released prediction modules of ConvNeXt have 1x1 convolutions for linear layers.

    Args:
        tensors: under the released names.
        names: those of the model's state dict.
        layout: of the tensors.
    """
    known = {spatial_name(name, layout): name for name in names}
    renamed = {}
    for name, value in tensors.items():
        if name.endswith(_DERIVED):
            continue
        if "score_predictor." in name and value.shape[2:] == (1, 1):
            value = value.flatten(1)
        renamed[known.get(name, name)] = value
    return renamed


def under_our_names(
    tensors: Mapping[str, Tensor], model: nn.Module
) -> tuple[dict[str, Tensor], Callable[[str], str]]:
    """Tensors of the released code as a model's state dict names them, and the way back.

    Args:
        tensors: of any released layout.
        model: a DynamicViT, or a dense ConvNeXt or Swin.
    """
    layout = spatial_layout(tensors)
    if layout is None:
        return rename_released(tensors), released_name
    prefix = "" if isinstance(model, DynamicViT) else "backbone."
    names = {f"{prefix}{name}" for name in model.state_dict()}
    renamed = rename_spatial(tensors, names, layout)
    return (
        {name.removeprefix(prefix): value for name, value in renamed.items()},
        lambda name: spatial_name(f"{prefix}{name}", layout),
    )


@dataclass(frozen=True)
class SpatialShapes:
    """The network's sizes, read from the shapes of a released state dict.

    Attributes:
        layout: the naming of the parameters.
        depths: blocks in each stage.
        dims: width of each stage.
        channels: of an image.
        classes: of the classifier.
        heads: of each stage of a Swin.
        window: side of a Swin's windows.
        num_stages: number of prediction modules.
        first: the first block with a cheap path; ``None`` for a dense network.
    """

    layout: LayoutName
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    channels: int
    classes: int
    heads: tuple[int, ...]
    window: int
    num_stages: int
    first: int | None

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layout: LayoutName, source: str) -> SpatialShapes:
        """Read them.

        Raises:
            InputError: naming what is missing.
        """

        def shape(name: str, rank: int) -> tuple[int, ...]:
            found = tuple(tensors[name].shape) if name in tensors else None
            if found is None or len(found) != rank or 0 in found:
                raise InputError(
                    f"{source}: {name} has shape {found}; a {layout}'s has {rank} dimensions, "
                    "none of them 0"
                )
            return found

        def count(pattern: str) -> list[int]:
            found = (re.match(pattern, name) for name in tensors)
            return sorted({int(match[1]) for match in found if match})

        heads: tuple[int, ...] = ()
        window = 0
        if layout == "ConvNeXt":
            depths = tuple(len(count(rf"stages\.{i}\.(\d+)\.dwconv\.weight")) for i in range(4))
            dims = tuple(shape(f"stages.{i}.0.norm.weight", 1)[0] for i in range(4))
            _, channels, *_ = shape("downsample_layers.0.0.weight", 4)
            fast = count(r"stages\.2\.(\d+)\.fast_path\.")
            modules = count(r"score_predictor\.(\d+)\.")
        else:
            table = "attn.relative_position_bias_table"
            depths = tuple(len(count(rf"layers\.{i}\.blocks\.(\d+)\.norm1")) for i in range(4))
            dims = tuple(shape(f"layers.{i}.blocks.0.norm1.weight", 1)[0] for i in range(4))
            heads = tuple(shape(f"layers.{i}.blocks.0.{table}", 2)[1] for i in range(4))
            window = (math.isqrt(shape(f"layers.0.blocks.0.{table}", 2)[0]) + 1) // 2
            _, channels, *_ = shape("patch_embed.proj.weight", 4)
            fast = count(r"layers\.2\.blocks\.(\d+)\.fastmlp\.")
            modules = count(r"layers\.2\.score_predictor\.(\d+)\.")
        return cls(
            layout=layout,
            depths=depths,
            dims=dims,
            channels=channels,
            classes=shape("head.weight", 2)[0],
            heads=heads,
            window=window,
            num_stages=len(modules),
            first=fast[0] if fast else None,
        )

    @property
    def architecture(self) -> Architecture | None:
        """The row of the paper's tables; ``None`` for a size that they lack."""
        sizes = (self.layout, self.dims[2], sum(self.depths))
        rows = (row for row in zoo.ARCHITECTURES if (row.layout, row.width, row.depth) == sizes)
        return next(rows, None)

    @property
    def stages(self) -> tuple[int, ...]:
        """The blocks of the prediction modules, evenly apart as in the paper."""
        first = self.first or 0
        return tuple(first * (i + 1) for i in range(self.num_stages))

    def __str__(self) -> str:
        return f"{self.layout} {self.dims[0]} wide with {self.depths} blocks"

    def backbone_args(self) -> dict[str, Any]:
        """timm's arguments."""
        args = {"depths": self.depths, "num_classes": self.classes, "in_chans": self.channels}
        if self.layout == "ConvNeXt":
            return args | {"dims": self.dims}
        more = {"num_heads": self.heads, "window_size": self.window}
        return args | {"embed_dim": self.dims[0], **more}


def placed_stages(
    shapes: SpatialShapes, stages: Sequence[int] | None, source: str
) -> tuple[int, ...]:
    """The blocks of the prediction modules: as given, or the paper's.

    Raises:
        InputError: for others than the cheap paths in the file allow.
    """
    found = shapes.stages if stages is None else tuple(stages)
    if len(found) != shapes.num_stages or not found or found[0] != shapes.first:
        raise InputError(
            f"{source}: holds {shapes.num_stages} prediction modules and cheap paths from block "
            f"{shapes.first} of the third stage on; stages are {found}"
        )
    return found


def known_network(tensors: Mapping[str, Tensor]) -> Known | None:
    """The backbone of the papers' tables with these names and shapes; ``None`` without one.

    Args:
        tensors: of a dense network or a DynamicViT, under the released names.
    """
    layout = spatial_layout(tensors)
    if layout is None:
        return known_vit(tensors)
    try:
        found = SpatialShapes.read(tensors, layout, "").architecture
    except InputError:
        return None
    return found and Known(found, 224)
