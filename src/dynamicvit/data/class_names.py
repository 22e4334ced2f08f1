"""The names of a model's classes, from the model or a file, and the likeliest of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from dynamicvit.errors import InputError
from dynamicvit.utils.inputs import read_text

if TYPE_CHECKING:
    from dynamicvit.core.classifier import PrunedClassifier
    from dynamicvit.core.model import DynamicViT


def class_names(model: PrunedClassifier) -> list[str]:
    """Names of a model's classes; ``"class 0"``, ``"class 1"``, ... if unknown."""
    names = known_class_names(model)
    return [f"class {index}" for index in range(model.num_classes)] if names is None else names


def known_class_names(model: PrunedClassifier) -> list[str] | None:
    """Names of a model's classes, or None.

    Its own (:func:`own_class_names`); else ImageNet's, if the number of classes identifies one
    (1,000 and the ImageNet-21k sets).
    """
    own = own_class_names(model)
    if own:
        return own[0]
    subset = infer_imagenet_subset({"num_classes": model.num_classes})
    return None if subset is None else list(ImageNetInfo(subset).label_descriptions())


def short_name(name: str) -> str:
    """The first synonym of a class: ImageNet's names list several."""
    return name.split(",")[0].strip()


def own_class_names(model: PrunedClassifier) -> list[list[str]]:
    """The names that a model itself gives its classes, those for people first; none if it doesn't.

    From ``label_descriptions`` and ``label_names`` of its ``pretrained_cfg``.
    """
    config = model.pretrained_cfg or {}
    names = config.get("label_names")
    descriptions = config.get("label_descriptions")
    if isinstance(descriptions, dict) and names:
        descriptions = [descriptions.get(name, name) for name in names]
    return [
        [str(name) for name in known]
        for known in (descriptions, names)
        if isinstance(known, Sequence)
        and not isinstance(known, str)
        and len(known) == model.num_classes
    ]


def read_class_names(file: str | Path) -> list[str]:
    """The names in a file, one a line, in class order.

    Raises:
        InputError: for a file that is missing or not text, an empty line, or a name given twice.
    """
    try:
        names = [line.strip() for line in read_text(file).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"class names {file}: can't be read ({error}); give a text file with one name a line"
        ) from None
    for number, name in enumerate(names, start=1):
        if not name:
            raise InputError(f"class names {file}: line {number} is empty; give one name a line")
        if names.index(name) != number - 1:
            raise InputError(f"class names {file}: {name!r} is there twice; give each class once")
    if not names:
        raise InputError(f"class names {file}: the file is empty; give one name a line")
    return names


def set_class_names(model: DynamicViT, names: Sequence[str]) -> None:
    """Name a model's classes: for pictures, exported files, and whoever loads it.

    Args:
        model: is changed.
        names: one for each class, in class order.

    Raises:
        InputError: if the number of names differs from the model's classes.
    """
    check_class_names(names, model.num_classes)
    model.set_class_names(names)


def check_class_names(names: Sequence[str], num_classes: int) -> None:
    """Check that there is a name for each class.

    Raises:
        InputError: if the numbers differ.
    """
    if len(names) != num_classes:
        raise InputError(
            f"{len(names)} class names, from {names[0]!r} to {names[-1]!r}, and the model has "
            f"{num_classes} classes; give a name for each, in class order"
        )


class Prediction(NamedTuple):
    """A class and its probability in [0, 1]."""

    index: int
    name: str
    probability: float


def top_classes(logits: Tensor, names: Sequence[str], k: int = 5) -> list[Prediction]:
    """The k most probable classes of one image, best first; fewer if there are fewer.

    Args:
        logits: ``(classes,)``; or a map ``(classes, rows, columns)``, of which a class's share of
            the places counts.
        names: of the classes.
        k: how many.

    Raises:
        InputError: if the number of names differs.
    """
    if logits.ndim not in (1, 3) or len(logits) != len(names):
        raise InputError(f"{len(names)} class names, but logits of shape {tuple(logits.shape)}")
    shares = logits.float().softmax(dim=0)
    if logits.ndim == 3:
        shares = logits.argmax(dim=0).flatten().bincount(minlength=len(names)) / logits[0].numel()
    best = shares.sort(descending=True, stable=True)
    return [
        Prediction(index, names[index], probability)
        for index, probability in zip(
            best.indices[:k].tolist(), best.values[:k].tolist(), strict=True
        )
    ]
