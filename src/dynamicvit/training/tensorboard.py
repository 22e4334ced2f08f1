"""A run in TensorBoard: every number of a step as a curve."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.tensorboard import SummaryWriter

from dynamicvit.errors import InputError
from dynamicvit.training.checkpoint import cannot_write

if TYPE_CHECKING:
    from dynamicvit.training.state import Progress

TENSORBOARD_FOLDER = "tensorboard"


class TensorBoard:
    """Writes each step that it is called with; to be closed at the end, or used with ``with``.

    Args:
        folder: for TensorBoard's files. A run that goes on adds to what is there; what had been
            written of steps that are made again is hidden.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        # On a full disk closing fails too; what went wrong first is to be said.
        with suppress(InputError) if kind else nullcontext():
            self.close()

    def __call__(self, progress: Progress) -> None:
        """Write a step.

        Raises:
            InputError: if the disk is full.
        """
        try:
            if self._writer is None:  # nothing is written for a run that never makes a step
                self._writer = SummaryWriter(str(self.folder), purge_step=progress.step or None)
            for name, value in scalars(progress):
                if math.isfinite(value):
                    self._writer.add_scalar(name, value, progress.step)
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def close(self) -> None:
        """Write what is left.

        Raises:
            InputError: if the disk is full.
        """
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as error:
                raise cannot_write(self.folder, error) from error
            finally:
                self._writer = None


def scalars(progress: Progress) -> Iterator[tuple[str, float]]:
    """The numbers of a step by their names in TensorBoard, which groups them by the first word."""
    for name, value in progress.losses.items():
        yield f"loss/{name}", value
    for name, shares in (
        ("sampled", progress.kept),
        ("by_score", progress.kept_by_score),
        ("at_inference", progress.kept_at_inference),
    ):
        for stage, share in enumerate(shares, 1):
            yield f"kept_stage_{stage}/{name}", share
    for name, value in progress.learning_rates.items():
        yield f"learning_rate/{name}", value
    for name, value in progress.held_out.items():
        yield f"held_out/{name}", value
    yield "run/gradient_norm", progress.gradient_norm
    yield "run/images_per_second", progress.images_per_second
    yield "run/left_out", float(bool(progress.not_finite))
