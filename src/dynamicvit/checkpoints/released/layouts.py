"""Parameter names of the released implementation: which network they tell, and ours for them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from dynamicvit.checkpoints.released.zoo import LayoutName

T = TypeVar("T")

#: Released name of each part of a prediction module, and ours.
_PREDICTOR_PARTS = {"in_conv.0": "norm", "in_conv.1": "project", "out_conv": "head"}
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
        name: whose backbone it is.
        around: the names outside blocks and prediction modules.
        pruned: whether it has prediction modules; else it is a dense network.
    """

    name: LayoutName
    around: tuple[str, ...]
    pruned: bool

    def of(self, architecture: str) -> str:
        """In words, such a network of this architecture."""
        return f"a DynamicViT of {architecture}" if self.pruned else f"a dense {architecture}"

    def expected(self, names: Collection[str]) -> list[str]:
        """All names of a network with as many blocks and prediction modules as these show."""
        block = _BLOCK
        if any(name.endswith(_QKV_BIAS) for name in names):
            block = (*_BLOCK, _QKV_BIAS)
        parts = {"blocks": block}
        if self.pruned:
            parts["score_predictor"] = _PREDICTOR_LAYERS
        return [
            *self.around,
            *(
                f"{part}.{index}.{layer}"
                for part, layers in parts.items()
                for index in range(max(count(names, part), 1))
                for layer in layers
            ),
        ]


LAYOUTS = tuple(
    Layout(name, around, pruned)
    for name, around in (("DeiT", _STEM), ("LV-ViT", _LVVIT_STEM))
    for pruned in (True, False)
)


def count(names: Collection[str], part: str) -> int:
    """How many numbered parts there are, such as ``blocks``, those in gaps included."""
    found = (re.match(rf"{part}\.(\d+)\.", name) for name in names)
    highest = max((int(match[1]) for match in found if match), default=-1)
    return min(highest + 1, len(names))  # a number in a stranger's name may be anything


def nearest_layout(names: Collection[str]) -> Layout:
    """The layout that shares most with these names."""

    def shared(layout: Layout) -> float:
        expected = set(layout.expected(names))
        return len(expected & set(names)) / len(expected | set(names))

    return max(LAYOUTS, key=shared)


def match_layout(names: Collection[str]) -> Layout | None:
    """The layout whose names these are, all of them and no others; ``None`` if there is none."""
    layout = nearest_layout(names)
    return layout if set(layout.expected(names)) == set(names) else None


def is_released(names: Collection[str]) -> bool:
    """Whether a state dict uses the released implementation's names for prediction modules."""
    return any(name.startswith("score_predictor.") for name in names)


def rename_released(tensors: Mapping[str, T]) -> dict[str, T]:
    """The same tensors under :class:`DynamicViT`'s names."""
    return {_our_name(name): value for name, value in tensors.items()}


def released_name(name: str) -> str:
    """The released name of what :class:`DynamicViT` calls so; a dense network's name as it is."""
    match = _OUR_PREDICTOR.fullmatch(name)
    if match is None:
        return name.removeprefix("backbone.")
    return f"score_predictor.{match[1]}.{_RELEASED_PARTS[match[2]]}.{match[3]}"


def _our_name(name: str) -> str:
    match = _PREDICTOR.fullmatch(name)
    if match is None or match[2] not in _PREDICTOR_PARTS:
        return f"backbone.{name}"
    return f"predictors.{match[1]}.{_PREDICTOR_PARTS[match[2]]}.{match[3]}"
