"""A data set over timm's readers: class folders, a tar of them, or a flat folder without labels."""

from __future__ import annotations

import copy
import io
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image
from timm.data.readers import create_reader
from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_tensor

from dynamicvit.data.classes import labels_of_classes, read_class_map
from dynamicvit.errors import InputError

UNLABELLED = -1
"""The label of an image without one; ``cross_entropy(..., ignore_index=UNLABELLED)`` skips it."""

Transform = Callable[[Image.Image], Tensor]
Reader = ReaderImageFolder | ReaderImageInTar


class Sample(NamedTuple):
    """One image: ``(3, H, W)``, and its class index or :data:`UNLABELLED`."""

    image: Tensor
    label: int


class Unreadable(NamedTuple):
    """What stands for an image that can't be read, on its way to whoever counts."""

    path: str
    reason: str
    fatal: bool


class ImageData(Dataset["Sample | Unreadable"]):
    """Images under a folder or in a tar, in natural order of their paths.

    An image that can't be read (a truncated JPEG is one) comes as :class:`Unreadable`;
    :class:`~dynamicvit.data.Loader` drops it from its batch and says so.

    Args:
        root: a folder of class folders (an image's class is the folder it lies in), a ``.tar`` of
            them, or a flat folder or tar of images without labels.
        transform: from an RGB image to ``(3, H, W)``; by default the image's pixels in 0..1.
        class_map: class index of each folder name: a mapping, the path of a file with one name a
            line, or ``"imagenet"`` for WordNet ids; by default the folders in natural order.
            :func:`~dynamicvit.data.class_map_for` finds the one that suits a model.
        labelled: False gives every image the label :data:`UNLABELLED`; by default images are
            unlabelled only if all of them lie directly in the root.
        strict: an unreadable image ends the run in place of being left out.

    Attributes:
        root: as given.
        classes: the names of the class folders, in natural order; empty when unlabelled.
        labels: ``(images,)`` int64 array of class indices.
        strict: as given.

    Raises:
        InputError: for a root that is missing, can't be opened or holds no images; for class
            folders that the class map lacks.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        transform: Transform | None = None,
        class_map: Mapping[str, int] | str | os.PathLike[str] | None = None,
        labelled: bool | None = None,
        strict: bool = False,
    ) -> None:
        self.root = Path(root)
        self.transform: Transform = transform or to_tensor
        self.strict = strict
        self._reader = _open_reader(self.root)
        names, self._class_of = _folders(self._reader)
        self.classes = _class_folders(self.root, names, labelled, class_map is not None)
        self._rows = np.arange(len(self._reader))
        self.labels = self._labels(read_class_map(class_map) if class_map else None)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool(self.classes)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample | Unreadable:
        try:
            image = _decode(_read(self._reader, self.root, int(self._rows[index])))
        # Broken files raise whatever the decoder stumbles over: OSError, SyntaxError, ValueError,
        # struct.error, zlib.error, DecompressionBombError ... The transform is outside on purpose:
        # its errors are bugs.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            return Unreadable(self.path(index), reason, self.strict)
        return Sample(self.transform(image), int(self.labels[index]))

    def path(self, index: int) -> str:
        """The file of an image; in a tar, the member's name below the tar's."""
        return str(self.root / str(self._reader.filename(int(self._rows[index]))))

    def with_transform(self, transform: Transform) -> ImageData:
        """The same images through another transform."""
        other = copy.copy(self)
        other.transform = transform
        return other

    def with_class_map(self, class_map: Mapping[str, int]) -> ImageData:
        """The same images with other class indices.

        Raises:
            InputError: if a class folder is not in the map.
        """
        other = copy.copy(self)
        other.labels = self._labels(class_map)
        return other

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageData:
        """The images at these indices; the class indices stay."""
        other = copy.copy(self)
        other._rows = self._rows[indices]
        other.labels = self.labels[indices]
        return other

    def _labels(self, class_map: Mapping[str, int] | None) -> np.ndarray:
        if not self.labelled:
            return np.full(len(self._rows), UNLABELLED)
        of_class = labels_of_classes(self.classes, class_map, self.root)
        return np.array(of_class)[self._class_of[self._rows]]


def split(data: ImageData, fraction: float, seed: int = 0) -> tuple[ImageData, ImageData]:
    """Hold a part of a data set out: ``(rest, held out)``, each in the order of ``data``.

    Stratified: each class gives its share, to within one image. A class of a single image may
    fall on either side.

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


# -------------------------------------------------------------------- over timm's readers


def _open_reader(root: Path) -> Reader:
    """timm's reader of a folder or tar; its assertions and empty results become one clear line."""
    if not root.exists():
        raise InputError(f"{root} does not exist; give a folder of images or a .tar of them")
    kinds = ", ".join(get_img_extensions())
    if root.is_dir():
        _check_readable(root)
    elif root.suffix != ".tar":
        raise InputError(f"{root} is neither a folder nor a .tar of images ({kinds})")
    try:
        return cast(Reader, create_reader("", root=str(root)))
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{root} can't be read ({error}); give a tar of images") from error
    # No image at all: timm's folder reader raises the one, its tar reader stumbles into the other.
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{root} holds no images ({kinds})") from error


def _check_readable(root: Path) -> None:
    """timm's walk passes silently over a folder that it may not enter: its images would be gone."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} can't be read ({error.strerror})")

    for _ in os.walk(root, onerror=refuse, followlinks=True):
        pass


def _folders(reader: Reader) -> tuple[list[str], np.ndarray]:
    """The folder names of a reader, and for each image ``(images,)`` which of them it lies in."""
    index: dict[str, int] = {}
    if isinstance(reader, ReaderImageInTar):
        index.update(reader.class_name_to_idx or {})
        targets = reader.targets
    else:
        index.update(reader.class_to_idx)
        targets = [target for _, target in reader.samples]
    return sorted(index, key=index.__getitem__), np.asarray(targets)


def _class_folders(
    root: Path, names: list[str], labelled: bool | None, mapped: bool
) -> tuple[str, ...]:
    """The class names of a root; none if it is unlabelled."""
    flat = names == [""]  # the name of the root itself
    if labelled is None:
        labelled = mapped or not flat
    if not labelled:
        return ()
    if flat:
        raise InputError(f"{root} has no class folders; images without labels need labelled=False")
    if "" in names:
        raise InputError(f"{root} has images beside its class folders; move them into one")
    return tuple(names)


def _read(reader: Reader, root: Path, row: int) -> bytes:
    """The bytes of an image file.

    A tar is opened anew for each image: timm's cached handle would be shared, with its position,
    by all workers forked after the first read, and could not be sent to spawned ones.
    """
    if not isinstance(reader, ReaderImageInTar):
        return Path(reader.samples[row][0]).read_bytes()
    samples: Any = reader.samples  # rows of (member, None, the inner tar it lies in)
    member, _, inner = samples[row]
    with ExitStack() as stack:
        tar = stack.enter_context(tarfile.open(root))
        if inner is not None:
            tar = stack.enter_context(tarfile.open(fileobj=tar.extractfile(inner)))
        file = tar.extractfile(member)
        assert file is not None  # timm lists regular files only
        return file.read()


def _decode(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")
