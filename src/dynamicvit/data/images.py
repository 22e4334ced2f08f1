"""A data set over a source of images: class map, splits, and unreadable images."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_tensor

from dynamicvit.data.classes import label_of_target, labels_of_targets, read_class_map
from dynamicvit.data.decoding import decode, one_line
from dynamicvit.data.sources import UNLABELED, Source, open_source
from dynamicvit.data.transforms import Size, eval_transform, train_transform
from dynamicvit.errors import InputError

Transform = Callable[[Image.Image], Tensor]


class Sample(NamedTuple):
    """An image ``(C, H, W)``, its class index or :data:`UNLABELED`, and its path.

    In place of the index a mask ``(H, W)`` of them; in place of the image a clip ``(T, C, H, W)``,
    or several views of it ``(V, T, C, H, W)``.
    """

    image: Tensor
    label: int | Tensor
    path: str = ""


class Unreadable(NamedTuple):
    """An unreadable image: its path, the reason, and whether that ends the run.

    The path is empty if the image is not to blame, as where a server has gone.
    """

    path: str
    reason: str
    fatal: bool


class ImageData(Dataset["Sample | Unreadable"]):
    """The images of a source in its own order; for folders and tars, natural order of the paths.

    An unreadable image, such as a truncated JPEG, comes as :class:`Unreadable`;
    :class:`~dynamicvit.data.Loader` skips and logs it.

    Args:
        root: a folder of class folders, a ``.tar`` of them, or a flat folder or tar of unlabeled
            images; or ``wds/PLACE``, ``hfds/PLACE``, ``torch/NAME/FOLDER``, each with or without
            ``@SPLIT``.
        transform: from an image in its ``mode`` (Pillow's; RGB if it has no such attribute) to
            ``(C, H, W)``; by default RGB pixels in [0, 1].
        class_map: class index of each class name: a mapping, the path of a file with one name a
            line, or ``"imagenet"`` for WordNet ids; by default the source's own order. See
            :func:`~dynamicvit.data.class_map_for`.
        labeled: False gives every image the label :data:`UNLABELED`; by default images are
            unlabeled if the source has no classes.
        strict: an unreadable image ends the run; by default it is skipped.

    Attributes:
        noun: what messages call one of them.
        class_word: what messages call the classes.
        classes: class names in the source's order; empty if unlabeled or if classes are numbers.
        empty_classes: the class folders among them that hold no image.
        left_out: other files of the folder or tar, by relative path, without hidden ones.
        labels: ``(images,)`` int64 class indices; :data:`UNLABELED` throughout for shards, whose
            labels are read with the images.
        block_names: paths of the shards, if any.

    Raises:
        InputError: for a root that is missing, unreadable or empty; for classes that are not in
            the class map.
    """

    noun = "image"
    #: How many are computed together where nobody says.
    usual_batch = 32

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
        self._source = source = self._open(root)
        self.labeled = source.labeled if labeled is None else labeled
        if not source.labeled and (labeled or class_map is not None):
            raise InputError(
                f"{root} has no {source.class_word}; unlabeled {self.noun}s need labeled=False"
            )
        if self.labeled and source.class_problem:
            raise InputError(f"{root} has {source.class_problem}")
        self.class_word = source.class_word
        self.classes = source.classes if self.labeled else ()
        self.empty_classes = source.empty_classes if self.labeled else ()
        self.left_out = source.left_out
        self.block_names = source.block_names
        self._rows = np.arange(len(source))
        self._class_map = read_class_map(class_map) if class_map else None
        self.labels = self._labels()

    @property
    def blocks(self) -> np.ndarray | None:
        """``(images,)`` index in ``block_names`` of each image's shard; None without shards."""
        return None if self._source.blocks is None else self._source.blocks[self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        row = int(self._rows[index])
        label = int(self.labels[index])
        try:
            image = self._decode(row)
            target = self._source.target(row) if self._reads_labels else None
        # Broken files raise errors of any kind. An error of the transform below is a bug.
        except Exception as error:
            if isinstance(error, InputError):  # no image's fault, as of a server that is gone
                return Unreadable("", one_line(error), fatal=True)
            return Unreadable(self.path(index), one_line(error), self.strict)
        if target is not None:
            try:
                label = label_of_target(target, self._class_map)
            except InputError as error:  # a class map that does not fit
                return Unreadable("", f"{self.path(index)}: {one_line(error)}", fatal=True)
        return Sample(self.transform(image), label, self.path(index))

    def _open(self, root: str | os.PathLike[str]) -> Source:
        return open_source(root)

    def _decode(self, row: int) -> Any:
        """What the transform takes. A broken file raises errors of any kind."""
        return decode(self._source.read(row), getattr(self.transform, "mode", "RGB"))

    def path(self, index: int) -> str:
        """An image's file; in a tar, the tar's path and the member's name."""
        return self._source.path(int(self._rows[index]))

    def files(self, index: int) -> list[str]:
        """What an image is read from."""
        return [self.path(index)]

    def with_transform(self, transform: Transform) -> ImageData:
        """The same images with another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def for_evaluation(
        self, model: nn.Module, image_size: Size | None = None, crop_pct: float | None = None
    ) -> ImageData:
        """The same images as a model is evaluated on them; see :func:`.eval_transform`."""
        return self.with_transform(eval_transform(model, image_size, crop_pct))

    def for_training(self, model: nn.Module, **augmentation: Any) -> ImageData:
        """The same images under the augmentation of :func:`.train_transform`."""
        return self.with_transform(train_transform(model, **augmentation))

    def with_class_map(self, class_map: Mapping[str, int]) -> ImageData:
        """The same images with other class indices.

        Raises:
            InputError: if a class is not in the map.
        """
        other = copy.copy(self)
        other._class_map = class_map
        other.labels = other._labels()
        return other

    def without_labels(self) -> ImageData:
        """The same images, their classes left aside."""
        other = copy.copy(self)
        other.labeled, other.classes, other._class_map = False, (), None
        other.labels = other._labels()
        return other

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageData:
        """The images at these indices, with the same class indices."""
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
        return labels_of_targets(targets[self._rows], self._class_map, self)


def split(data: ImageData, fraction: float, seed: int = 0) -> tuple[ImageData, ImageData]:
    """Hold out a fraction of a data set: ``(rest, held out)``, each in the order of ``data``.

    ``floor(fraction · images)`` images are held out, stratified by class to within one image;
    shards, whose labels are read with the images, are split without classes. The same seed gives
    the same split.

    Raises:
        InputError: for a fraction outside (0, 1), or one that leaves a part empty.
    """
    if not 0 < fraction < 1:
        raise InputError(f"held-out fraction must be inside (0, 1), got {fraction}")
    random = np.random.default_rng(seed)
    classes, class_of = np.unique(data.labels, return_inverse=True)
    # Of all images sorted by class, shuffled within each, take every (1/fraction)-th: classes
    # too small for a whole image of their own are sampled together.
    order = np.lexsort((random.random(len(data)), random.permutation(len(classes))[class_of]))
    quota = np.floor(np.arange(len(data) + 1) * fraction)
    held = np.zeros(len(data), dtype=bool)
    held[order[np.diff(quota) > 0]] = True
    if held.all() or not held.any():
        raise InputError(
            f"held-out fraction {fraction} of {len(data)} {data.noun}s leaves one part empty; "
            f"hold out at least {1 / len(data):.2g}"
        )
    return data.subset(np.flatnonzero(~held)), data.subset(np.flatnonzero(held))
