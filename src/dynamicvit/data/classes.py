"""Class maps, from the class names of a data set to indices, and the class names of a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.data.readers.class_map import load_class_map
from torch import Tensor

from dynamicvit.data.sources import UNLABELED
from dynamicvit.errors import InputError
from dynamicvit.utils.inputs import TEXT_BYTES, read_bytes

if TYPE_CHECKING:
    from dynamicvit.core.classifier import PrunedClassifier
    from dynamicvit.data.images import ImageData


class ClassMap(NamedTuple):
    """The class index of each class name (of a number: as text), and its origin in one line."""

    index: Mapping[str, int]
    origin: str


def imagenet_class_map() -> dict[str, int]:
    """The class index in ImageNet-1k of each WordNet id (``n01440764`` is 0)."""
    return {wordnet_id: index for index, wordnet_id in enumerate(ImageNetInfo().label_names())}


def class_map_for(
    data: ImageData,
    num_classes: int,
    class_map: Mapping[str, int] | str | os.PathLike[str] | None = None,
) -> ClassMap:
    """The class map from a labeled data set to a model; use it by ``data.with_class_map(.index)``.

    Without a given map: ImageNet's, if the model has its 1,000 classes and all folders are named by
    its WordNet ids (so a subset of ImageNet keeps its indices); else the classes in their own
    order, if there are as many as the model's. Classes that are numbers keep their numbers.

    Args:
        data: the data set.
        num_classes: of the model.
        class_map: given by the user, as for :class:`~dynamicvit.data.ImageData`.

    Raises:
        InputError: for a class that is not in the map, an index outside the model's classes, or
            numbers of classes that differ without a map.
    """
    folders = data.classes
    filled = [name for name in folders if name not in data.empty_classes]
    if class_map is not None:
        index = read_class_map(class_map)
        _labels_of_classes(folders, index, data)
        _check_range([index[name] for name in filled] or list(index.values()), num_classes)
        name = class_map if isinstance(class_map, str | os.PathLike) else "the mapping given"
        return ClassMap(index, f"{name} ({len(index):,} ids)")
    if not folders:
        _check_range([max(0, int(data.labels.max()))], num_classes, str(data.root))
        return ClassMap({str(number): number for number in range(num_classes)}, "the numbers given")
    imagenet = imagenet_class_map()
    if num_classes == len(imagenet) and imagenet.keys() >= set(filled):
        origin = f"ImageNet-1k's, as all {len(filled)} class folders are named by its WordNet ids"
        return ClassMap(imagenet, origin)
    if num_classes == len(folders):
        order = "natural" if data.class_word == "class folders" else "their"
        origin = f"the {len(folders)} {data.class_word} in {order} order{_empty(data)}"
        return ClassMap({name: index for index, name in enumerate(folders)}, origin)
    raise InputError(
        f"{data.root} has {len(folders)} {data.class_word}{_empty(data)} and the model "
        f"{num_classes} classes; give a class map: 'imagenet', or a .txt file with one class name "
        "a line in class order"
    )


def _empty(data: ImageData) -> str:
    """The classes without an image, which count too, in words."""
    if not data.empty_classes:
        return ""
    more = ", ..." if len(data.empty_classes) > 3 else ""
    return f" (no images in {', '.join(data.empty_classes[:3])}{more})"


def read_class_map(class_map: Mapping[str, int] | str | os.PathLike[str]) -> Mapping[str, int]:
    """The class map of a mapping, a file or the word ``"imagenet"``; its keys are text.

    Raises:
        InputError: for a missing or unusable file.
    """
    if isinstance(class_map, Mapping):
        return {str(name): index for name, index in class_map.items()}
    path = os.fspath(class_map)
    if path == "imagenet":
        return imagenet_class_map()
    if not os.path.isfile(path):
        raise InputError(f"class map {path} is not a file; give one, or the word 'imagenet'")
    try:
        read_bytes(path, TEXT_BYTES)  # no more than that
        return {str(name): index for name, index in load_class_map(path).items()}
    except Exception as error:  # of broken pickles of any kind
        raise InputError(
            f"class map {path} can't be used ({error}); give a .txt file with one class name a "
            "line in class order"
        ) from error


def _labels_of_classes(
    classes: Sequence[str], class_map: Mapping[str, int] | None, data: ImageData
) -> list[int]:
    """The class index of each class; without a map, its position.

    Of a class without images that is not in the map: :data:`UNLABELED`.

    Raises:
        InputError: for other classes that are not in the map.
    """
    if class_map is None:
        return list(range(len(classes)))
    missing = [n for n in classes if n not in class_map and n not in data.empty_classes]
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{len(missing)} {data.class_word} of {data.root} are not in the class map: {named}; "
            "add them to it, or remove them from the data"
        )
    return [class_map.get(name, UNLABELED) for name in classes]


def labels_of_targets(
    targets: np.ndarray, class_map: Mapping[str, int] | None, data: ImageData
) -> np.ndarray:
    """``(images,)`` class indices of a source's targets ``(images,)``.

    Raises:
        InputError: for classes that are not in the map.
    """
    if data.classes:
        of_class = [*_labels_of_classes(data.classes, class_map, data), UNLABELED]
        return np.array(of_class)[targets]  # the last for UNLABELED, which is -1
    if class_map is None:
        return targets
    present, where = np.unique(targets, return_inverse=True)
    numbers = [str(number) for number in present if number != UNLABELED]
    unlabeled = [UNLABELED] * (len(present) - len(numbers))  # sorted before the others
    return np.array([*unlabeled, *_labels_of_classes(numbers, class_map, data)])[where]


def label_of_target(target: str, class_map: Mapping[str, int] | None) -> int:
    """The class index of a class written beside an image; without a map, its number.

    Raises:
        InputError: for a class that is not in the map or, without one, no number.
    """
    if target == str(UNLABELED):
        return UNLABELED
    if class_map is not None and target in class_map:
        return class_map[target]
    if class_map is None and target.isdecimal():
        return int(target)
    raise InputError(f"its class {target!r} is not in the class map")


def _check_range(labels: Sequence[int], num_classes: int, origin: str = "the class map") -> None:
    outside = [label for label in labels if not 0 <= label < num_classes]
    if outside:
        raise InputError(
            f"{origin} gives index {outside[0]}, but the model's classes are 0 to {num_classes - 1}"
        )


def class_names(model: PrunedClassifier) -> list[str]:
    """Names of a model's classes; ``"class 0"``, ``"class 1"``, ... if unknown."""
    names = known_class_names(model)
    return [f"class {index}" for index in range(model.num_classes)] if names is None else names


def known_class_names(model: PrunedClassifier) -> list[str] | None:
    """Names of a model's classes, or None.

    From ``label_descriptions`` or ``label_names`` of its ``pretrained_cfg``; else ImageNet's, if
    the number of classes identifies one (1,000 and the ImageNet-21k sets).
    """
    count = model.num_classes
    config = model.pretrained_cfg or {}
    names = config.get("label_names")
    descriptions = config.get("label_descriptions")
    if isinstance(descriptions, dict) and names:
        descriptions = [descriptions.get(name, name) for name in names]
    for known in (descriptions, names):
        if isinstance(known, Sequence) and not isinstance(known, str) and len(known) == count:
            return [str(name) for name in known]
    subset = infer_imagenet_subset({"num_classes": count})
    return None if subset is None else list(ImageNetInfo(subset).label_descriptions())


class Prediction(NamedTuple):
    """A class and its probability in [0, 1]."""

    index: int
    name: str
    probability: float


def top_classes(logits: Tensor, names: Sequence[str], k: int = 5) -> list[Prediction]:
    """The k most probable classes of one image, best first; fewer if there are fewer.

    Args:
        logits: ``(classes,)``.
        names: of the classes.
        k: how many.

    Raises:
        InputError: if the number of names differs.
    """
    if logits.shape != (len(names),):
        raise InputError(f"{len(names)} class names, but logits of shape {tuple(logits.shape)}")
    best = logits.float().softmax(dim=-1).topk(min(k, len(names)))
    return [
        Prediction(index, names[index], probability)
        for index, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
