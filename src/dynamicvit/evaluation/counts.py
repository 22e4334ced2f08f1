"""How many patches images keep under a budget per image: the easiest and the hardest by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dynamicvit.core.model import DynamicViT
from dynamicvit.data import ImageData, Loader
from dynamicvit.data.order import spread
from dynamicvit.errors import InputError

#: Images to calibrate on: with 512 the mean on others is a percent or two off.
IMAGES = 512

_BATCH = 32


class Counts(NamedTuple):
    """What images keep.

    Attributes:
        paths: of the images.
        kept: ``(images, stages)``, patches after each stage.
        seen: whether they are the ones that thresholds were found on.
    """

    paths: tuple[str, ...]
    kept: Tensor
    seen: bool

    def by_count(self) -> list[tuple[str, tuple[int, ...]]]:
        """Images and what each stage leaves of them, from the fewest patches to the most."""
        order = self.kept.sum(dim=1).argsort(stable=True).tolist()
        return [(self.paths[i], tuple(self.kept[i].tolist())) for i in order]


@torch.inference_mode()
def calibrate_on(
    model: DynamicViT,
    data: ImageData,
    *,
    images: int = IMAGES,
    cap: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Counts:
    """Calibrate a model on images of a source, and count what others of it keep.

    Args:
        model: as :meth:`~dynamicvit.DynamicViT.calibrate` takes it; its budget is set.
        data: with the model's transform; labels are not looked at.
        images: to calibrate on, spread over the source. As many others are counted, or these same
            where the source has no others.
        cap: of ``calibrate``.
        progress: gets the number of images that were read.

    Raises:
        InputError: as ``calibrate``, or for a model without stages.
    """
    if not model.schedule.stages:
        raise InputError("the model keeps every patch: there is no budget to give out")
    device = next(model.parameters()).device
    everything = np.arange(len(data))
    chosen = spread(everything, images)
    others = spread(np.setdiff1d(everything, chosen), images)

    def read(some: np.ndarray) -> Iterator[tuple[tuple[str, ...], Tensor]]:
        """Batch by batch: hundreds of clips together would fill the memory."""
        for batch in Loader(data.subset(some), batch_size=_BATCH):
            progress(len(batch) + len(batch.skipped))
            if len(batch):
                yield batch.paths, batch.images.to(device)

    def counted(some: np.ndarray) -> Counts:
        paths, kept = [], []
        for names, batch in read(some):
            paths += names
            of_batch = [each.sum(dim=1) for each in model.forward_pruned(batch).kept]
            kept.append(torch.stack(of_batch, dim=1).cpu())
        return Counts(tuple(paths), torch.cat(kept) if kept else torch.empty(0), some is chosen)

    model.eval().calibrate((batch for _, batch in read(chosen)), cap)
    found = counted(others)
    return found if found.paths else counted(chosen)
