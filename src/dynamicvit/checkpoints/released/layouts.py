"""Names and shapes of the released implementation's parameters, and the network they tell."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from dynamicvit.checkpoints.released import zoo
from dynamicvit.checkpoints.released.zoo import Architecture, LayoutName
from dynamicvit.errors import InputError

T = TypeVar("T")

#: Released name of each part of a prediction module, and ours.
_PREDICTOR_PARTS = {"in_conv.0": "norm", "in_conv.1": "project", "out_conv": "mlp"}
_RELEASED_PARTS = {ours: theirs for theirs, ours in _PREDICTOR_PARTS.items()}
_OUR_PREDICTOR = re.compile(rf"predictors\.(\d+)\.({'|'.join(_RELEASED_PARTS)})\.(.+)")
_PREDICTOR = re.compile(r"score_predictor\.(\d+)\.(in_conv\.\d+|out_conv)\.(.+)")


def _affine(*layers: str) -> tuple[str, ...]:
    return tuple(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_STEM = ("cls_token", "pos_embed", *_affine("patch_embed.proj", "norm", "head"))
_LVVIT_STEM = (
    *_STEM,
    *(f"patch_embed.conv{i}.weight" for i in (1, 2, 3)),
    *_affine(*(f"patch_embed.bn{i}" for i in (1, 2, 3))),
    *(f"patch_embed.bn{i}.{statistic}" for i in (1, 2, 3) for statistic in _STATISTICS),
    *_affine("aux_head"),
)
_BLOCK = ("attn.qkv.weight", *_affine("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"))
_QKV_BIAS = "attn.qkv.bias"
_PREDICTOR_LAYERS = _affine("in_conv.0", "in_conv.1", "out_conv.0", "out_conv.2", "out_conv.4")


@dataclass(frozen=True)
class Layout:
    """The names of a network's parameters in the released implementation.

    Attributes:
        name: of its backbone.
        pruned: whether it has prediction modules; otherwise it is dense.
    """

    name: LayoutName
    pruned: bool

    @classmethod
    def of(cls, names: Collection[str]) -> Layout:
        """The only layout that a state dict with these names can have."""
        lvvit = any(name.startswith(("patch_embed.conv", "aux_head.")) for name in names)
        return cls("LV-ViT" if lvvit else "DeiT", is_released(names))

    def expected(self, names: Collection[str]) -> list[str]:
        """All names of a network with as many blocks and prediction modules as these have."""
        bias = any(name.endswith(_QKV_BIAS) for name in names)
        parts = {"blocks": (*_BLOCK, _QKV_BIAS) if bias else _BLOCK}
        if self.pruned:
            parts["score_predictor"] = _PREDICTOR_LAYERS
        return [
            *(_LVVIT_STEM if self.name == "LV-ViT" else _STEM),
            *(
                f"{part}.{index}.{layer}"
                for part, layers in parts.items()
                for index in range(max(count(names, part), 1))
                for layer in layers
            ),
        ]

    def fits(self, names: Collection[str]) -> bool:
        """Whether these are exactly the names of such a network."""
        return set(self.expected(names)) == set(names)


def count(names: Collection[str], part: str) -> int:
    """Number of parts such as ``blocks``: the highest index plus one."""
    found = (re.match(rf"{part}\.(\d+)\.", name) for name in names)
    highest = max((int(match[1]) for match in found if match), default=-1)
    return min(highest + 1, len(names))  # an unknown file may have any index


def is_released(names: Collection[str]) -> bool:
    """Whether a state dict uses the released implementation's names for prediction modules."""
    return any(name.startswith(("score_predictor.", "layers.2.score_predictor.")) for name in names)


def rename_released(tensors: Mapping[str, T]) -> dict[str, T]:
    """The same tensors under :class:`DynamicViT`'s names."""
    return {_our_name(name): value for name, value in tensors.items()}


def released_name(name: str) -> str:
    """The released name for one of :class:`DynamicViT`'s; a dense network's names are the same."""
    match = _OUR_PREDICTOR.fullmatch(name)
    if match is None:
        return name.removeprefix("backbone.")
    return f"score_predictor.{match[1]}.{_RELEASED_PARTS[match[2]]}.{match[3]}"


def _our_name(name: str) -> str:
    match = _PREDICTOR.fullmatch(name)
    if match is None or match[2] not in _PREDICTOR_PARTS:
        return f"backbone.{name}"
    return f"predictors.{match[1]}.{_PREDICTOR_PARTS[match[2]]}.{match[3]}"


# ---------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Shapes:
    """The network's sizes, read from the shapes of a released state dict.

    Attributes:
        layout: the naming of the parameters.
        width: C.
        depth: number of blocks.
        hidden: width inside each MLP.
        grid: side of the square of patches.
        patch: height and width of a patch in pixels.
        channels: of an image.
        classes: of the classifier.
        num_stages: number of prediction modules.
        qkv_bias: whether queries, keys and values have one.
        stem_width: channels of LV-ViT's stem; ``None`` for DeiT.
    """

    layout: LayoutName
    width: int
    depth: int
    hidden: int
    grid: int
    patch: tuple[int, int]
    channels: int
    classes: int
    num_stages: int
    qkv_bias: bool
    stem_width: int | None

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], layout: Layout, source: str) -> Shapes:
        """Read them from tensors with the layout's names.

        Raises:
            InputError: if a tensor has another number of dimensions, is empty, or is not square.
        """
        ranks = {
            "patch_embed.proj.weight": 4,
            "patch_embed.conv1.weight": 4,
            "pos_embed": 3,
            "blocks.0.mlp.fc1.weight": 2,
            "head.weight": 2,
        }
        for name, rank in ranks.items():
            shape = tuple(tensors[name].shape) if name in tensors else (1,) * rank
            if len(shape) != rank or 0 in shape:
                raise InputError(
                    f"{source}: {name} has shape {shape}; a {layout.name}'s has {rank} dimensions, "
                    f"none of them 0"
                )
        width, embedded, *patch = tensors["patch_embed.proj.weight"].shape
        stem_width, channels = None, embedded
        if layout.name == "LV-ViT":
            stem_width, channels, *_ = tensors["patch_embed.conv1.weight"].shape
            patch = [2 * side for side in patch]  # its stem halves the image first
        num_patches = tensors["pos_embed"].shape[1] - 1
        grid = math.isqrt(max(num_patches, 0))
        if grid == 0 or grid * grid != num_patches:
            raise InputError(f"{source}: pos_embed holds {num_patches} patches, not a square grid")
        return cls(
            layout=layout.name,
            width=width,
            depth=count(tensors, "blocks"),
            hidden=tensors["blocks.0.mlp.fc1.weight"].shape[0],
            grid=grid,
            patch=(patch[0], patch[1]),
            channels=channels,
            classes=tensors["head.weight"].shape[0],
            num_stages=count(tensors, "score_predictor"),
            qkv_bias="blocks.0.attn.qkv.bias" in tensors,
            stem_width=stem_width,
        )

    @property
    def architecture(self) -> Architecture | None:
        """The row of the paper's tables; ``None`` for a size that they lack."""
        sizes = (self.layout, self.width, self.depth)
        rows = (row for row in zoo.ARCHITECTURES if (row.layout, row.width, row.depth) == sizes)
        return next(rows, None)

    def __str__(self) -> str:
        return f"{self.layout} {self.width} wide with {self.depth} blocks"

    def backbone_args(self) -> dict[str, Any]:
        """timm's arguments, except those that shapes don't tell."""
        stem = {} if self.stem_width is None else {"stem_width": self.stem_width}
        return stem | {
            "img_size": (self.grid * self.patch[0], self.grid * self.patch[1]),
            "patch_size": self.patch,
            "in_chans": self.channels,
            "num_classes": self.classes,
            "embed_dim": self.width,
            "depth": self.depth,
            "mlp_ratio": self.hidden / self.width,
            "qkv_bias": self.qkv_bias,
        }


class Known(NamedTuple):
    """A backbone of the paper's tables, for images of one side in pixels."""

    architecture: Architecture
    image_size: int

    def __str__(self) -> str:
        name = self.architecture.timm_name(self.image_size) or self.architecture.model
        return f"{name}, for images of {self.image_size} px"


def known_vit(tensors: Mapping[str, Tensor]) -> Known | None:
    """The backbone of the paper's tables with these names and shapes; ``None`` without one.

    Args:
        tensors: of a dense network or a DynamicViT, under the released names or this library's.
    """
    tensors = {released_name(name): tensor for name, tensor in tensors.items()}
    layout = Layout.of(tensors)
    if not layout.fits(tensors):
        return None
    try:
        shapes = Shapes.read(tensors, layout, "")
    except InputError:
        return None
    return shapes.architecture and Known(shapes.architecture, shapes.grid * shapes.patch[0])
