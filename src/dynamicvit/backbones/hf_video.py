"""What transformers' video classifiers with joint attention over space and time have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dynamicvit.backbones.hf_base import HFBackbone
from dynamicvit.backbones.video import Video
from dynamicvit.layers.tokens import Tokens


class HFVideoBackbone(Video, HFBackbone):
    """Base of the families: clips of the config's number of frames and size."""

    @property
    def frames(self) -> int:
        return self.encoder.config.num_frames

    @property
    def tubelet(self) -> int:
        return self.encoder.config.tubelet_size

    def check_image_size(self, height: int, width: int, interpolate: bool) -> None:
        """Positions of clips are not interpolated: :meth:`grid` refuses other sizes."""

    def dense(self, images: Tensor) -> Tensor:
        return self.module(images).logits

    def embed(self, images: Tensor) -> Tokens:
        return Tokens(self.embedded(images), self.num_prefix, self._grid_of(images))

    def embedded(self, clips: Tensor) -> Tensor:
        """``(B, P + N, C)``: all tokens with their positions."""
        return self.encoder.embeddings(clips)

    def _grid_of(self, clips: Tensor) -> Any:
        return self.grid(*clips.shape[-2:], clips.shape[1])
