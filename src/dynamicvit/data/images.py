"""A data set over a source of images: the index, class map, splits, and unreadable images."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_tensor

from dynamicvit.data.classes import label_of_target, labels_of_targets, read_class_map
from dynamicvit.data.decoding import decode, one_line
from dynamicvit.data.sources import UNLABELED, open_source
from dynamicvit.errors import InputError

Transform = Callable[[Image.Image], Tensor]


class Sample(NamedTuple):
    """One image: ``(3, H, W)``, its class index or :data:`UNLABELED`, and its name."""

    image: Tensor
    label: int
    path: str = ""


class Unreadable(NamedTuple):
    """An image that can't be read: its path, why, and whether that ends the run."""

    path: str
    reason: str
    fatal: bool


class ImageData(Dataset["Sample | Unreadable"]):
    """The images of a source, in its own order: of folders and tars the natural one of the paths.

    An image that can't be read (a truncated JPEG is one) comes as :class:`Unreadable`;
    :class:`~dynamicvit.data.Loader` drops it from its batch and says so.

    Args:
        root: a folder of class folders (an image's class is the folder it lies in), a ``.tar`` of
            them, or a flat folder or tar of images without labels; or, with a prefix,
            ``wds/PLACE``, ``hfds/PLACE``, ``torch/NAME/FOLDER``, and ``@SPLIT`` behind it.
        transform: from an RGB image to ``(3, H, W)``; by default the image's pixels in 0..1.
        class_map: class index of each class name: a mapping, the path of a file with one name a
            line, or ``"imagenet"`` for WordNet ids; by default the source's own order.
            :func:`~dynamicvit.data.class_map_for` finds the one that suits a model.
        labeled: False gives every image the label :data:`UNLABELED`; by default images are
            unlabeled only if the source knows no class of theirs (a flat folder, shards or a
            data set without labels).
        strict: an unreadable image ends the run; by default it is left out.

    Attributes:
        root: as given.
        labeled: whether images have labels.
        class_word: what classes are called in messages: class folders, classes.
        classes: class names in the source's order, for folders the natural one; empty when
            unlabeled, and when classes are numbers.
        labels: ``(images,)`` int64 array of class indices. :data:`UNLABELED` throughout for
            shards, whose labels are read with the images.
        blocks: ``(images,)`` index in ``block_names`` of the shard each image lies in; None for
            sources that are not read in shards.
        block_names: the shards' paths.
        strict: as given.

    Raises:
        InputError: for a root that is missing, can't be opened or holds no images; for classes
            that the class map lacks.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        transform: Transform | None = None,
        class_map: Mapping[str, int] | str | os.PathLike[str] | None = None,
        labeled: bool | None = None,
        strict: bool = False,
    ) -> None:
        self.root = root
        self.transform: Transform = transform or to_tensor
        self.strict = strict
        self._source = source = open_source(root)
        self.labeled = source.labeled if labeled is None else labeled
        if not source.labeled and (labeled or class_map is not None):
            raise InputError(
                f"{root} has no {source.class_word}; images without labels need labeled=False"
            )
        if self.labeled and source.class_problem:
            raise InputError(f"{root} has {source.class_problem}")
        self.class_word = source.class_word
        self.classes = source.classes if self.labeled else ()
        self.block_names = source.block_names
        self._rows = np.arange(len(source))
        self._class_map = read_class_map(class_map) if class_map else None
        self.labels = self._labels()

    @property
    def blocks(self) -> np.ndarray | None:
        """Which shard each image lies in."""
        return None if self._source.blocks is None else self._source.blocks[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        row = int(self._rows[index])
        label = int(self.labels[index])
        try:
            image = decode(self._source.read(row))
            target = self._source.target(row) if self._reads_labels else None
        # Broken files raise errors of any kind. The transform is outside: its errors are bugs.
        except Exception as error:
            return Unreadable(self.path(index), one_line(error), self.strict)
        if target is not None:
            try:
                label = label_of_target(target, self._class_map)
            except InputError as error:  # not the image's fault: a class map that does not fit
                return Unreadable(self.path(index), one_line(error), fatal=True)
        return Sample(self.transform(image), label, self.path(index))

    def path(self, index: int) -> str:
        """The file of an image; in a tar, the member's name below the tar's."""
        return self._source.path(int(self._rows[index]))

    def with_transform(self, transform: Transform) -> ImageData:
        """The same images through another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def with_class_map(self, class_map: Mapping[str, int]) -> ImageData:
        """The same images with other class indices.

        Raises:
            InputError: if a class is not in the map.
        """
        other = copy.copy(self)
        other._class_map = class_map
        other.labels = other._labels()
        return other

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageData:
        """The images at these indices; the class indices stay."""
        other = copy.copy(self)
        other._rows = self._rows[indices]
        other.labels = self.labels[indices]
        return other

    @property
    def _reads_labels(self) -> bool:
        return self.labeled and self._source.targets is None

    def _labels(self) -> np.ndarray:
        targets = self._source.targets
        if not self.labeled or targets is None:
            return np.full(len(self._rows), UNLABELED)
        return labels_of_targets(targets[self._rows], self.classes, self._class_map, self)


def split(data: ImageData, fraction: float, seed: int = 0) -> tuple[ImageData, ImageData]:
    """Hold out part of a data set: ``(rest, held out)``, each in the order of ``data``.

    Stratified: each class gives its share, to within one image. A class of a single image may
    fall on either side, and where classes are known only as images are read (shards), all do.

    Args:
        data: what to split.
        fraction: how much to hold out; ``floor(fraction · images)`` images are.
        seed: the same seed gives the same split of the same images.

    Raises:
        InputError: if the fraction is not inside (0, 1), or leaves a part empty.
    """
    if not 0 < fraction < 1:
        raise InputError(f"held-out fraction must be inside (0, 1), got {fraction}")
    random = np.random.default_rng(seed)
    classes, class_of = np.unique(data.labels, return_inverse=True)
    # Sorted by class, at random inside each, every (1/fraction)-th is taken: each class gives its
    # share without any having to be large enough for a share of its own.
    order = np.lexsort((random.random(len(data)), random.permutation(len(classes))[class_of]))
    quota = np.floor(np.arange(len(data) + 1) * fraction)
    held = np.zeros(len(data), dtype=bool)
    held[order[np.diff(quota) > 0]] = True
    if held.all() or not held.any():
        raise InputError(
            f"held-out fraction {fraction} of {len(data)} images leaves one part empty; "
            f"hold out at least {1 / len(data):.2g}"
        )
    return data.subset(np.flatnonzero(~held)), data.subset(np.flatnonzero(held))
