"""What a run does by its task: its images, classes, augmentation, and what is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamicvit.core.model import DynamicViT
from dynamicvit.data import ImageData, Loader, has_clips, has_masks, taken_by
from dynamicvit.errors import InputError
from dynamicvit.sparsification import DEFAULT_METHOD
from dynamicvit.training.budgets import Budgets
from dynamicvit.training.classes import Classes, classes_for, sources_of
from dynamicvit.training.held_out import HeldOut
from dynamicvit.training.recipe import Recipe
from dynamicvit.training.recipes import load_recipe


class Task(ABC):
    """All that :class:`~dynamicvit.training.run.Training` asks of one.

    Args:
        dense: whether the run fits the dense model alone.
    """

    def __init__(self, dense: bool = False) -> None:
        self.dense = dense

    @abstractmethod
    def sources(
        self, root: str | Path, recipe: Recipe, unlabeled: Sequence[str | Path], strict: bool
    ) -> list[Any]:
        """The training images, with labels if they have any, and more without.

        Raises:
            InputError: for images that can't be had, or are for another task.
        """

    def taken_by(self, model: DynamicViT, images: Any, recipe: Recipe) -> Any:
        """The images as the model takes them.

        Raises:
            InputError: for clips and a model of images, or the reverse.
        """
        del model, recipe
        return images

    @abstractmethod
    def classes(
        self,
        images: Any,
        model: DynamicViT,
        recipe: Recipe,
        class_map: str | None,
        num_classes: int | None,
        class_names: str | Path | None,
    ) -> Classes:
        """The classes of a run, as :func:`~dynamicvit.training.classes.classes_for`."""

    def give(
        self, classes: Classes, model: DynamicViT, recipe: Recipe
    ) -> tuple[DynamicViT, tuple[str, ...]]:
        """The model with these classes, and the names of what is fresh in it."""
        del recipe
        return model, classes.give_to(model)

    @abstractmethod
    def labeled(self, images: Any, classes: Classes) -> Any:
        """The images labeled by the model's classes, or without labels where none is read."""

    @abstractmethod
    def for_training(self, images: Any, model: DynamicViT, recipe: Recipe) -> Any:
        """The images under the recipe's augmentation."""

    @abstractmethod
    def held_out(self, images: Any, model: DynamicViT, recipe: Recipe, workers: int) -> HeldOut:
        """The images to evaluate on."""


class Classification(Task):
    """One class an image."""

    def sources(
        self, root: str | Path, recipe: Recipe, unlabeled: Sequence[str | Path], strict: bool
    ) -> list[ImageData]:
        """As :func:`~dynamicvit.training.classes.sources_of`."""
        if has_masks(root):
            raise InputError(f"{root} has a mask for each image: take recipe segmentation")
        return sources_of(root, recipe, unlabeled, strict)

    def taken_by(self, model: DynamicViT, images: ImageData, recipe: Recipe) -> ImageData:
        """Clips of as many frames as the model's."""
        return taken_by(model, images, recipe.video.stride)

    def classes(self, images: Any, model: DynamicViT, recipe: Recipe, *given: Any) -> Classes:
        """As :func:`~dynamicvit.training.classes.classes_for`."""
        if model.task != "classification":
            raise InputError(f"the model is for {model.task}: take recipe {model.task}")
        # A dense model is fitted by labels.
        losses = recipe.losses.model_copy(update={"classification": 1.0})
        recipe = recipe.model_copy(update={"losses": losses}) if self.dense else recipe
        return classes_for(images, model, recipe, *given)

    def labeled(self, images: ImageData, classes: Classes) -> ImageData:
        """By the class map."""
        known = classes.class_map
        return images.without_labels() if known is None else images.with_class_map(known.index)

    def for_training(self, images: ImageData, model: DynamicViT, recipe: Recipe) -> ImageData:
        """Under timm's augmentation."""
        return images.for_training(model, **recipe.augment.transform_arguments())

    def held_out(
        self, images: ImageData, model: DynamicViT, recipe: Recipe, workers: int
    ) -> HeldOut:
        """In batches, whose top-1 counts."""
        del recipe
        prepared = images.for_evaluation(model)
        batches = Loader(prepared, images.usual_batch, num_workers=workers)
        return HeldOut(batches, num_images=len(images))


def task_of(recipe: Recipe, dense: bool = False) -> Task:
    """The task that a recipe is for; ``dense`` as for :class:`Task`."""
    if recipe.task == "segmentation":
        from dynamicvit.training.segmentation import Segmentation

        return Segmentation(dense)
    return Classification(dense)


def default_recipe(
    data: str | Path | None, overrides: Sequence[str] = (), frames: int | None = None
) -> str:
    """The recipe of a run that names none, by its images; :func:`serves_any_budget` may change it.

    Args:
        data: the images, if there are any.
        overrides: of the recipe's values.
        frames: of the clips that an image network is inflated for.
    """
    if data is not None and has_masks(data):
        return "segmentation"
    if load_recipe("small_data", overrides).freeze_backbone:
        return "frozen"
    clips = frames is not None or (data is not None and has_clips(data))
    return "video_small_data" if clips else "small_data"


def serves_any_budget(model: DynamicViT, overrides: Sequence[str]) -> bool:
    """Whether ``any_budget`` trains a model where no recipe is named, and not ``small_data``.

    It does if the model merges by look-ahead, unless its own budget is outside of the recipe's.
    """
    if model.method.name != DEFAULT_METHOD or not model.schedule.stages:
        return False
    budgets = load_recipe("any_budget", overrides).budgets
    if budgets is None or any(each.startswith("budgets=") for each in overrides):
        return True
    try:
        Budgets(model, *budgets)
    except InputError:
        return False
    return True
