"""Dense networks: by timm's name, from a folder of transformers, with a file of weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import timm
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from timm.models import get_pretrained_cfg, is_model
from torch import nn

from dynamicvit.checkpoints.released import (
    RELEASES,
    is_release,
    is_released,
    known_network,
    under_our_names,
)
from dynamicvit.checkpoints.released.spatial import spatial_layout
from dynamicvit.checkpoints.runs import DENSE_FOLDER
from dynamicvit.checkpoints.timm_names import PREFIX
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork, core_of
from dynamicvit.costs import DENSE
from dynamicvit.errors import InputError
from dynamicvit.utils.connection import hub_if_reachable
from dynamicvit.utils.inputs import read_text
from dynamicvit.utils.optional import need
from dynamicvit.utils.weights import Weights, load_exactly, open_weights
from dynamicvit.utils.words import first_line

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Endings of files of weights."""

#: Layers with one output per class; distilled DeiT has a second, ConvNeXt and Swin the third.
_CLASSIFIERS = ("head", "head_dist", "head.fc")
#: Before the names of the dense network in ours, and in many a module that was trained.
_BACKBONE = "backbone."


def load_dense(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    num_classes: int | None = None,
    pretrained: bool = True,
) -> nn.Module:
    """A dense classifier of any family: a baseline, or a teacher.

    Args:
        name: timm's; or a folder of a classifier that transformers saved.
        checkpoint: a file of weights for a timm name, instead of timm's pretrained ones; or the
            folder of a dense model, or of a run that fitted one first.
        num_classes: if a timm name's weights have another number, the classifier is fresh.
        pretrained: whether a timm name without a checkpoint gets timm's pretrained weights,
            downloaded if need be; otherwise they are random.

    Returns:
        The network in ``eval()``, which gives logits ``(B, classes)``.

    Raises:
        InputError: for the name of a model that drops tokens, and as :func:`load` does.
    """
    path = Path(name)
    if is_release(name) or name.startswith(PREFIX):
        dense = RELEASES[name].architecture.model if is_release(name) else name.removeprefix(PREFIX)
        raise InputError(f"{name} drops tokens; give a dense network, {dense}")
    if is_transformers(path):
        if checkpoint is not None:
            raise InputError(f"{name} has its own weights: leave {checkpoint} out")
        network = saved_classifier(path)
        if isinstance(network, DynamicViT):
            raise InputError(f"{name} drops tokens; give the folder of a dense network")
        return DenseNetwork(DynamicViT(network, DENSE, [])).eval()
    if path.exists() and not is_model(name):
        raise InputError(
            f"{name} is not a folder of a transformers model; give timm's name of the network, and "
            f"a file of its weights as its checkpoint"
        )
    weights = None if checkpoint is None else open_weights(_dense_file(Path(checkpoint)))
    return timm_network(timm_name(name), weights, num_classes, pretrained).eval()


def _dense_file(path: Path) -> Path:
    """A file, or of a folder the weights in it: of a run, those of the dense model fitted first."""
    files = (path / DENSE_FOLDER / SAFETENSORS_SINGLE_FILE, path / SAFETENSORS_SINGLE_FILE)
    return next((file for file in files if file.is_file()), path)


# ---------------------------------------------------------------- names


def is_transformers(path: Path) -> bool:
    """Whether this is a folder that transformers' ``save_pretrained`` wrote."""
    config = path / CONFIG_NAME
    try:
        return config.is_file() and "model_type" in json.loads(read_text(config))
    except (
        OSError,
        ValueError,
        TypeError,
        RecursionError,
    ):  # the error comes from the code that loads it
        return False


def saved_classifier(folder: Path) -> nn.Module:
    """The model in a folder of transformers: a dense classifier, or the DynamicViT inside ours."""
    return core_of(need("dynamicvit.transformers.folder", "transformers").load_classifier(folder))


def timm_name(name: str) -> str:
    """timm's name of the dense network.

    Raises:
        InputError: if timm does not know it.
    """
    if "/" in name or "\\" in name or name.endswith(FILE_SUFFIXES):
        raise InputError(f"{name}: no such file or folder")
    dense = name.removeprefix(PREFIX)
    architecture, _, tag = dense.partition(".")
    if not is_model(architecture):
        near = get_close_matches(architecture, [*timm.list_models(), *RELEASES], n=1)
        raise InputError(
            f"no model {name!r}: "
            + (f"did you mean {near[0]}? " if near else "")
            + "timm.list_models() has timm's names; the authors' checkpoints are "
            + ", ".join(RELEASES)
        )
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and dense not in tagged:
        known = ", ".join(tagged) or "none"
        raise InputError(f"timm has no weights {tag!r} of {architecture}; it has {known}")
    return dense


# ---------------------------------------------------------------- networks and weights


def is_sparse(weights: Weights) -> bool:
    """Whether a file holds prediction modules, under the released names or this library's."""
    ours = any(name.startswith("predictors.") for name in weights.tensors)
    return ours or is_released(weights.tensors)


def classes_of(weights: Weights, classifiers: Sequence[str] = _CLASSIFIERS) -> int | None:
    """Number of classes of a file; ``None`` without a plain classifier.

    Raises:
        InputError: if it is 0.
    """
    for classifier in classifiers:
        for name in (f"{classifier}.weight", f"backbone.{classifier}.weight"):
            shape = tuple(weights.tensors[name].shape) if name in weights.tensors else ()
            if shape and not shape[0]:
                raise InputError(f"{weights.source}: {name} has shape {shape}: 0 classes")
            if shape:
                return shape[0]
    return None


def timm_network(
    name: str, weights: Weights | None, num_classes: int | None, pretrained: bool, hint: str = ""
) -> nn.Module:
    """The dense network with the file's tensors, timm's weights, or random ones."""
    if weights is None and not pretrained:
        return timm.create_model(name, num_classes=num_classes)
    if weights is None:
        with hub_if_reachable() as problem:
            try:
                return timm.create_model(name, pretrained=True, num_classes=num_classes)
            except Exception as error:
                raise InputError(
                    f"no pretrained weights of {name} ({problem or first_line(error)}); give a "
                    f"file of them as its checkpoint (--checkpoint FILE){hint}"
                ) from error
    if is_sparse(weights):
        raise InputError(f"{weights.source}: holds prediction modules; give dense weights")
    classifiers = getattr(get_pretrained_cfg(name), "classifier", None) or _CLASSIFIERS
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    network = timm.create_model(name, num_classes=classes_of(weights, classifiers))
    fill(network, weights, name)
    if num_classes not in (None, network.num_classes):
        network.reset_classifier(num_classes)
    return network


def fill(module: nn.Module, weights: Weights, name: str) -> None:
    """Load a file if all of it fits.

    Raises:
        InputError: with what does not fit, and the network of the paper that does.
    """
    tensors, spoken = weights.tensors, str
    if not isinstance(module, DynamicViT) and all(name.startswith(_BACKBONE) for name in tensors):
        tensors = {name.removeprefix(_BACKBONE): value for name, value in tensors.items()}
    ours = any(name.startswith(("backbone.", "predictors.")) for name in tensors)
    if not ours and (isinstance(module, DynamicViT) or spatial_layout(tensors) is not None):
        tensors, spoken = under_our_names(tensors, module)
    try:
        load_exactly(module, tensors, f"{weights.source}: does not fit {name}", spoken)
    except InputError as error:
        known = known_network(weights.tensors)
        if known is None or known == known_network(module.state_dict()):
            raise
        raise InputError(f"{error}; its shapes are those of {known}") from None
