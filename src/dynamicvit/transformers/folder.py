"""Folders of transformers' ``save_pretrained``: model and image processor, read and written."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any, cast

from huggingface_hub.constants import CONFIG_NAME
from PIL.Image import Resampling
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    CLIPImageProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES
from transformers.utils import IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import backbone_of
from dynamicvit.errors import InputError
from dynamicvit.transformers import model_class_for
from dynamicvit.utils.fields import RESAMPLING, check_fields, read_json
from dynamicvit.utils.files import atomic_folder
from dynamicvit.utils.memory import room_for
from dynamicvit.utils.outputs import WRITER
from dynamicvit.utils.weights import check_tensors, open_weights
from dynamicvit.utils.words import first_few, first_line


def load_classifier(folder: Path) -> nn.Module:
    """The classifier of images or clips, with all its weights.

    Args:
        folder: of a dense model or of ours, with or without the image processor's config.

    Returns:
        The transformers model in ``eval()``.

    Raises:
        InputError: if it can't be read, or if weights are missing, unexpected or of another shape,
            where transformers would only warn and use random ones.
    """
    _check_config(folder / CONFIG_NAME)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    try:
        with room_for(files), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            model, report = _kind_of(folder / CONFIG_NAME).from_pretrained(
                folder, output_loading_info=True, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # of a config or weights of any kind
        for file in files:
            open_weights(file)  # says what is wrong with it, such as code, if that is why
        reason = first_line(error)
        raise InputError(f"{folder}: transformers can't load it ({reason})") from error
    for problem in ("missing", "unexpected", "mismatched"):
        if keys := first_few(problem, sorted(map(str, report[f"{problem}_keys"]))):
            raise InputError(f"{folder}: the weights don't fit the config; {keys}")
    check_tensors(model.state_dict(), str(folder))
    backbone: Any = backbone_of(model)
    for name, processor in (
        (IMAGE_PROCESSOR_NAME, AutoImageProcessor),
        (VIDEO_PROCESSOR_NAME, AutoVideoProcessor),
    ):
        if (folder / name).is_file():
            backbone.image_processing = _processing_of(folder / name, processor)
            break
    return cast(nn.Module, model)


def _kind_of(path: Path) -> Any:
    """transformers' class for what a config's model classifies, images or clips."""
    config: Any = read_json(path)
    kind = config.get("backbone_config", config).get("model_type")
    clips = kind in MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES
    return AutoModelForVideoClassification if clips else AutoModelForImageClassification


def _check_config(path: Path) -> None:
    """Check what the config says, and that it is of a model in plain tensors, and of no code."""
    config = read_json(path)
    for key, instead in (
        ("auto_map", "is of a model with code of its own, which is not run"),
        ("quantization_config", "is of a quantized model; give the one that it was made from"),
    ):
        if isinstance(config, dict) and config.get(key):
            raise InputError(f"{path}: {instead} ({key})")


def _processing_of(path: Path, kind: Any) -> dict[str, Any]:
    """:func:`image_processing` of the processor in a file, checked before and after."""
    read_json(path)
    try:
        processor = kind.from_pretrained(
            path.parent, local_files_only=True, trust_remote_code=False
        )
        described = image_processing(processor)
    except Exception as error:  # of a file of any kind
        reason = first_line(error)
        raise InputError(f"{path}: does not describe a processor ({reason})") from error
    check_fields(described, path)
    return described


def image_processing(processor: Any) -> dict[str, Any]:
    """The steps of a transformers image processor, as keys of timm's ``pretrained_cfg``."""
    mean, std = (0.0,) * 3, (1.0,) * 3
    if processor.do_normalize:
        mean, std = processor.image_mean, processor.image_std
    white = 255 * (processor.rescale_factor if processor.do_rescale else 1)  # which is 1 for timm
    described: dict[str, Any] = {
        "mean": tuple(value / white for value in mean),
        "std": tuple(value / white for value in std),
    }
    size, crop = processor.size, processor.crop_size
    side = size.height or size.shortest_edge
    if processor.do_resize and side:
        described["interpolation"] = RESAMPLING[int(processor.resample)]
        described["crop_mode"] = "squash" if size.height else "center"
        described["crop_pct"] = crop.height / side if processor.do_center_crop else 1.0
    return described


def save_classifier(model: DynamicViT, folder: Path) -> None:
    """Write model and image processor, which transformers' classes and ``pipeline`` read.

    Args:
        model: of a transformers backbone; without stages the dense classifier is written.
        folder: made if it is not there.

    Raises:
        InputError: if the folder can't be written.
    """
    ours = model_class_for(model.bound).around(model) if model.schedule.stages else None
    classifier: Any = ours or model.backbone
    try:
        with atomic_folder(folder, CONFIG_NAME) as draft:
            classifier.save_pretrained(draft)
            image_processor(model).save_pretrained(draft)
            config = json.loads((draft / CONFIG_NAME).read_text(encoding="utf-8"))
            marked = json.dumps({**config, "written_by": WRITER}, indent=2)
            (draft / CONFIG_NAME).write_text(marked + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: can't be written ({error})") from error


def image_processor(model: DynamicViT) -> Any:
    """A transformers image processor that prepares images as :func:`eval_transform` does."""
    config = resolve_model_data_config(model)
    height, width = config["input_size"][1:]
    size: dict[str, int] = {"height": height, "width": width}
    crop: dict[str, Any] = {"do_center_crop": False}
    if config["crop_mode"] != "squash":
        crop = {"do_center_crop": True, "crop_size": size}
        size = {"shortest_edge": math.floor(min(height, width) / config["crop_pct"])}
    return CLIPImageProcessor(
        size=size,
        resample=Resampling[config["interpolation"].upper()],
        image_mean=list(config["mean"]),
        image_std=list(config["std"]),
        do_convert_rgb=model.in_chans == 3,
        **crop,
    )
