"""Fewer pixels: the same network at a smaller image size, as a control of what dropping buys."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.backbones import Backbone, backbone_for
from dynamicvit.core.method import Method
from dynamicvit.core.registry import register_method
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Grid, Tokens


@register_method("fewer-pixels", does="of clips: drops no tokens, makes the frames smaller")
class FewerPixels(Method):
    """A control, which has no stages: the network itself is at another size (:func:`shrunk`)."""

    for_clips = True
    works_untrained = True
    takes_any_schedule = False

    @classmethod
    def schedule(cls, *_: object, **__: object) -> Schedule:
        """None.

        Raises:
            InputError: always, since the budget lies in the frames.
        """
        raise InputError(
            "fewer-pixels drops no tokens, its budget is the size of the frames: make another of "
            'the dense network, sparsify(dense, keep_ratio, method="fewer-pixels")'
        )


class _Shrunk(Backbone):
    """Mixed in before a family: takes frames of the old size and makes them smaller itself.

    So it stands beside the other methods everywhere: the same clips go to all of them.
    """

    seen: tuple[int, int]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.seen

    def grid(self, height: int, width: int, frames: int | None = None) -> Grid:
        if (height, width) != self.seen:
            raise InputError(
                f"frames of {height}x{width}, but fewer-pixels was made for "
                f"{self.seen[0]}x{self.seen[1]}"
            )
        return super().grid(*super().image_size, frames)  # type: ignore[call-arg]

    def embed(self, images: Tensor) -> Tokens:
        return super().embed(self._smaller(images))  # type: ignore[safe-super]

    def dense(self, images: Tensor) -> Tensor:
        return super().dense(self._smaller(images))

    def _smaller(self, images: Tensor) -> Tensor:
        """Each pixel the mean of those that it covers."""
        frames = F.interpolate(images.flatten(0, 1), super().image_size, mode="area")
        return frames.unflatten(0, images.shape[:2])


def shrunk(backbone: nn.Module, height: int, width: int) -> Backbone:
    """A copy of a network of clips that makes frames smaller and computes at that size.

    Args:
        backbone: one whose positions can be interpolated; not changed.
        height: in pixels, of the smaller frames.
        width: likewise.

    Raises:
        InputError: for a size that it can't have, or positions for its own size alone.
    """
    bound = backbone_for(copy.deepcopy(backbone))
    seen = bound.image_size
    bound.set_image_size(height, width)
    family = type(bound)
    small = type(f"Shrunk{family.__name__}", (_Shrunk, family), {"seen": seen})(bound.module)
    assert isinstance(small, Backbone)
    return small
