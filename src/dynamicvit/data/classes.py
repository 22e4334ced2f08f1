"""Class maps: which class index a folder name stands for."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from timm.data import ImageNetInfo
from timm.data.readers.class_map import load_class_map

from dynamicvit.errors import InputError

IMAGENET = "imagenet"


@dataclass(frozen=True)
class ClassMap:
    """A class index for each folder name, and why it was chosen.

    Attributes:
        index: class index of each folder name.
        origin: one line for people.
    """

    index: Mapping[str, int]
    origin: str


class _Labelled(Protocol):
    root: Any
    classes: tuple[str, ...]


def imagenet_class_map() -> dict[str, int]:
    """ImageNet-1k's class index of each WordNet id (``n01440764`` is 0)."""
    return {wordnet_id: index for index, wordnet_id in enumerate(ImageNetInfo().label_names())}


def class_map_for(
    data: _Labelled,
    num_classes: int,
    class_map: Mapping[str, int] | str | os.PathLike[str] | None = None,
) -> ClassMap:
    """The class map that fits a labelled data set to a model, or an error if none does.

    Without a given map: ImageNet's if the model has its 1,000 classes and every folder is named by
    one of its WordNet ids (so a subset of ImageNet keeps its indices); else the folders in natural
    order if there is one for each class. Nothing else is guessed.

    Args:
        data: a labelled :class:`~dynamicvit.data.ImageData`; use the answer by
            ``data.with_class_map(chosen.index)``.
        num_classes: of the model.
        class_map: what the user gave, if anything: as :class:`~dynamicvit.data.ImageData` takes it.

    Raises:
        InputError: if a folder is not in the given map, an index is outside the model's classes,
            or no map was given and the numbers of folders and classes differ.
    """
    folders = data.classes
    if class_map is not None:
        index = read_class_map(class_map)
        _check_range(labels_of_classes(folders, index, data.root), num_classes)
        return ClassMap(index, "as given")
    imagenet = imagenet_class_map()
    if num_classes == len(imagenet) and imagenet.keys() >= set(folders):
        origin = f"ImageNet-1k's, as all {len(folders)} class folders are named by its WordNet ids"
        return ClassMap(imagenet, origin)
    if num_classes == len(folders):
        index = {name: position for position, name in enumerate(folders)}
        return ClassMap(index, f"the {len(folders)} class folders in natural order")
    raise InputError(
        f"{data.root} has {len(folders)} class folders and the model {num_classes} classes; "
        "give a class map: 'imagenet' or a .txt file with one folder name a line, in class order"
    )


def read_class_map(class_map: Mapping[str, int] | str | os.PathLike[str]) -> Mapping[str, int]:
    """The class map that a mapping, a file or the word ``"imagenet"`` stands for.

    Raises:
        InputError: for a file that is missing or can't be used.
    """
    if isinstance(class_map, Mapping):
        return class_map
    path = os.fspath(class_map)
    if path == IMAGENET:
        return imagenet_class_map()
    if not os.path.isfile(path):
        raise InputError(f"class map {path} is not a file; give one, or the word {IMAGENET!r}")
    try:
        return load_class_map(path)
    except (AssertionError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise InputError(
            f"class map {path} can't be used ({error}); give a .txt file with one folder name a "
            "line, in class order"
        ) from error


def labels_of_classes(
    classes: Sequence[str], class_map: Mapping[str, int] | None, root: os.PathLike[str]
) -> list[int]:
    """The class index of each class folder; without a map, its position.

    Raises:
        InputError: naming the folders that are not in the map (timm's readers would drop their
            images silently).
    """
    if class_map is None:
        return list(range(len(classes)))
    missing = [name for name in classes if name not in class_map]
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{len(missing)} class folders of {root} are not in the class map: {named}; "
            "add them to it, or move them away"
        )
    return [class_map[name] for name in classes]


def _check_range(labels: Sequence[int], num_classes: int) -> None:
    outside = [label for label in labels if not 0 <= label < num_classes]
    if outside:
        raise InputError(
            f"the class map gives index {outside[0]}, but the model's classes are "
            f"0 to {num_classes - 1}"
        )
