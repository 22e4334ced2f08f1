"""What backbones of video clips have in common: tubelets in place of patches, a grid in time."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Grid

if TYPE_CHECKING:
    from dynamicvit.backbones.base import Backbone as _Backbone
else:
    _Backbone = object


class Video(_Backbone):
    """Mixed into a :class:`~dynamicvit.backbones.base.Backbone` of clips, before its base.

    A clip is ``(B, frames, channels, height, width)``, as transformers' ``pixel_values``. A token
    is a tubelet, a patch through some frames (Arnab et al., ViViT, ICCV 2021, Section 3.2); tokens
    are in order of time, row and column. Positions cover the network's own frames and size and no
    others, unless a family says so.
    """

    @property
    @abstractmethod
    def frames(self) -> int:
        """Frames of the clips that it was built for."""

    @property
    @abstractmethod
    def tubelet(self) -> int:
        """Frames of a tubelet."""

    def grid(self, height: int, width: int, frames: int | None = None) -> Grid:
        """Times, rows and columns of tubelets that a clip of this size gives.

        Args:
            height: in pixels.
            width: in pixels.
            frames: of the clip; by default those that the network was built for.

        Raises:
            InputError: if the network does not accept the clip.
        """
        frames = self.frames if frames is None else frames
        own = self.frames, *self.image_size
        if (frames, height, width) != own:
            raise InputError(
                f"clips of {frames} frames of {height}x{width}, but the positions of this backbone "
                f"are for {own[0]} frames of {own[1]}x{own[2]}"
            )
        rows, columns = self.patch_size
        return frames // self.tubelet, height // rows, width // columns

    def motion(self, clips: Tensor) -> Tensor:
        """``(B, N)``: how much each tubelet differs from the one before; infinite for the first.

        The mean over channels and pixels of the difference between its last frame and the first
        frame of the tubelet before (Choudhury et al., NeurIPS 2024, Section 3.1).

        Args:
            clips: ``(B, frames, channels, height, width)``.
        """
        first, last = clips[:, :: self.tubelet], clips[:, self.tubelet - 1 :: self.tubelet]
        times = last.shape[1]
        change = (last[:, 1:] - first[:, : times - 1]).abs().mean(dim=2)
        change = F.avg_pool2d(change, self.patch_size)
        start = change.new_full((clips.shape[0], 1, *change.shape[2:]), float("inf"))
        return torch.cat([start, change], dim=1).flatten(1)
