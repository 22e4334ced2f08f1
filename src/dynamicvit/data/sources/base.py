"""The interface of a source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np
from PIL import Image

UNLABELED = -1
"""The label of an image without one; ``cross_entropy(..., ignore_index=UNLABELED)`` skips it."""


class Source(ABC):
    """Images by row, encoded as they are stored, and their classes.

    Attributes:
        name: as the user wrote it.
        class_word: what messages call its classes.
        labeled: whether its images have classes.
        classes: class names in the order of the targets; empty if classes are numbers.
        empty_classes: those of ``classes`` that have no image.
        left_out: files beside the images that are none and are not hidden, by relative path.
        class_problem: why the classes can't be used, if so; the images can without them.
        targets: ``(images,)`` position of each image's class in ``classes``, or the class number;
            :data:`UNLABELED` for none. None if classes are read with the images (:meth:`target`).
        blocks: ``(images,)`` index in ``block_names`` of each image's file, for sources that are
            fast only in sequence; else None.
        block_names: paths of those files.
    """

    name: str
    class_word: str = "classes"
    labeled: bool = True
    classes: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    class_problem: str | None = None
    targets: np.ndarray | None = None
    blocks: np.ndarray | None = None
    block_names: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Images, readable or not."""

    @abstractmethod
    def path(self, row: int) -> str:
        """The name of an image for messages; never raises."""

    @abstractmethod
    def read(self, row: int) -> bytes | Image.Image:
        """An image, encoded or decoded. A broken one raises errors of any kind."""

    def target(self, row: int) -> str:
        """The class of an image as written, for sources without ``targets``."""
        raise NotImplementedError(row)


def class_numbers(targets: Iterable[float | None]) -> np.ndarray:
    """Targets as int64 ``(images,)``, :data:`UNLABELED` for None and negative numbers."""
    numbers = [UNLABELED if target is None else max(int(target), UNLABELED) for target in targets]
    return np.array(numbers, dtype=np.int64)
