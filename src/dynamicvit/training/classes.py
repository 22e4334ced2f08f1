"""Which classes a run's model has: its own, or those of the images, which are to be fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamicvit.core.model import DynamicViT
from dynamicvit.data import (
    ClassMap,
    ImageData,
    OtherClassesError,
    class_map_for,
    open_data,
    read_class_names,
)
from dynamicvit.data.class_names import check_class_names, known_class_names
from dynamicvit.data.classes import index_of, read_class_map
from dynamicvit.errors import InputError
from dynamicvit.training.recipe import Recipe


@dataclass(frozen=True)
class Classes:
    """The classes of a run.

    Attributes:
        count: how many the model has.
        class_map: how the images' labels lead to them; ``None`` where no label is read.
        names: of the classes, where the model is to get them.
        is_fresh: whether the classifier is a new one.
    """

    count: int
    class_map: ClassMap | None = None
    names: tuple[str, ...] | None = None
    is_fresh: bool = False

    @property
    def are_fitted(self) -> bool:
        """Whether the dense model is to be fitted to them: a new classifier, and labels."""
        return self.is_fresh and self.class_map is not None

    def give_to(self, model: DynamicViT) -> tuple[str, ...]:
        """Give a model the classifier and the names.

        Returns:
            Names of the new classifier's parameters in the backbone; none if it has its own.
        """
        old = {id(parameter) for parameter in model.backbone.parameters()}
        if self.is_fresh:
            model.reset_classifier(self.count)
        if self.is_fresh or self.names is not None:
            model.set_class_names(self.names)
        parameters = model.backbone.named_parameters()
        return tuple(name for name, parameter in parameters if id(parameter) not in old)


def check_num_classes(num_classes: int | None) -> None:
    """A number of classes that is given is one that a classifier can have.

    Raises:
        InputError: for one below 1.
    """
    if num_classes is not None and num_classes < 1:
        raise InputError(f"--num-classes {num_classes}: give at least 1")


def classes_for(
    data: ImageData | None,
    model: DynamicViT,
    recipe: Recipe,
    class_map: str | None = None,
    num_classes: int | None = None,
    class_names: str | Path | None = None,
) -> Classes:
    """The classes of a run: the model's, if the images have the same, else those of the images.

    Args:
        data: the images, labeled or not.
        model: to be trained.
        recipe: tells whether labels are used even if the model has the classes.
        class_map: given by the user.
        num_classes: given by the user; the model's own number keeps its classifier.
        class_names: a file of names, one a line, in class order.

    Raises:
        InputError: for values that contradict each other.
    """
    uses_labels = recipe.losses.classification > 0 or recipe.hold_out > 0
    names = None if class_names is None else tuple(read_class_names(class_names))
    check_num_classes(num_classes)
    found = None
    if data is not None and data.labeled:
        found = _mapped(data, model, uses_labels, class_map, num_classes, names, class_names)
    if found is None:
        count = num_classes or model.num_classes
        found = Classes(count, None, None, is_fresh=count != model.num_classes)
    if names is not None:
        check_class_names(names, found.count)
    kept = found.class_map if uses_labels or found.is_fresh else None
    if class_map is not None and data is not None and kept is None:
        raise InputError(
            f"class map {class_map}: with losses.classification=0 and hold_out=0 no label is used; "
            "leave it out"
        )
    return Classes(found.count, kept, names or found.names, found.is_fresh)


def _mapped(
    data: ImageData,
    model: DynamicViT,
    uses_labels: bool,
    class_map: str | None,
    num_classes: int | None,
    names: Sequence[str] | None,
    names_from: str | Path | None,
) -> Classes | None:
    """The classes of labeled images; ``None`` if their labels are to be left aside."""
    folders, own = data.classes, model.num_classes
    index = None if names is None or not folders else index_of(folders, names)
    if names is not None and index is not None and class_map is None:
        # They name the folders, so their order is the classes'.
        is_fresh = not _has(model, names)
        return Classes(len(names), ClassMap(index, str(names_from)), None, is_fresh)
    if class_map is not None:
        given = read_class_map(class_map)
        whole = sorted(given.values()) == list(range(len(given)))
        count = num_classes or (len(given) if whole else own)
        chosen = class_map_for(data, count, class_map)
        return Classes(count, chosen, _names(chosen, count), is_fresh=count != own)
    if num_classes in (None, own):
        try:
            chosen = class_map_for(data, model)
            unnamed = known_class_names(model) is None
            return Classes(own, chosen, _names(chosen, own) if unnamed and folders else None)
        except OtherClassesError:
            if num_classes is not None and not uses_labels:
                return None
            if num_classes is not None or len(folders) < 2:
                raise
    count = num_classes or len(folders)
    if folders and count != len(folders):
        raise InputError(
            f"--num-classes {count}: {data.root} has {len(folders)} {data.class_word}; leave it out"
        )
    chosen = class_map_for(data, count)
    return Classes(count, chosen, _names(chosen, count) if folders else None, is_fresh=True)


def _has(model: DynamicViT, names: Sequence[str]) -> bool:
    """Whether a model has these classes in this order, as far as it names them."""
    known = known_class_names(model)
    return model.num_classes == len(names) and known in (None, list(names))


def _names(class_map: ClassMap, count: int) -> tuple[str, ...] | None:
    """The name of each class by its index, if each has one."""
    names = {index: name for name, index in class_map.index.items()}
    return tuple(names[index] for index in range(count)) if len(names) == count else None


def sources_of(
    root: str | Path, recipe: Recipe, unlabeled: Sequence[str | Path], strict: bool
) -> list[ImageData]:
    """The images or clips, with labels if they have any, and more without.

    Raises:
        InputError: for images that can't be had, or have no labels where they are needed.
    """
    needs_labels = recipe.losses.classification > 0
    try:
        images = open_data(root, strict=strict)
    except InputError:  # as images beside class folders
        if needs_labels:
            raise
        images = open_data(root, labeled=False, strict=strict)
    if needs_labels and not images.labeled:
        raise InputError(
            f"{root} has no labels, which the classification loss needs: set "
            "losses.classification=0 to learn from the dense network alone"
        )
    return [images, *(open_data(path, labeled=False, strict=strict) for path in unlabeled)]
