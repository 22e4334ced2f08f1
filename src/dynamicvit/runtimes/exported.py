"""An exported file as a model, for evaluation and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.runtimes.description import Description

Runner = Callable[[Tensor], Sequence[Tensor]]
"""From images ``(B, channels, height, width)``, float32, contiguous and on the CPU, to the outputs
that :attr:`~dynamicvit.runtimes.Description.outputs` names."""


class ExportedModel(nn.Module):
    """A file's runtime with the face of a :class:`~dynamicvit.DynamicViT` in ``eval()``.

    It computes on the CPU, and returns float32 on the device of the images.

    Args:
        run: the runtime.
        description: what the file says of itself.

    Attributes:
        description: the same.
    """

    def __init__(self, run: Runner, description: Description) -> None:
        super().__init__()
        self.description = description
        self._run = run

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)``.

        Args:
            images: ``(B, channels, height, width)``, normalized.
        """
        return self.outputs(images)[0]

    def forward_pruned(self, images: Tensor) -> PrunedOutput:
        """Logits and the kept patches; files have no keep scores.

        Args:
            images: ``(B, channels, height, width)``, normalized.
        """
        logits, *kept_index = self.outputs(images)
        rows, columns = self.description.grid
        none = torch.zeros(len(images), rows * columns, dtype=torch.bool, device=images.device)
        kept = tuple(none.scatter(1, index, True) for index in kept_index)
        return PrunedOutput(logits, kept, (), self.description.grid, kept_index=tuple(kept_index))

    def outputs(self, images: Tensor) -> list[Tensor]:
        """The file's outputs: logits ``(B, classes)``, and for each stage ``(B, K)`` int64.

        Args:
            images: ``(B, channels, height, width)``, normalized; B may be any number, also where
                the file takes batches of one size only.

        Raises:
            InputError: for images of another size.
        """
        size = self.description.input_size
        if images.ndim != 4 or images.shape[1:] != size or not len(images):
            wanted = ", ".join(map(str, size))
            raise InputError(f"images of shape {tuple(images.shape)}: give (batch, {wanted})")
        batches = images.detach().float().cpu().split(self.description.batch or len(images))
        parts = zip(*(self._fill_and_run(batch) for batch in batches), strict=True)
        return [torch.cat(part).to(images.device) for part in parts]

    def _fill_and_run(self, images: Tensor) -> list[Tensor]:
        missing = (self.description.batch or len(images)) - len(images)
        full = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        return [output[: len(images)] for output in self._run(full.contiguous())]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.description.num_classes

    @property
    def in_chans(self) -> int:
        """Number of image channels."""
        return self.description.input_size[0]

    @property
    def schedule(self) -> Schedule:
        """Where and how much is dropped."""
        return self.description.schedule

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Preprocessing and labels, as timm describes them."""
        about = self.description
        return {
            "architecture": about.model,
            "num_classes": about.num_classes,
            "input_size": about.input_size,
            "mean": about.mean,
            "std": about.std,
            "interpolation": about.interpolation,
            "crop_pct": about.crop_pct,
            "crop_mode": about.crop_mode,
            "label_names": about.labels,
        }
