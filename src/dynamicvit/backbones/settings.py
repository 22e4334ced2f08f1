"""What is set on a network rather than computed by it: classifier, training, image size."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, ClassVar

from torch import nn

from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Grid


class Settings:
    """The part of a :class:`~dynamicvit.backbones.base.Backbone` that timm's users expect.

    The answers fit most vision transformers, or refuse with an ``InputError``.

    Attributes:
        module: the network.
    """

    #: Name of the family, as error messages list it.
    family: ClassVar[str]

    module: Any
    blocks: Any
    in_chans: Any
    frames: Any
    motion: Any  # of networks of clips

    # ---------------------------------------------------------------- the classifier

    #: Whether the head reads every patch in its place, so that dropped ones come back before it.
    reads_map: ClassVar[bool] = False

    @property
    @abstractmethod
    def classifier(self) -> nn.Module:
        """The layer that turns pooled features into logits, or an identity."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a classifier."""
        return getattr(self.classifier, "out_features", 0)

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Width of the pooled features that the classifier takes."""

    def reset_classifier(self, num_classes: int, pool: str | None) -> None:
        """Give the network a fresh classifier; with another pool, if one is named.

        Raises:
            InputError: if it can't have that.
        """
        raise InputError(f"{self.family}: the classifier can't be replaced here")

    # ---------------------------------------------------------------- training and input

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone, norms and biases aside.

        All but the weights of linear layers, attention and convolutions: positions, prefix tokens.
        """
        products = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
        decayed = {
            id(parameter)
            for module in self.module.modules()
            if isinstance(module, products)
            for parameter in module.parameters()
        }
        named = self.module.named_parameters()
        return {name for name, value in named if value.ndim > 1 and id(value) not in decayed}

    @property
    def blocks_name(self) -> str:
        """What the network calls its list of blocks."""
        return next(name for name, part in self.module.named_modules() if part is self.blocks)

    def group_matcher(self) -> dict[str, Any]:
        """Patterns of the names of parameters: ``"stem"`` before the blocks, and of ``"blocks"``.

        As timm's models give them, with pairs of a pattern and its place for the blocks; what no
        pattern fits comes last, as the classifier. (A stem by the order of the parameters: timm's
        older patterns leave register tokens out.)
        """
        before = f"{self.blocks_name}."
        names = (name for name, _ in self.module.named_parameters())
        stem = takewhile(lambda name: not name.startswith(before), names)
        patterns = "|".join(map(re.escape, stem))
        return {"stem": f"^(?:{patterns})$", "blocks": [(rf"^{re.escape(before)}(\d+)", None)]}

    def set_grad_checkpointing(self, enable: bool) -> None:
        """Turn that on or off, for all blocks."""
        self.module.grad_checkpointing = enable

    def set_drop_path(self, rates: list[float]) -> None:
        """Drop each block's residual branches with its own probability in training.

        Raises:
            InputError: if the family's blocks can't.
        """
        if any(rates):
            raise InputError(
                f"{self.family}: residual branches can't be dropped, so drop_path must be 0"
            )

    @property
    @abstractmethod
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images it was built for."""

    def input_shape(self, size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """Shape of one input: ``(channels, height, width)``, of a clip with frames in front.

        Args:
            size: height and width; by default those that the network was built for.
        """
        image = self.in_chans, *(size or self.image_size)
        return image if self.frames is None else (self.frames, *image)

    @abstractmethod
    def grid(self, height: int, width: int) -> Grid:
        """Rows and columns of patches that an image of this size gives.

        A network of clips gives times, rows and columns, and has a third argument ``frames``
        (:class:`~dynamicvit.backbones.video.Video`).

        Raises:
            InputError: if the network does not accept the size.
        """

    def set_image_size(self, height: int, width: int) -> None:
        """Let the network take images of this size, where that needs a change of it.

        Raises:
            InputError: if it can't.
        """
        self.grid(height, width)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of weights and input: mean, std, interpolation, label names.

        What it does not say is timm's default.
        """
        return {}

    def set_class_names(self, names: Sequence[str] | None) -> None:
        """Say how the classifier's classes are called; ``None`` if nobody knows.

        Args:
            names: one for each class, in class order.
        """
        config = {
            key: value for key, value in self.pretrained_cfg.items() if not key.startswith("label_")
        }
        if names is not None:
            config["label_names"] = list(names)
        self.module.pretrained_cfg = {**config, "num_classes": self.num_classes}
