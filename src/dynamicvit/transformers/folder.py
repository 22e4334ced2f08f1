"""Load a folder that transformers' ``save_pretrained`` wrote: model and image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from PIL.Image import Resampling
from safetensors import SafetensorError
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import IMAGE_PROCESSOR_NAME

import dynamicvit.transformers  # noqa: F401 (transformers finds our models from here on)
from dynamicvit.core.networks import backbone_of
from dynamicvit.errors import InputError
from dynamicvit.utils.weights import first_few, first_line


def load_classifier(folder: Path) -> nn.Module:
    """The image classifier, with all its weights.

    Args:
        folder: of a dense model or of ours, with or without the image processor's config.

    Returns:
        The transformers model in ``eval()``.

    Raises:
        InputError: if it can't be read, or if weights are missing, unexpected or of another shape,
            where transformers would only warn and use random ones.
    """
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            folder, output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise InputError(f"{folder}: transformers can't load it ({reason})") from error
    for problem in ("missing", "unexpected", "mismatched"):
        if keys := first_few(problem, sorted(map(str, report[f"{problem}_keys"]))):
            raise InputError(f"{folder}: the weights don't fit the config; {keys}")
    backbone: Any = backbone_of(model)
    if (folder / IMAGE_PROCESSOR_NAME).is_file():
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        backbone.image_processing = image_processing(processor)
    return cast(nn.Module, model)


def image_processing(processor: Any) -> dict[str, Any]:
    """The steps of a transformers image processor, as keys of timm's ``pretrained_cfg``."""
    described: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if processor.do_normalize:
        described = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    size, crop = processor.size, processor.crop_size
    side = size.height or size.shortest_edge
    if processor.do_resize and side:
        described["interpolation"] = Resampling(int(processor.resample)).name.lower()
        described["crop_mode"] = "squash" if size.height else "center"
        described["crop_pct"] = crop.height / side if processor.do_center_crop else 1.0
    return described
