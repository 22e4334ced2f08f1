"""Save a model as the kind of folder that its backbone's library reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dynamicvit.core.model import DynamicViT
from dynamicvit.utils.optional import need

_CARD_OF_A_RUN = {"images": "those held out of training"}


def save_as_it_came(model: DynamicViT, folder: Path, result: Any = None) -> None:
    """Write a model: a folder of transformers if its backbone is theirs, else this library's.

    :func:`~dynamicvit.load` reads both. transformers' ``AutoModelForImageClassification`` and
    ``pipeline`` read theirs, a sparse one after ``import dynamicvit.transformers``.

    Args:
        model: with or without stages.
        folder: made if it is not there.
        result: how right it is on held-out images, for the model card.

    Raises:
        InputError: if the model can't be described, or the folder can't be written.
    """
    if model.bound.source == "transformers" and model.task == "classification":
        need("dynamicvit.transformers.folder", "transformers").save_classifier(model, folder)
    else:
        model.save_pretrained(folder, model_card_kwargs=_CARD_OF_A_RUN | {"result": result})
