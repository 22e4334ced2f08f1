"""The checkpoints that the paper's authors released, under the names of their implementation."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from dynamicvit.errors import InputError
from dynamicvit.model import DynamicViT, sparsify
from dynamicvit.weights import load_exactly, read_weights, state_dict_of

#: Released name of each part of a prediction module, and ours.
PREDICTOR_PARTS = {"in_conv.0": "norm", "in_conv.1": "project", "out_conv": "head"}
#: timm's name for each released width; another width is built from the first, as DeiT-256 was.
DEIT_OF_WIDTH = {
    384: "deit_small_patch16_224",
    192: "deit_tiny_patch16_224",
    768: "deit_base_patch16_224",
}
#: Channels per head in every DeiT.
HEAD_WIDTH = 64
_PREDICTOR = re.compile(r"score_predictor\.(\d+)\.(in_conv\.\d+|out_conv)\.(.+)")


def load_released(
    path_or_state_dict: str | Path | Mapping[str, Any],
    keep_ratio: float | Sequence[float] | None = None,
    num_heads: int | None = None,
    *,
    stages: Sequence[int] | None = None,
) -> DynamicViT:
    """A DynamicViT with the weights of a released checkpoint (DeiT layout).

    Image and patch size, width, depth, MLP ratio, classes and the number of stages come from the
    shapes of the tensors. What shapes can't tell comes from a safetensors file's metadata
    (``num_heads``, ``rho``, ``stages``) or from the arguments, which go first.

    Args:
        path_or_state_dict: a ``.safetensors`` file, a ``torch.save`` file (only its tensors are
            loaded), or a state dict; the names may be wrapped in ``model`` or ``state_dict``.
        keep_ratio: ρ, or one ratio for each stage; needed without metadata.
        num_heads: by default width / 64.
        stages: blocks before which tokens are dropped; by default 1/4, 2/4, 3/4 of the depth for
            three stages.

    Returns:
        The model in ``eval()``.

    Raises:
        InputError: if the file can't be read, is of another architecture, or leaves open what
            neither metadata nor arguments say.
    """
    if isinstance(path_or_state_dict, (str, Path)):
        source = str(path_or_state_dict)
        tensors, metadata = read_weights(path_or_state_dict)
    else:
        source = "the state dict"
        tensors, metadata = state_dict_of(path_or_state_dict, source), {}
    tensors = _student(tensors)
    shapes = _Shapes.read(tensors, source)
    if keep_ratio is None:
        keep_ratio = _metadata(metadata, "rho", float, source)
    if keep_ratio is None:
        raise InputError(f"{source}: does not say its keep ratio; give keep_ratio, such as 0.7")
    if num_heads is None:
        num_heads = _metadata(metadata, "num_heads", int, source)
    if stages is None:
        stages = _metadata(metadata, "stages", _int_list, source)
    backbone = timm.create_model(
        DEIT_OF_WIDTH.get(shapes.width, DEIT_OF_WIDTH[384]),
        **shapes.backbone_args(),
        num_heads=shapes.heads(num_heads, source),
    )
    model = sparsify(backbone, keep_ratio, shapes.stage_positions(stages, source))
    load_exactly(model, rename_released(tensors), f"{source}: not DynamicViT in DeiT layout")
    return model.eval()


def is_released(tensors: Mapping[str, Any]) -> bool:
    """Whether a state dict uses the released implementation's names."""
    return any(name.startswith("score_predictor.") for name in _student(tensors))


def rename_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under :class:`DynamicViT`'s names."""
    return {_our_name(name): value for name, value in _student(tensors).items()}


def _our_name(name: str) -> str:
    match = _PREDICTOR.fullmatch(name)
    if match is None or match[2] not in PREDICTOR_PARTS:
        return f"backbone.{name}"
    return f"predictors.{match[1]}.{PREDICTOR_PARTS[match[2]]}.{match[3]}"


def _student(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors where a file holds a student and more, such as its teacher."""
    prefix = "student."
    student = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return student or dict(tensors)


@dataclass(frozen=True)
class _Shapes:
    """What the shapes of a released state dict say about its network."""

    width: int
    depth: int
    hidden: int
    grid: int
    patch: tuple[int, int]
    channels: int
    classes: int
    num_stages: int
    qkv_bias: bool

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], source: str) -> _Shapes:
        """Read them, or say which other architecture this is."""
        _check_layout(tensors, source)
        width, channels, *patch = tensors["patch_embed.proj.weight"].shape
        num_patches = tensors["pos_embed"].shape[1] - 1
        grid = math.isqrt(max(num_patches, 0))
        if grid == 0 or grid * grid != num_patches:
            raise InputError(
                f"{source}: pos_embed holds {num_patches} patches, which is not a square grid"
            )
        return cls(
            width=width,
            depth=_count(tensors, r"blocks\.(\d+)\.", source),
            hidden=tensors["blocks.0.mlp.fc1.weight"].shape[0],
            grid=grid,
            patch=(patch[0], patch[1]),
            channels=channels,
            classes=tensors["head.weight"].shape[0],
            num_stages=_count(tensors, r"score_predictor\.(\d+)\.", source),
            qkv_bias="blocks.0.attn.qkv.bias" in tensors,
        )

    def backbone_args(self) -> dict[str, Any]:
        """timm's arguments, but for the number of heads."""
        return {
            "img_size": (self.grid * self.patch[0], self.grid * self.patch[1]),
            "patch_size": self.patch[0] if self.patch[0] == self.patch[1] else self.patch,
            "in_chans": self.channels,
            "num_classes": self.classes,
            "embed_dim": self.width,
            "depth": self.depth,
            "mlp_ratio": self.hidden / self.width,
            "qkv_bias": self.qkv_bias,
        }

    def heads(self, num_heads: int | None, source: str) -> int:
        """The given number of heads if it divides the width, or width / 64."""
        if num_heads is None:
            if self.width % HEAD_WIDTH:
                raise InputError(
                    f"{source}: width {self.width} is no multiple of {HEAD_WIDTH}, so the number "
                    f"of heads is open; give num_heads"
                )
            return self.width // HEAD_WIDTH
        if num_heads < 1 or self.width % num_heads:
            raise InputError(f"num_heads must divide the width {self.width}, got {num_heads}")
        return num_heads

    def stage_positions(self, stages: Sequence[int] | None, source: str) -> Sequence[int] | None:
        """The given stages if they are as many as the prediction modules."""
        given = 3 if stages is None else len(stages)
        if given != self.num_stages:
            raise InputError(
                f"{source}: holds {self.num_stages} prediction modules, but {given} stages are "
                f"{'the default' if stages is None else 'given'}; give stages, one block index each"
            )
        return stages


def _check_layout(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise unless the names that tell the architecture are a DynamicViT-DeiT's."""
    if "patch_embed.conv1.weight" in tensors or "aux_head.weight" in tensors:
        raise InputError(
            f"{source}: is an LV-ViT checkpoint, which can't be read yet; DynamicViT-DeiT can"
        )
    ranks = {
        "patch_embed.proj.weight": 4,
        "pos_embed": 3,
        "blocks.0.mlp.fc1.weight": 2,
        "head.weight": 2,
    }
    wrong = [name for name, rank in ranks.items() if name not in tensors]
    if wrong:
        raise InputError(
            f"{source}: has no {', '.join(wrong)}, so it is no released DynamicViT in DeiT layout; "
            f"for another network give its timm name, and this file as its checkpoint"
        )
    for name, rank in ranks.items():
        if tensors[name].ndim != rank:
            raise InputError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, where a DeiT's has "
                f"{rank} dimensions"
            )
    if not is_released(tensors):
        raise InputError(
            f"{source}: has no score_predictor, so it is a dense network; "
            f"give its timm name, and this file as its checkpoint"
        )


def _count(tensors: Mapping[str, Tensor], pattern: str, source: str) -> int:
    """How many numbered parts there are; they must run from 0 without a gap."""
    found = {int(match[1]) for name in tensors if (match := re.match(pattern, name))}
    gaps = sorted(set(range(max(found, default=-1) + 1)) - found)
    if gaps:
        what = pattern.split("\\", maxsplit=1)[0]
        raise InputError(f"{source}: has {what}.{max(found)} but no {what}.{gaps[0]}")
    return len(found)


def _metadata(metadata: Mapping[str, str], key: str, read: Any, source: str) -> Any:
    if key not in metadata:
        return None
    try:
        return read(metadata[key])
    except (ValueError, TypeError) as error:
        raise InputError(f"{source}: its metadata has {key}={metadata[key]!r}") from error


def _int_list(text: str) -> list[int]:
    return [int(number) for number in json.loads(text)]
