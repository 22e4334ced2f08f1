"""A data set of images with a mask each: the class of every pixel."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from dynamicvit.data.decoding import decode, one_line
from dynamicvit.data.images import ImageData, Sample, Transform, Unreadable
from dynamicvit.data.sources import UNLABELED, open_source
from dynamicvit.data.sources.pairs import CLASSES, MASKS, Pairs, Unpaired, find_pairs
from dynamicvit.errors import InputError

#: From an image and ``(H, W)`` class indices to both as tensors, of one size or not.
JointTransform = Callable[[Image.Image, Tensor], tuple[Tensor, Tensor | int]]

#: Pillow's modes of masks: indices, with or without a palette.
_MODES = ("1", "L", "P", "I", "I;16")


class MaskData(ImageData):
    """Images and masks, as :class:`~dynamicvit.data.ImageData` has images and labels.

    A sample's label is a mask ``(H, W)`` of class indices, :data:`UNLABELED` where a pixel has
    none. An image whose mask has no labeled pixel is unreadable.

    Args:
        root: a folder that holds ``images`` and ``masks`` (or ``annotations``), with ``@SPLIT`` if
            they have splits, and ``classes.txt`` with one name a line if classes have names; or
            ``hfds/PLACE@SPLIT`` with a column of images and one of masks. Masks are PNGs of class
            indices, gray or with a palette.
        transform: from image and mask to tensors; by default RGB pixels in [0, 1], and the mask.
        ignore_index: of pixels without a class.
        reduce_labels: masks count classes from 1, and 0 is no class.
        labeled: False leaves masks aside, where any source of images will do.
        strict: as for ``ImageData``.

    Attributes:
        classes: names in class order; empty without ``classes.txt``.
        num_classes: that masks may name; None for any.

    Raises:
        InputError: for a root without masks, images and masks that are no pairs, or of unlike size.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        transform: JointTransform | None = None,
        ignore_index: int = 255,
        reduce_labels: bool = False,
        labeled: bool = True,
        strict: bool = False,
    ) -> None:
        source = find_pairs(root)
        if source is None and labeled:
            raise InputError(
                f"{root} has no masks: give a folder that holds images and {MASKS[0]}, or a data "
                "set of Hugging Face with a column of masks (hfds/PLACE@SPLIT)"
            )
        if source is None:
            source = Unpaired(open_source(root))
        self.root, self.strict = root, strict
        self.joint: JointTransform = transform or _plain
        self._source: Pairs = source
        self.labeled = labeled and source.labeled
        self.class_word, self.classes = f"names in {CLASSES}", source.classes
        self.empty_classes = ()
        self.left_out, self.block_names = source.left_out, source.block_names
        self.ignore_index, self.reduce_labels = ignore_index, reduce_labels
        self.num_classes = len(self.classes) or None
        self._rows = np.arange(len(source))
        self.labels = np.full(len(source), UNLABELED)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        row = int(self._rows[index])
        reading = ""
        try:
            image = decode(self._source.read(row), getattr(self.joint, "mode", "RGB"))
            reading = f"{self._source.mask_path(row)}: "
            mask = self._mask(row) if self.labeled else None
        except Exception as error:  # broken files raise errors of any kind
            if isinstance(error, InputError):  # a mask of other classes, or a server that is gone
                return Unreadable("", reading + one_line(error), fatal=True)
            return Unreadable(self.path(index), one_line(error), self.strict)
        if mask is None:
            mask = torch.full((image.height, image.width), UNLABELED)
        elif mask.shape != (image.height, image.width):
            rows, columns = mask.shape
            sizes = f"{columns}x{rows} pixels, its image {image.width}x{image.height}"
            return Unreadable("", f"{self._source.mask_path(row)} is {sizes}", fatal=True)
        elif not (mask != UNLABELED).any():
            return Unreadable(self.path(index), "every pixel of its mask is ignored", self.strict)
        return Sample(*self.joint(image, mask), self.path(index))

    def files(self, index: int) -> list[str]:
        """What an image is read from: itself and its mask."""
        mask = [self._source.mask_path(int(self._rows[index]))] if self.labeled else []
        return [self.path(index), *mask]

    def with_joint_transform(self, transform: JointTransform) -> MaskData:
        """The same images and masks with another transform."""
        other = copy.copy(self)
        other.joint = transform
        return other

    def with_transform(self, transform: Transform) -> MaskData:
        """The same images alone, their masks left aside, under a transform of the image."""
        return self.without_labels().with_joint_transform(_Alone(transform))

    @classmethod
    def alone(cls, images: ImageData) -> MaskData:
        """The images of another data set, without masks."""
        if isinstance(images, cls):
            return images.without_labels()
        return cls(images.root, labeled=False, strict=images.strict).subset(images._rows)

    def for_classes(self, num_classes: int) -> MaskData:
        """The same images; a mask that names another class ends the run."""
        other = copy.copy(self)
        other.num_classes = num_classes
        return other

    def without_labels(self) -> MaskData:
        """The same images, their masks left aside."""
        other = copy.copy(self)
        other.labeled, other.classes = False, ()
        return other

    def subset(self, indices: np.ndarray) -> MaskData:
        """The images at these indices."""
        other = copy.copy(self)
        other._rows, other.labels = self._rows[indices], self.labels[indices]
        return other

    def _mask(self, row: int) -> Tensor | None:
        found = self._source.mask(row)
        if found is None:
            return None
        return class_indices(found, self.ignore_index, self.reduce_labels, self.num_classes)


def class_indices(
    mask: Image.Image, ignore_index: int, reduce_labels: bool, num_classes: int | None
) -> Tensor:
    """``(H, W)`` class indices of a mask, :data:`UNLABELED` where there is none.

    Args:
        mask: of indices.
        ignore_index: as of :class:`MaskData`.
        reduce_labels: likewise.
        num_classes: likewise.

    Raises:
        InputError: for a picture that is no mask, or a class that there is not.
    """
    if mask.mode not in _MODES:
        raise InputError(f"is a picture of mode {mask.mode}; masks hold class indices")
    values = torch.from_numpy(np.array(mask).astype(np.int64))
    ignored, shift = values == ignore_index, int(reduce_labels)
    values = values - shift
    values = values.masked_fill(ignored | (values < 0), UNLABELED)
    highest = int(values.max())
    if num_classes is not None and highest >= num_classes:
        raise InputError(
            f"names class {highest + shift}, but there are {num_classes} classes, {shift} to "
            f"{num_classes - 1 + shift} (and {ignore_index} for none)"
        )
    return values


class _Alone:
    """A transform of the image, without its mask."""

    def __init__(self, transform: Transform) -> None:
        self.transform, self.mode = transform, getattr(transform, "mode", "RGB")

    def __call__(self, image: Image.Image, mask: Tensor) -> tuple[Tensor, int]:
        """The image, and no label."""
        del mask
        return self.transform(image), UNLABELED


def _plain(image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
    return to_tensor(image), mask


def has_masks(root: str | os.PathLike[str]) -> bool:
    """Whether a source of images has masks."""
    return find_pairs(root) is not None
