"""Video transformers made of timm's image transformers (Arnab et al., ViViT, ICCV 2021, 3.4).

The patches of an image become tubelets of a clip, and attention is joint: every token attends to
all of space and time (model 1 there). Blocks, norms, pool and classifier are the image network's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dynamicvit.backbones import timm_config
from dynamicvit.backbones.base import Backbone
from dynamicvit.backbones.beit import BeitBackbone
from dynamicvit.backbones.eva import EvaBackbone
from dynamicvit.backbones.lvvit import LVViTBackbone
from dynamicvit.backbones.timm_vit import DistilledBackbone, TimmBackbone, ViTBackbone
from dynamicvit.backbones.video import Video
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Grid, Heads, Tokens
from dynamicvit.utils.fields import MOST_FRAMES

Weights = Literal["central", "average"]
"""How a tubelet's weights come from a patch's: at its middle frame and zero elsewhere, which the
paper found better; or the same at every frame, divided by their number."""

TimePositions = Literal["learned", "sinusoidal"]
"""What is added to a token for its time: a table that starts at zero, or fixed sines and cosines
(Vaswani et al., NeurIPS 2017, Section 3.5)."""

IMAGE_FAMILIES: tuple[type[TimmBackbone], ...] = (
    ViTBackbone,
    DistilledBackbone,
    EvaBackbone,
    BeitBackbone,
    LVViTBackbone,
)
"""Those that can be inflated: every token attends to all others, and none needs the whole grid."""


class InflatedViT(nn.Module):
    """A vision transformer of timm over the tubelets of a clip; :func:`~dynamicvit.inflate`.

    A convolution over tubelets that don't overlap is one over images whose channels are those of a
    tubelet's frames, and so it is stored: ``(C, tubelet · channels, height, width)``.

    Args:
        vit: the image network, with a first convolution that takes ``tubelet · channels``. It
            embeds each time alone, so rotary and relative positions are those of space, at all
            times the same.
        frames: of a clip, a multiple of ``tubelet``.
        tubelet: frames of a token.
        time: positions in time.

    Raises:
        InputError: for numbers that can't be, or positions that there are none of.
    """

    def __init__(
        self, vit: nn.Module, frames: int, tubelet: int, time: TimePositions = "learned"
    ) -> None:
        super().__init__()
        check_clip(frames, tubelet, time)
        self.frames, self.tubelet, self.time = frames, tubelet, time
        like, times = next(vit.parameters()), frames // tubelet
        width = _family_of(vit)(vit).width
        table = torch.zeros(times, width) if time == "learned" else sinusoids(times, width)
        table = table[:, None].to(like.device, like.dtype)
        if time == "learned":
            self.time_embed = nn.Parameter(table)
        else:
            self.register_buffer("time_embed", table)
        self.vit: Any = vit

    def forward(self, clips: Tensor) -> Tensor:
        """Logits ``(B, classes)``.

        Args:
            clips: ``(B, frames, channels, height, width)``, normalized as the image network's.
        """
        bound = InflatedBackbone(self)
        return bound.head(bound.finish(self._tokens(bound, clips)))

    def forward_features(self, clips: Tensor) -> Tensor:
        """``(B, P + N, C)``: the final tokens after the final norm."""
        bound = InflatedBackbone(self)
        return bound.finish(self._tokens(bound, clips)).x

    def _tokens(self, bound: InflatedBackbone, clips: Tensor) -> Tokens:
        tokens = bound.embed(clips)
        for i in range(len(bound.blocks)):
            tokens = bound.run(i, tokens)
        return tokens

    @property
    def num_classes(self) -> int:
        """Of the classifier."""
        return self.vit.num_classes

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the image network's weights and input, for one frame."""
        return InflatedBackbone(self).pretrained_cfg


def check_clip(frames: int, tubelet: int, time: str = "learned") -> None:
    """Check what a clip is made of.

    Raises:
        InputError: for numbers that can't be, or positions that there are none of.
    """
    for name, value in (("frames", frames), ("tubelet", tubelet)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 1 <= value <= MOST_FRAMES:
            raise InputError(f"{name} must be a whole number, 1 to {MOST_FRAMES}, got {value!r}")
    if frames % tubelet:
        raise InputError(f"frames must be a multiple of the tubelet's {tubelet}, got {frames}")
    if time not in get_args(TimePositions):
        raise InputError(f"time is one of {get_args(TimePositions)}, got {time!r}")


def sinusoids(length: int, width: int) -> Tensor:
    """``(length, width)``: sines at even channels and cosines at odd ones."""
    steps = torch.arange(0, width, 2, dtype=torch.float64) / width
    angles = torch.arange(length, dtype=torch.float64)[:, None] * 10000**-steps
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].float()


def over_tubelets(vit: nn.Module, tubelet: int, weights: Weights) -> None:
    """Give an image network a first convolution over tubelets, in place.

    Raises:
        InputError: for weights that there are none of.
    """
    if weights not in get_args(Weights):
        raise InputError(f"weights is one of {get_args(Weights)}, got {weights!r}")
    network: Any = vit
    old = next(module for module in vit.modules() if isinstance(module, nn.Conv2d))
    image = old.weight.detach()[:, None]  # (C, 1, channels, height, width)
    if weights == "average":
        inflated = image.expand(-1, tubelet, -1, -1, -1) / tubelet
    else:
        inflated = image.new_zeros(image.shape[0], tubelet, *image.shape[2:])
        inflated[:, tubelet // 2] = image[:, 0]
    old.weight = nn.Parameter(inflated.flatten(1, 2), requires_grad=old.weight.requires_grad)
    old.in_channels = old.weight.shape[1]
    if hasattr(network, "in_chans"):  # timm's record of it
        network.in_chans = old.in_channels
    if hasattr(network, "_model_args"):  # and of what the network was made with
        network._model_args = {**network._model_args, "in_chans": old.in_channels}


def _inner(name: str) -> Any:
    """What the family of the image network says."""
    return property(lambda self: getattr(self.inner, name))


class InflatedBackbone(Video, Backbone):
    """The image network's family, but for embedding, grid and places, which have an axis of time.

    Attributes:
        inner: the image network, bound.
    """

    source = "inflated"
    family = "InflatedViT (timm's ViT, DeiT, EVA, BEiT, LV-ViT over clips)"
    model_classes = (InflatedViT,)

    blocks = _inner("blocks")
    width = _inner("width")
    num_prefix = _inner("num_prefix")
    has_class_token = _inner("has_class_token")
    patch_size = _inner("patch_size")
    qkv = _inner("qkv")
    has_plain_products = _inner("has_plain_products")
    first_products = _inner("first_products")
    attention_dropout = _inner("attention_dropout")
    after_attention = _inner("after_attention")
    norm = _inner("norm")
    head = _inner("head")
    reads = _inner("reads")
    answers = _inner("answers")
    classifier = _inner("classifier")
    num_classes = _inner("num_classes")
    num_features = _inner("num_features")
    reset_classifier = _inner("reset_classifier")
    image_size = _inner("image_size")
    set_image_size = _inner("set_image_size")
    set_class_names = _inner("set_class_names")
    set_drop_path = _inner("set_drop_path")
    set_grad_checkpointing = _inner("set_grad_checkpointing")
    grad_checkpointing = _inner("grad_checkpointing")

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.inner = _family_of(self.module.vit)(self.module.vit)

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        return type(module) is InflatedViT

    def why_not(self) -> str | None:
        return self.inner.why_not()

    # ---------------------------------------------------------------- its shape

    @property
    def frames(self) -> int:
        return self.module.frames

    @property
    def tubelet(self) -> int:
        return self.module.tubelet

    @property
    def in_chans(self) -> int:
        return self.inner.in_chans // self.tubelet

    def grid(self, height: int, width: int, frames: int | None = None) -> Grid:
        if frames not in (None, self.frames):
            raise InputError(
                f"clips of {frames} frames, but the positions of this backbone are for "
                f"{self.frames}"
            )
        return self.frames // self.tubelet, *self.inner.grid(height, width)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return {**self.inner.pretrained_cfg, "input_size": (self.in_chans, *self.image_size)}

    def no_weight_decay(self) -> set[str]:
        return {"time_embed", *(f"vit.{name}" for name in self.inner.no_weight_decay())}

    # ---------------------------------------------------------------- the path of the tokens

    def embed(self, images: Tensor) -> Tokens:
        times = self.frames // self.tubelet
        tokens = self.embed_tubelets(images.unflatten(1, (times, self.tubelet)).flatten(0, 1))
        return self.in_time(tokens, tokens.x.unflatten(0, (-1, times)))

    def embed_tubelets(self, tubelets: Tensor) -> Tokens:
        """Each tubelet alone, as the image network embeds an image.

        Args:
            tubelets: ``(B, tubelet, channels, height, width)``.
        """
        return self.inner.embed(tubelets.flatten(1, 2))  # frames lie together: channels

    def in_time(self, tokens: Tokens, x: Tensor) -> Tokens:
        """The tokens of clips.

        Args:
            tokens: of any of their tubelets.
            x: ``(B, times, P + patches, C)``, of all of them.
        """
        prefix, patches = x[:, 0, : self.num_prefix], x[:, :, self.num_prefix :]
        patches = (patches + self.module.time_embed.to(x.dtype)).flatten(1, 2)
        grid = x.shape[1], *tokens.grid
        return replace(tokens, x=torch.cat([prefix, patches], dim=1), grid=grid)

    def placed(
        self, i: int, qkv: tuple[Tensor, Tensor, Tensor], tokens: Tokens, queries: int | None = None
    ) -> Heads:
        return self.inner.placed(i, qkv, self._in_space(tokens), queries)

    def call_arguments(self, i: int, tokens: Tokens) -> tuple[Any, ...] | None:
        return self.inner.call_arguments(i, self._in_space(tokens))

    def _in_space(self, tokens: Tokens) -> Tokens:
        """The tokens with their places in space, for a family that gathers positions by them."""
        if type(self.inner).placed is Backbone.placed:
            return tokens
        times, *space = tokens.grid
        places = torch.arange(prod(space), device=tokens.x.device).repeat(times)
        # Looked up, as some runtimes have no remainder of whole numbers.
        index = places[None] if tokens.index is None else places[tokens.index]
        return replace(tokens, index=index, grid=tuple(space))


def _family_of(vit: nn.Module) -> type[TimmBackbone]:
    family = next((family for family in IMAGE_FAMILIES if family.claims(vit)), None)
    if family is None:
        names = "; ".join(family.family for family in IMAGE_FAMILIES)
        raise InputError(f"{type(vit).__name__} can't take tubelets: give one of {names}")
    return family


# ---------------------------------------------------------------- in config.json


def describe(module: Any) -> dict[str, Any]:
    """The entries of ``config.json`` from which :func:`rebuild` builds an inflated network.

    Raises:
        InputError: if timm does not build the same image network from them.
    """
    clip = {"frames": module.frames, "tubelet": module.tubelet, "time": module.time}
    return {**timm_config.describe(module.vit), "clip": clip}


def rebuild(description: Mapping[str, Any]) -> InflatedViT:
    """The network with random weights.

    Raises:
        InputError: with the entry that is missing or invalid.
    """
    clip = description.get("clip")
    if not isinstance(clip, dict) or set(clip) != {"frames", "tubelet", "time"}:
        raise InputError(f"clip must say frames, tubelet and time, got {clip!r}")
    return InflatedViT(timm_config.rebuild(description), **clip)
