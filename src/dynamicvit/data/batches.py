"""Batches: a deterministic order, augmentation that does not depend on the number of workers."""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dynamicvit.data.images import Sample, Unreadable
from dynamicvit.data.order import begun, shuffled
from dynamicvit.errors import InputError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Some images, and the paths of those that could not be read.

    Attributes:
        images: ``(B, 3, H, W)``; B is smaller than asked for where images were unreadable, and
            ``(0, 3, 0, 0)`` where all were.
        labels: ``(B,)`` int64, :data:`~dynamicvit.data.UNLABELED` for images without one.
        skipped: paths of the unreadable images.
        paths: of the images, one each; empty where they are unknown.
    """

    images: Tensor
    labels: Tensor
    skipped: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.skipped,
            self.paths,
        )


class Loader:
    """Batches of a data set; iterating it again gives the same batches until the epoch is set.

    The order depends on the seed and the epoch; the augmentation of an image on the seed, the
    epoch and its index. Neither depends on the number of workers, and neither touches the global
    random generators of the calling process. Each unreadable image is logged once.

    Args:
        data: :class:`~dynamicvit.data.ImageData`, or a :class:`torch.utils.data.ConcatDataset` of
            several, labeled and not.
        batch_size: images in a batch.
        shuffle: a new order in every epoch; else the data set's own.
        seed: of order and augmentation.
        num_workers: processes that read images; 0 reads in the calling one.
        drop_last: leave out a last batch that is smaller than the others.

    Raises:
        InputError: for a batch size or number of workers that can't be; while iterating, for an
            unreadable image if its data set is strict, and if no image at all could be read.
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
        if batch_size < 1:
            raise InputError(f"batch size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise InputError(f"number of workers must be at least 0, got {num_workers}")
        if seed < 0:
            raise InputError(f"seed must be at least 0, got {seed}")
        if drop_last and len(data) < batch_size:
            raise InputError(f"batch size {batch_size} is more than the {len(data)} images")
        self.data = data
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
        """Choose the epoch to iterate over.

        Args:
            epoch: counted from 0.
            start: how many of its batches to leave out, to go on inside an epoch.
        """
        self._epoch = epoch
        self._start = start
        if reopened := self.reopened:
            _log.warning(  # shown by default, unlike info
                "going on at batch %d of epoch %d: %d shards are read again from their start, the "
                "images already seen are passed over; the first is %s",
                start,
                epoch,
                len(reopened),
                reopened[0],
            )

    @property
    def reopened(self) -> tuple[str, ...]:
        """The shards that were begun before the batch to start with, and go on after it."""
        if not self._start:
            return ()
        return begun(self.data, self._order(), self._start * self.batch_size)

    def set_share(self, index: int, count: int) -> None:
        """Read one part of each batch; other processes read the others.

        Args:
            index: which part, counted from 0. It may be one image smaller than those before, even
                empty: together they are the whole batch, in its order.
            count: how many parts.
        """
        self._share = index, count

    @property
    def num_images(self) -> int:
        """How many images a whole epoch asks for, readable or not."""
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
        for batch, failures in batches:
            self._report(failures)
            read += len(batch)
            skipped += failures
            yield batch
        if skipped and not read and not self._start:
            raise InputError(
                f"none of the {len(skipped)} images can be read; the first is "
                f"{skipped[0].path} ({skipped[0].reason})"
            )

    def _keys(self) -> list[list[tuple[int, int]]]:
        """For each batch, epoch and index of each of its images."""
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
        """Here and not in a worker, where an exception would come with its traceback as text."""
        for failure in failures:
            if failure.fatal:
                raise InputError(f"{failure.path} can't be read as an image ({failure.reason})")
            if failure.path not in self._logged:
                self._logged.add(failure.path)
                _log.warning("left out %s: %s", failure.path, failure.reason)


class _Seeded(Dataset):
    """A data set whose random augmentation depends on seed, epoch and index only."""

    def __init__(self, data: Dataset[Sample | Unreadable], seed: int) -> None:
        self.data = data
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Sample | Unreadable:
        epoch, index = key
        with _random_generators(self.seed, epoch, index):
            return self.data[index]


@contextmanager
def _random_generators(*entropy: int) -> Iterator[None]:
    """Seed the generators that timm's transforms draw from, and put them back afterwards."""
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
    labels = torch.tensor([each.label for each in good], dtype=torch.int64)
    skipped, paths = ([each.path for each in some] for some in (failures, good))
    return Batch(images, labels, tuple(skipped), tuple(paths)), failures


def _leave_interrupts_to_parent(worker: int) -> None:
    """Ctrl-C goes to every process of the terminal, SLURM's SIGTERM to every process of the job.

    Workers would each print a traceback, or end before the parent has saved.
    """
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
