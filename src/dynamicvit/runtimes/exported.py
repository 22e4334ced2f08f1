"""An exported file as a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.core.schedule import Schedule
from dynamicvit.core.segmenter import Labels
from dynamicvit.errors import InputError
from dynamicvit.runtimes.description import Description
from dynamicvit.utils.words import first_line, inputs_called

Runner = Callable[[Tensor], Sequence[Tensor]]
"""From images ``(B, channels, height, width)``, or clips, float32, contiguous, on the CPU, to the
outputs of :attr:`~dynamicvit.runtimes.Description.outputs`."""


class ExportedModel(nn.Module):
    """A file with the interface of a :class:`~dynamicvit.DynamicViT` in ``eval()``.

    It computes on the CPU, and returns float32 on the device of the images.

    Args:
        run: of the file's runtime.
        description: of the file.
    """

    def __init__(self, run: Runner, description: Description) -> None:
        super().__init__()
        self.description = description
        self._run = run

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)``, of a segmentation model ``(B, classes, rows, columns)``.

        Args:
            images: ``(B, channels, height, width)``, of clips ``(B, frames, channels, ...)``,
                normalized; likewise below.
        """
        return self.outputs(images)[0]

    def forward_pruned(self, images: Tensor) -> PrunedOutput:
        """Logits and kept patches; files give no keep scores.

        Args:
            images: ``(B, channels, height, width)``, normalized.
        """
        logits, *kept_index = self.outputs(images)
        patches = math.prod(self.description.grid)
        none = torch.zeros(len(images), patches, dtype=torch.bool, device=images.device)
        kept = tuple(none.scatter(1, index, True) for index in kept_index)
        return PrunedOutput(logits, kept, (), self.description.grid, kept_index=tuple(kept_index))

    def outputs(self, images: Tensor) -> list[Tensor]:
        """The file's outputs: logits ``(B, classes)``, and for each stage ``(B, K)`` int64.

        Args:
            images: ``(B, channels, height, width)``, normalized; any B, also for a file of one
                batch size.

        Raises:
            InputError: for images of another size.
        """
        size = self.input_shape
        if tuple(images.shape[1:]) != size or not len(images):
            wanted = ", ".join(map(str, size))
            what = inputs_called(self.frames)
            raise InputError(f"{what} of shape {tuple(images.shape)}: give (batch, {wanted})")
        batches = images.detach().float().cpu().split(self.description.batch or len(images))
        parts = zip(*(self._pad_and_run(batch) for batch in batches), strict=True)
        return [torch.cat(part).to(images.device) for part in parts]

    def _pad_and_run(self, images: Tensor) -> list[Tensor]:
        missing = (self.description.batch or len(images)) - len(images)
        full = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
        try:
            outputs = self._run(full.contiguous())
        except Exception as error:  # of a graph that is not what its description says
            raise InputError(
                f"the exported file can't be run ({first_line(error)}): export the model again"
            ) from error
        self._check(outputs, len(full))
        return [output[: len(images)] for output in outputs]

    def _check(self, outputs: Sequence[Tensor], batch: int) -> None:
        """Check that the graph's outputs are those that the description says."""
        shapes = self.description.shapes(batch)
        if [tuple(output.shape) for output in outputs] != shapes:
            found = ", ".join(str(tuple(output.shape)) for output in outputs)
            raise InputError(
                f"the exported file gives {found}, and its description says "
                f"{', '.join(map(str, shapes))}: export the model again"
            )

    @property
    def task(self) -> str:
        """What the logits are for: "classification" or "segmentation"."""
        return self.description.task

    @property
    def labels(self) -> Labels:
        """How masks name the classes of a segmentation model."""
        return self.description.mask_labels

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.description.num_classes

    @property
    def in_chans(self) -> int:
        """Number of image channels."""
        return self.description.input_size[0]

    @property
    def frames(self) -> int | None:
        """Of the clips that it takes; None for images."""
        return self.description.frames

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one input: channels, height and width, of a clip frames in front."""
        return self.description.input_shape

    @property
    def schedule(self) -> Schedule:
        """Where and how much is dropped."""
        return self.description.schedule

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Preprocessing and labels, as timm describes them."""
        about = self.description
        same = (
            "num_classes",
            "input_size",
            "mean",
            "std",
            "interpolation",
            "crop_pct",
            "crop_mode",
        )
        config = {name: getattr(about, name) for name in same}
        return {"architecture": about.model, "label_names": about.labels, **config}
