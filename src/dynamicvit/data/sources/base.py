"""The interface of every kind of source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
from PIL import Image

UNLABELED = -1
"""The label of an image without one; ``cross_entropy(..., ignore_index=UNLABELED)`` skips it."""


class Source(ABC):
    """Images by row, still encoded where they are stored so, and their classes.

    Attributes:
        name: as the user wrote it.
        class_word: what its classes are called in messages.
        labeled: whether its images have classes at all.
        classes: class names in the order of the targets; empty where classes are only numbers.
        class_problem: why the classes can't be used, if so; nothing is wrong without them.
        targets: ``(images,)`` position of each image's class in ``classes``, or the class number
            itself; :data:`UNLABELED` where there is none. None if a class is known only as its
            image is read (:meth:`target`).
        blocks: ``(images,)`` which file of ``block_names`` each image lies in, for sources that
            are read well only in long runs; else None.
        block_names: of the files that ``blocks`` counts.
    """

    name: str
    class_word: str = "classes"
    labeled: bool = True
    classes: tuple[str, ...] = ()
    class_problem: str | None = None
    targets: np.ndarray | None = None
    blocks: np.ndarray | None = None
    block_names: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """How many images there should be, readable or not."""

    @abstractmethod
    def path(self, row: int) -> str:
        """The name of an image for messages; never raises."""

    @abstractmethod
    def read(self, row: int) -> bytes | Image.Image:
        """An image, as a file's bytes or decoded. A broken one raises errors of any kind."""

    def target(self, row: int) -> str:
        """The class of an image as it is written; only for sources without ``targets``."""
        raise NotImplementedError(row)


def class_numbers(targets: Iterable[float | None]) -> np.ndarray:
    """Targets ``(images,)`` as int64, with :data:`UNLABELED` for None and negative ones."""
    numbers = [UNLABELED if target is None else max(int(target), UNLABELED) for target in targets]
    return np.array(numbers, dtype=np.int64)
