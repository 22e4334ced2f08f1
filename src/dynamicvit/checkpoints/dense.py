"""Dense networks by timm's name or from a folder of transformers, and files of their weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.constants import CONFIG_NAME
from timm.models import get_pretrained_cfg, is_model
from torch import Tensor, nn

from dynamicvit.checkpoints.released import (
    RELEASES,
    is_release,
    is_released,
    known_network,
    release_of,
    released_name,
    rename_released,
)
from dynamicvit.checkpoints.timm_names import PREFIX
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork, core_of
from dynamicvit.errors import InputError
from dynamicvit.sparsification import sparsify
from dynamicvit.utils.optional import need
from dynamicvit.utils.weights import first_line, load_exactly, read_weights

FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""Endings of files of weights."""

#: Weights whose first dimension is the number of classes; the second is DeiT distilled's.
_CLASSIFIERS = ("head", "head_dist")


def load_dense(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    num_classes: int | None = None,
    pretrained: bool = True,
) -> nn.Module:
    """A dense classifier of any family: a network to compare with, or to learn from.

    Args:
        name: timm's; or a folder of a classifier that transformers saved.
        checkpoint: a file of weights for a timm name, in place of timm's pretrained ones.
        num_classes: with another number than a timm name's weights have, the classifier is a fresh
            one.
        pretrained: whether a timm name without a checkpoint gets timm's pretrained weights,
            downloaded if need be; otherwise they are random.

    Returns:
        The network in ``eval()``, which gives logits ``(B, classes)``.

    Raises:
        InputError: for the name of a model that drops tokens, and as :func:`load` does.
    """
    path = Path(name)
    if is_release(name) or name.startswith(PREFIX):
        known = release_of(name).architecture.model if is_release(name) else ""
        raise InputError(
            f"{name} drops tokens; give a dense network, {known or name.removeprefix(PREFIX)}"
        )
    if is_transformers(path):
        if checkpoint is not None:
            raise InputError(f"{name} has its weights: leave {checkpoint} out")
        network = saved_classifier(path)
        if isinstance(network, DynamicViT):
            raise InputError(f"{name} drops tokens; give the folder of a dense network")
        return DenseNetwork(core_of(sparsify(network))).eval()
    if path.exists() and not is_model(name):
        raise InputError(
            f"{name} is no folder of a model of transformers; give timm's name of the network, and "
            f"a file of its weights as its checkpoint"
        )
    weights = None if checkpoint is None else Checkpoint.read(checkpoint)
    return timm_network(timm_name(name), weights, num_classes, pretrained).eval()


# ---------------------------------------------------------------- names


def is_transformers(path: Path) -> bool:
    """Whether this is a folder that transformers' ``save_pretrained`` wrote."""
    config = path / CONFIG_NAME
    try:
        return config.is_file() and "model_type" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # whoever reads it next says what is wrong with it
        return False


def saved_classifier(folder: Path) -> nn.Module:
    """What transformers saved in a folder: a dense classifier, or the DynamicViT inside ours."""
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
        raise InputError(
            f"no model {name!r}: neither timm (timm.list_models()) nor the authors have one of "
            f"this name; the authors' are {', '.join(RELEASES)}"
        )
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and dense not in tagged:
        raise InputError(f"timm has no weights {tag!r} of {architecture}; {_or_none(tagged)}")
    return dense


def _or_none(names: Sequence[str]) -> str:
    return f"there are {', '.join(names)}" if names else "there are none"


# ---------------------------------------------------------------- networks and weights


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights: where it is, its tensors by name, and what it says about itself."""

    source: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: str | Path) -> Checkpoint:
        """Read a file."""
        return cls(str(path), *read_weights(path))

    @property
    def released(self) -> bool:
        """Whether it holds prediction modules under the released implementation's names."""
        return is_released(self.tensors)

    @property
    def sparse(self) -> bool:
        """Whether it holds prediction modules."""
        return self.released or any(name.startswith("predictors.") for name in self.tensors)

    def classes(self, classifiers: Sequence[str] = _CLASSIFIERS) -> int | None:
        """How many classes the weights have; ``None`` if they have no plain classifier."""
        for classifier in classifiers:
            for name in (f"{classifier}.weight", f"backbone.{classifier}.weight"):
                shape = tuple(self.tensors[name].shape) if name in self.tensors else ()
                if shape and not shape[0]:
                    raise InputError(f"{self.source}: {name} has shape {shape}: 0 classes")
                if shape:
                    return shape[0]
        return None


def timm_network(
    name: str, weights: Checkpoint | None, num_classes: int | None, pretrained: bool, hint: str = ""
) -> nn.Module:
    """The dense network with the checkpoint's tensors, timm's weights, or random ones."""
    if weights is None:
        try:
            return build(name, num_classes, pretrained)
        except Exception as error:
            if not pretrained:
                raise
            raise InputError(
                f"no pretrained weights of {name} ({first_line(error)}); give a file of them as "
                f"its checkpoint (--checkpoint FILE){hint}"
            ) from error
    if weights.sparse:
        raise InputError(
            f"{weights.source}: holds prediction modules, where dense weights are needed"
        )
    classifiers = getattr(get_pretrained_cfg(name), "classifier", None) or _CLASSIFIERS
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    backbone = build(name, weights.classes(classifiers))
    fill(backbone, weights, name)
    if num_classes is not None and num_classes != backbone.num_classes:
        backbone.reset_classifier(num_classes)
    return backbone


def build(name: str, num_classes: int | None, pretrained: bool = False, **more: Any) -> nn.Module:
    """What timm builds; ``num_classes`` is of the name's own weights if it is ``None``."""
    return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **more)


def fill(module: nn.Module, weights: Checkpoint, name: str) -> None:
    """Load the checkpoint, all of it, or say which network of the paper it fits."""
    tensors, spoken = weights.tensors, str
    ours = any(name.startswith(("backbone.", "predictors.")) for name in tensors)
    if isinstance(module, DynamicViT) and not ours:
        tensors, spoken = rename_released(tensors), released_name
    try:
        load_exactly(module, tensors, f"{weights.source}: does not fit {name}", spoken)
    except InputError as error:
        known = known_network(weights.tensors)
        if known is None or known == known_network(module.state_dict()):
            raise
        raise InputError(f"{error}; its shapes are those of {known}") from None
