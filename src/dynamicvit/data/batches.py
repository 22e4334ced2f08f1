"""Batches in a reproducible order, with augmentation independent of the number of workers."""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dynamicvit.data.identity import images_digest
from dynamicvit.data.images import ImageData, Sample, Unreadable
from dynamicvit.data.order import begun, parts_of, shuffled
from dynamicvit.data.readers import batches_of
from dynamicvit.errors import InputError

_log = logging.getLogger(__name__)


class NoReadableImageError(InputError):
    """None of the images that a loader reads can be read."""


@dataclass(frozen=True)
class Batch:
    """Images, labels, and the paths of unreadable images.

    Attributes:
        images: ``(B, C, H, W)`` of the readable images; ``(0, 3, 0, 0)`` if none is. Of clips
            ``(B, T, C, H, W)``, with several views of each ``(B, V, T, C, H, W)``.
        labels: ``(B,)`` int64, :data:`~dynamicvit.data.UNLABELED` for images without one; or
            masks ``(B, H, W)`` of them.
        skipped: paths of the unreadable images.
        paths: of the images; empty if unknown.
        reasons: why each of ``skipped`` is unreadable; empty if unknown.
        places: of the images among all of the batch, unreadable ones counted; empty if unknown.
    """

    images: Tensor
    labels: Tensor
    skipped: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    places: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
        )


class Loader:
    """Batches of a data set, the same at each iteration until the epoch is set.

    The order depends on seed and epoch, an image's augmentation on seed, epoch and index; neither
    depends on the number of workers or touches the caller's global random generators. Each
    unreadable image is logged once.

    Args:
        data: :class:`~dynamicvit.data.ImageData`, or a :class:`torch.utils.data.ConcatDataset` of
            several, labeled and not.
        batch_size: images in a batch.
        shuffle: a new order in every epoch; else the data set's own.
        seed: of order and augmentation.
        num_workers: processes that read images; 0 reads in the calling process.
        drop_last: omit a smaller last batch.

    Raises:
        InputError: for a number out of range; while iterating, for an unreadable image of a
            strict data set, and if no image is readable.
        ReaderError: while iterating, if a process that reads images died.
    """

    def __init__(
        self,
        data: Dataset[Sample | Unreadable],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        noun = getattr(parts_of(data)[0], "noun", "image")
        for name, given, least in (
            ("batch size", batch_size, 1),
            ("number of workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if given < least:
                raise InputError(f"{name} must be at least {least}, got {given}")
        if drop_last and len(data) < batch_size:
            raise InputError(f"batch size {batch_size} is more than the {len(data)} {noun}s")
        self.data, self._noun = data, noun
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_workers = num_workers
        self.drop_last = drop_last
        self._epoch = 0
        self._start = 0
        self._share = 0, 1
        self._logged: set[str] = set()

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch, from 0, and its first batch, to resume inside an epoch."""
        self._epoch = epoch
        self._start = start
        if reopened := self.reopened:
            _log.warning(  # shown by default, unlike info
                "resuming at batch %d of epoch %d: %d shards are read again from their start, "
                "without the images already seen; the first is %s",
                start,
                epoch,
                len(reopened),
                reopened[0],
            )

    @property
    def reopened(self) -> tuple[str, ...]:
        """The shards with images both before and after the start."""
        if not self._start:
            return ()
        return begun(self.data, self._order(), self._start * self.batch_size)

    @property
    def images_digest(self) -> str | None:
        """What tells the images from others (:func:`~dynamicvit.data.images_digest`), if known."""
        parts = [part for part in parts_of(self.data) if isinstance(part, ImageData)]
        return images_digest(parts) if len(parts) == len(parts_of(self.data)) else None

    def set_share(self, index: int, count: int) -> None:
        """Read part ``index`` of ``count`` of each batch; other processes read the others.

        Together the parts are the whole batch in its order; sizes differ by one image at most.
        """
        self._share = index, count

    @property
    def num_images(self) -> int:
        """Images of a whole epoch, readable or not."""
        return len(self) * self.batch_size if self.drop_last else len(self.data)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        full, rest = divmod(len(self.data), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        batches = DataLoader(
            _Seeded(self.data, self.seed),
            batch_sampler=self._keys(),
            collate_fn=_collate,
            num_workers=self.num_workers,
            worker_init_fn=_leave_interrupts_to_parent,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        read = 0
        skipped: list[Unreadable] = []
        for batch, failures in batches_of(batches):
            self._report(failures)
            read += len(batch)
            skipped += failures
            yield batch
        if skipped and not read and not self._start:
            raise NoReadableImageError(
                f"none of the {len(skipped)} {self._noun}s can be read; the first is "
                f"{skipped[0].path} ({skipped[0].reason})"
            )

    def _keys(self) -> list[list[tuple[int, int]]]:
        """Epoch and index of each image, by batch."""
        order = self._order()
        starts = range(self._start * self.batch_size, len(self) * self.batch_size, self.batch_size)
        part, parts = self._share
        return [
            [
                (self._epoch, int(index))
                for index in np.array_split(order[start : start + self.batch_size], parts)[part]
            ]
            for start in starts
        ]

    def _order(self) -> np.ndarray:
        """``(images,)`` indices in the order of the epoch."""
        if not self.shuffle:
            return np.arange(len(self.data))
        return shuffled(self.data, np.random.default_rng((self.seed, self._epoch)))

    def _report(self, failures: Sequence[Unreadable]) -> None:
        """In the calling process: an exception of a worker would carry its traceback as text."""
        for failure in failures:
            if failure.fatal and not failure.path:
                raise InputError(failure.reason)
            if failure.fatal:
                article = "an" if self._noun == "image" else "a"
                raise InputError(
                    f"{failure.path} can't be read as {article} {self._noun} ({failure.reason})"
                )
            if failure.path not in self._logged:
                self._logged.add(failure.path)
                _log.warning("skipped %s: %s", failure.path, failure.reason)


class _Seeded(Dataset):
    """A data set whose augmentation depends on seed, epoch and index only."""

    def __init__(self, data: Dataset[Sample | Unreadable], seed: int) -> None:
        self.data = data
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Sample | Unreadable:
        epoch, index = key
        with _random_generators(self.seed, epoch, index):
            return self.data[index]


@contextmanager
def _random_generators(*entropy: int) -> Iterator[None]:
    """Seed the generators of timm's transforms, and restore them afterwards."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - timm's RandAugment uses the global generator
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.default_generator.set_state(before[2])


def _collate(samples: Sequence[Sample | Unreadable]) -> tuple[Batch, list[Unreadable]]:
    failures = [sample for sample in samples if isinstance(sample, Unreadable)]
    good = [sample for sample in samples if isinstance(sample, Sample)]
    images = torch.stack([each.image for each in good]) if good else torch.empty(0, 3, 0, 0)
    if get_worker_info() is not None:  # here a lack of memory is an error; in torch's thread a hang
        images.share_memory_()
    labels = [torch.as_tensor(each.label, dtype=torch.int64) for each in good]
    targets = torch.stack(labels) if good else torch.empty(0, dtype=torch.int64)
    skipped, paths = (tuple(each.path for each in some) for some in (failures, good))
    reasons = tuple(each.reason for each in failures)
    places = tuple(place for place, each in enumerate(samples) if isinstance(each, Sample))
    return Batch(images, targets, skipped, paths, reasons, places), failures


def _leave_interrupts_to_parent(_: int) -> None:
    """Ctrl-C and SLURM's SIGTERM reach workers too, which would end before the parent has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
