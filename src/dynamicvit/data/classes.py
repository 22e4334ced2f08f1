"""Class maps, from the class names of a data set to the class indices of a model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.data.readers.class_map import load_class_map

from dynamicvit.data.class_names import own_class_names
from dynamicvit.data.sources import UNLABELED
from dynamicvit.errors import InputError
from dynamicvit.utils.inputs import TEXT_BYTES, read_bytes

if TYPE_CHECKING:
    from dynamicvit.core.classifier import PrunedClassifier
    from dynamicvit.data.images import ImageData


class OtherClassesError(InputError):
    """The classes of a data set are none of the model's: a classifier would have to be fitted."""


class ClassMap(NamedTuple):
    """The class index of each class name (of a number: as text), and its origin in one line."""

    index: Mapping[str, int]
    origin: str


def imagenet_class_map() -> dict[str, int]:
    """The class index in ImageNet-1k of each WordNet id (``n01440764`` is 0)."""
    return {wordnet_id: index for index, wordnet_id in enumerate(ImageNetInfo().label_names())}


def class_map_for(
    data: ImageData,
    model: PrunedClassifier | int,
    class_map: Mapping[str, int] | str | os.PathLike[str] | None = None,
) -> ClassMap:
    """The class map from a labeled data set to a model; use it by ``data.with_class_map(.index)``.

    Without a given map, the first of these that holds:

    - the data's classes are among the names that the model gives its classes, whatever their order;
    - they are WordNet ids of the ImageNet that the model's number of classes tells, which need not
      be all (names that the model gives say at which indices);
    - they are as many as the model's, and numbers, or without names in the model: their own order.

    Classes that are numbers beside the images keep their numbers.

    Args:
        data: the data set.
        model: whose names are believed; or its number of classes, if it has no names.
        class_map: given by the user, as for :class:`~dynamicvit.data.ImageData`.

    Raises:
        InputError: for a class that is not in the map, an index outside the model's classes, or
            names that contradict each other.
        OtherClassesError: if the data has other classes than the model.
    """
    folders = data.classes
    filled = [name for name in folders if name not in data.empty_classes]
    num_classes = model if isinstance(model, int) else model.num_classes
    own = [] if isinstance(model, int) else own_class_names(model)
    if class_map is not None:
        index = read_class_map(class_map)
        _labels_of_classes(folders, index, data)
        _check_range([index[name] for name in filled] or list(index.values()), num_classes)
        name = class_map if isinstance(class_map, str | os.PathLike) else "the mapping given"
        return ClassMap(index, f"{name} ({len(index):,} ids)")
    if not folders:
        _check_range([max(0, int(data.labels.max()))], num_classes, str(data.root))
        return ClassMap({str(number): number for number in range(num_classes)}, "the numbers given")
    for names in own:
        index = index_of(filled, names)
        if index is not None:
            return ClassMap(index, f"the model's own class names, {_listed(filled)}")
    subset = infer_imagenet_subset({"num_classes": num_classes})
    info = None if subset is None else ImageNetInfo(subset)
    ids = [] if info is None else info.label_names()
    if info is not None and set(filled) <= set(ids):
        wordnet = {wordnet_id: index for index, wordnet_id in enumerate(ids)}
        words = {name: str(info.index_to_description(wordnet[name])) for name in filled}
        if not own or all(_alike(own[0][wordnet[name]], words[name]) for name in filled):
            return ClassMap(wordnet, f"{subset} ({len(ids):,} WordNet ids)")
        described = index_of(words.values(), own[0])
        if described is not None:
            index = {name: described[words[name]] for name in filled}
            return ClassMap(index, "the model's own class names, by WordNet ids")
    numbered = any(all(name.isdecimal() for name in names) for names in (filled, *own))
    if own and not numbered:
        _refuse(data, num_classes, own)
    if num_classes == len(folders):
        order = "natural" if data.class_word == "class folders" else "their"
        origin = f"the {len(folders)} {data.class_word} in {order} order{_empty(data)}"
        return ClassMap({name: index for index, name in enumerate(folders)}, origin)
    raise OtherClassesError(
        f"{data.root} has {len(folders)} {data.class_word}{_empty(data)} and the model "
        f"{num_classes} classes; give a class map ('imagenet', or a .txt file with one class name "
        "a line in class order), or fit the model to these classes with `dynamicvit train`"
    )


def _refuse(data: ImageData, num_classes: int, own: Sequence[Sequence[str]]) -> NoReturn:
    """Raise for names that contradict the model's."""
    folders = [name for name in data.classes if name not in data.empty_classes]
    known = {_plain(name) for names in own for name in names}
    strangers = [name for name in folders if _plain(name) not in known]
    some_fit = len(strangers) < len(folders) == num_classes
    raise (InputError if some_fit else OtherClassesError)(
        f"{data.root} has {len(folders)} {data.class_word}, {_listed(folders)}, and the model "
        f"{num_classes} classes, {_listed(own[0])}; {_listed(strangers)} "
        f"{'is' if len(strangers) == 1 else 'are'} not among the model's: rename them, give a "
        "class map, or fit the model to these classes with `dynamicvit train`"
    )


def _empty(data: ImageData) -> str:
    """The classes without an image, which count too, in words."""
    return f" (no images in {_listed(data.empty_classes)})" if data.empty_classes else ""


def index_of(wanted: Iterable[str], names: Sequence[str]) -> dict[str, int] | None:
    """The index of each wanted name, exactly or but for case and marks; None if one has none.

    A name that stands for two classes is no name of either.
    """
    wanted = list(wanted)
    for key in (str, _plain):
        keys = [key(name) for name in names]
        times = Counter(keys)
        index = {name: index for index, name in enumerate(keys) if times[name] == 1}
        if all(key(name) in index for name in wanted):
            return {name: index[key(name)] for name in wanted}
    return None


def _plain(name: str) -> str:
    """A name without case and marks: ``Great_white-shark`` is ``great white shark``."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _alike(ours: str, imagenets: str) -> bool:
    """Whether two descriptions of an ImageNet class begin with the same word for it."""
    return _plain(ours.split(",")[0]) == _plain(imagenets.split(",")[0])


def _listed(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


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
        raise InputError(
            f"{len(missing)} {data.class_word} of {data.root} are not in the class map: "
            f"{_listed(missing)}; "
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
    number = "; classes that are numbers need none" if class_map and target.isdecimal() else ""
    raise InputError(f"its class {target!r} is not in the class map{number}")


def _check_range(labels: Sequence[int], num_classes: int, origin: str = "the class map") -> None:
    outside = [label for label in labels if not 0 <= label < num_classes]
    if outside:
        raise InputError(
            f"{origin} gives index {outside[0]}, but the model's classes are 0 to {num_classes - 1}"
        )
