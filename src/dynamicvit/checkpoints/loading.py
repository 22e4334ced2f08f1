"""One way for every command to get a model from what the user names."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.constants import CONFIG_NAME
from timm.models import get_pretrained_cfg, is_model
from torch import Tensor, nn

from dynamicvit.backbones import backbone_for
from dynamicvit.checkpoints.released import (
    CROP_PCT,
    Metadata,
    find_keep_ratio,
    is_release,
    is_released,
    known_network,
    likeness,
    load_released,
    near_releases,
    release_of,
    released_name,
    rename_released,
)
from dynamicvit.checkpoints.timm_names import PREFIX
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import DenseNetwork, backbone_of, core_of
from dynamicvit.costs import resolve_image_size
from dynamicvit.errors import InputError
from dynamicvit.sparsification import sparsify
from dynamicvit.utils.weights import first_line, load_exactly, read_weights

_HUB_PREFIX = "hf-hub:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_EXPORTED_SUFFIXES = (".onnx", ".xml", ".pt2")
#: Weights whose first dimension is the number of classes; the second is DeiT distilled's.
_CLASSIFIERS = ("head", "head_dist")
#: What may be given where timm's pretrained weights can't be had.
_OTHERWISE = "--checkpoint FILE, or --no-pretrained for random weights"


def load_model(
    name_or_path: str | Path,
    *,
    checkpoint: str | Path | None = None,
    keep_ratio: float | Sequence[float] | None = None,
    stages: Sequence[int] | None = None,
    num_classes: int | None = None,
    pretrained: bool = True,
) -> DynamicViT:
    """The DynamicViT that a user names.

    Args:
        name_or_path: one of

            - a folder that ``save_pretrained`` wrote, ours or that of a classifier of transformers
              (a dense one is sparsified, with fresh prediction modules);
            - a checkpoint file of the released implementation, or the name of one that its
              authors released, such as ``deit-s-0.7``: it is downloaded once;
            - ``user/name`` or ``hf-hub:user/name`` on the Hugging Face Hub;
            - timm's name of a vision transformer, with or without ``dynamicvit_`` in front: the
              dense network is built and sparsified, with fresh prediction modules.
        checkpoint: a file of weights for a timm name, dense or with prediction modules, in place
            of timm's pretrained ones; for the others, weights that replace their own.
        keep_ratio: ρ, or one ratio for each stage; by default what the model was saved with, or
            :func:`~dynamicvit.sparsify`'s default. A checkpoint of the released implementation
            must tell its own: by this, its metadata, or its name (``dynamic-vit_384_r0.7.pth``).
        stages: blocks before which tokens are dropped; can't move those of a saved model.
        num_classes: with another number than the weights have, the classifier is a fresh one.
        pretrained: whether a timm name without a checkpoint gets timm's pretrained weights,
            downloaded if need be; otherwise they are random.

    Returns:
        The model in ``eval()``.

    Raises:
        InputError: for an unknown name (with near matches), weights of another architecture, a
            broken file, or a failed download.
    """
    name = str(name_or_path)
    path = Path(name)
    if path.suffix.lower() in _EXPORTED_SUFFIXES:
        raise InputError(
            f"{name} is an exported file, for eval, bench, visualize and stream; give its model"
        )
    weights = None if checkpoint is None else _Checkpoint.read(checkpoint)
    if weights is not None and is_released(weights.tensors):
        keep_ratio, _ = find_keep_ratio(keep_ratio, weights.metadata, Path(weights.source).name)
        stages = weights.metadata.stages() if stages is None else stages
    if path.is_file() or is_release(name):
        model = load_released(name, keep_ratio, stages=stages)
    elif _is_transformers(path):
        model = _from_transformers(path, keep_ratio, stages)
    elif _is_saved(path) or _on_hub(name):
        model = DynamicViT.from_pretrained(name.removeprefix(_HUB_PREFIX))
        _check_stages(model, stages, name)
    else:
        backbone_name = _backbone_name(name)
        if weights is None or not weights.sparse:
            backbone = _backbone(backbone_name, weights, num_classes, pretrained)
            return _sparsify(backbone, keep_ratio, stages).eval()
        # As the released implementation evaluates; there is no other word on it in its files.
        crop = {"crop_pct": CROP_PCT} if is_released(weights.tensors) else {}
        backbone = _build(backbone_name, weights.classes(), pretrained_cfg_overlay=crop)
        model = _sparsify(backbone, keep_ratio, stages)
    if weights is not None:
        _fill(model, weights, name)
    if keep_ratio is not None:
        model.keep_ratio = keep_ratio
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    return model.eval()


def load_backbone(
    name: str,
    checkpoint: str | Path | None = None,
    *,
    num_classes: int | None = None,
    pretrained: bool = True,
) -> nn.Module:
    """A dense vision transformer by timm's name.

    Args:
        name: timm's, such as ``deit_tiny_patch16_224``; ``dynamicvit_`` in front is left out.
        checkpoint: a file of its weights, in place of timm's pretrained ones.
        num_classes: with another number than the weights have, the classifier is a fresh one.
        pretrained: whether to take timm's pretrained weights where no checkpoint is given.

    Returns:
        The network in ``eval()``.

    Raises:
        InputError: for an unknown name (with near matches), weights of another architecture, a
            broken file, or a failed download.
    """
    weights = None if checkpoint is None else _Checkpoint.read(checkpoint)
    return _backbone(_backbone_name(name), weights, num_classes, pretrained).eval()


def load_teacher(
    name: str, checkpoint: str | Path | None = None, *, pretrained: bool = True
) -> nn.Module:
    """A dense network of any family to learn from.

    Args:
        name: timm's, of any classifier; or a folder of one that transformers saved.
        checkpoint: a file of weights for a timm name, in place of timm's pretrained ones.
        pretrained: whether to take timm's pretrained weights where no checkpoint is given.

    Returns:
        The network in ``eval()``, which gives logits ``(B, classes)``.

    Raises:
        InputError: as :func:`load_backbone`, and for a model that drops tokens.
    """
    path = Path(name)
    if is_release(name):
        raise InputError(_drops_tokens(name, release_of(name).architecture.model))
    if name.startswith(PREFIX):
        raise InputError(_drops_tokens(name, name.removeprefix(PREFIX)))
    if _is_transformers(path):
        if checkpoint is not None:
            raise InputError(f"teacher {name} has its weights: leave {checkpoint} out")
        return _dense_classifier(path)
    if path.exists() and not is_model(name):
        raise InputError(
            f"teacher {name}: give timm's name of the network, with its weights as "
            "--teacher-checkpoint FILE, or a folder of transformers"
        )
    weights = None if checkpoint is None else _Checkpoint.read(checkpoint)
    asked = "--teacher-checkpoint FILE"
    return _backbone(_backbone_name(name), weights, None, pretrained, otherwise=asked).eval()


def set_image_size(model: nn.Module, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Let a backbone take images of another size, by its own library's means.

    Args:
        model: a DynamicViT or a dense backbone; changed in place.
        size: side of a square image, or height and width; ``None`` changes nothing.

    Returns:
        Height and width of the images that it takes now.

    Raises:
        InputError: for a size that it can't take.
    """
    if size is None:
        return resolve_image_size(model)
    height, width = (size, size) if isinstance(size, int) else size
    backbone = backbone_of(model)
    backbone_for(backbone).set_image_size(height, width)
    return resolve_image_size(model, (height, width))


def set_drop_path(model: DynamicViT, rate: float) -> None:
    """Drop residual branches at random in training, as timm's ``drop_path_rate`` does.

    Here for models that come with their own arguments: a saved folder, a checkpoint.

    Args:
        model: changed in place.
        rate: of the last block; it grows from 0 at the first.

    Raises:
        InputError: if the backbone can't drop branches.
    """
    rates = torch.linspace(0, rate, model.depth).tolist()
    model.bound.set_drop_path(rates)


# ---------------------------------------------------------------- names


def _is_saved(path: Path) -> bool:
    """Whether this is a folder of a model; a folder that only shares a model's name is not."""
    return path.is_dir() and ((path / CONFIG_NAME).exists() or not is_model(str(path)))


def _is_transformers(path: Path) -> bool:
    """Whether this is a folder that transformers' ``save_pretrained`` wrote."""
    config = path / CONFIG_NAME
    try:
        return config.is_file() and "model_type" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # whoever reads it next says what is wrong with it
        return False


def _on_hub(name: str) -> bool:
    """Whether this names a repository on the Hub rather than a path or a model of timm's."""
    if name.startswith(_HUB_PREFIX):
        return True
    looks_like_file = name.endswith(_FILE_SUFFIXES) or name.startswith(".")
    return _HUB_ID.fullmatch(name) is not None and not looks_like_file


def _backbone_name(name: str) -> str:
    """timm's name of the dense network.

    Raises:
        InputError: if timm does not know it.
    """
    if "/" in name or "\\" in name or name.endswith(_FILE_SUFFIXES):
        raise InputError(f"{name}: no such file or folder")
    dense = name.removeprefix(PREFIX)
    architecture, _, tag = dense.partition(".")
    if not is_model(architecture):
        near = near_releases(dense) or _near(architecture, timm.list_models())
        raise InputError(f"timm knows no model {name!r}{_or(near)}")
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and dense not in tagged:
        near = _or(_near(dense, tagged))
        raise InputError(f"timm knows no weights {tag!r} of {architecture}{near}")
    return dense


def _near(name: str, known: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=3, cutoff=0.5)


def _or(near: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _check_stages(model: DynamicViT, stages: Sequence[int] | None, name: str) -> None:
    if stages is not None and tuple(stages) != model.schedule.stages:
        raise InputError(
            f"{name} drops tokens before blocks {model.schedule.stages}, where its prediction "
            f"modules were trained; stages can't be moved to {tuple(stages)}"
        )


def _drops_tokens(name: str, dense: str) -> str:
    return f"teacher {name} drops tokens, and a teacher is dense; did you mean {dense}?"


# ---------------------------------------------------------------- networks and weights


@dataclass(frozen=True)
class _Checkpoint:
    """A file of weights.

    Attributes:
        source: the file.
        tensors: under its own names.
        metadata: what a safetensors file says about itself.
    """

    source: str
    tensors: dict[str, Tensor]
    metadata: Metadata

    @classmethod
    def read(cls, path: str | Path) -> _Checkpoint:
        """Read the file."""
        tensors, entries = read_weights(path)
        return cls(str(path), tensors, Metadata(entries, str(path)))

    @property
    def ours(self) -> bool:
        """Whether its names are those of a :class:`DynamicViT`."""
        return any(name.startswith(("backbone.", "predictors.")) for name in self.tensors)

    @property
    def sparse(self) -> bool:
        """Whether it holds prediction modules."""
        ours = any(name.startswith("predictors.") for name in self.tensors)
        return ours or is_released(self.tensors)

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


def _classifiers(name: str) -> Sequence[str]:
    """What a network of timm's calls its classifier."""
    config = get_pretrained_cfg(name)
    named = getattr(config, "classifier", None)
    return _CLASSIFIERS if not named else (named,) if isinstance(named, str) else named


def _build(
    name: str,
    num_classes: int | None,
    pretrained: bool = False,
    otherwise: str = _OTHERWISE,
    **timm_args: Any,
) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **timm_args)
    except Exception as error:
        if not pretrained:
            raise
        raise InputError(
            f"no pretrained weights of {name} ({first_line(error)}); give their file with "
            f"{otherwise}"
        ) from error


def _backbone(
    name: str,
    weights: _Checkpoint | None,
    num_classes: int | None,
    pretrained: bool,
    otherwise: str = _OTHERWISE,
) -> nn.Module:
    """The dense network with the checkpoint's tensors, timm's weights, or random ones."""
    if weights is None:
        return _build(name, num_classes, pretrained, otherwise)
    if weights.sparse:
        raise InputError(
            f"{weights.source}: holds prediction modules, where dense weights are needed"
        )
    backbone = _build(name, weights.classes(_classifiers(name)))
    _fill(backbone, weights, name)
    if num_classes is not None and num_classes != backbone.num_classes:
        backbone.reset_classifier(num_classes)
    return backbone


def _classifier_in(folder: Path) -> nn.Module:
    """The classifier that transformers saved."""
    try:
        from dynamicvit.transformers.folder import load_classifier
    except ImportError as error:
        raise InputError(
            f"{folder}: is a model of transformers, which can't be used here ({error}); "
            f"pip install 'dynamicvit[transformers]'"
        ) from error
    return load_classifier(folder)


def _dense_classifier(folder: Path) -> nn.Module:
    """The same as a network that gives logits."""
    network = core_of(_classifier_in(folder))
    if isinstance(network, DynamicViT):
        raise InputError(f"teacher {folder} drops tokens, and a teacher is dense")
    return DenseNetwork(_sparsify(network, None, None)).eval()


def _from_transformers(
    folder: Path, keep_ratio: float | Sequence[float] | None, stages: Sequence[int] | None
) -> DynamicViT:
    """The DynamicViT in a model that transformers saved, or one made of a dense model."""
    network = core_of(_classifier_in(folder))
    if isinstance(network, DynamicViT):
        _check_stages(network, stages, str(folder))
        return network
    return _sparsify(network, keep_ratio, stages)


def _sparsify(
    backbone: nn.Module,
    keep_ratio: float | Sequence[float] | None,
    stages: Sequence[int] | None,
) -> DynamicViT:
    args: dict[str, Any] = {} if keep_ratio is None else {"keep_ratio": keep_ratio}
    model = core_of(sparsify(backbone, stages=stages, **args))
    assert isinstance(model, DynamicViT)
    return model


def _fill(module: nn.Module, weights: _Checkpoint, name: str) -> None:
    """Load the checkpoint, all of it, or say what it fits better."""
    tensors, spoken = weights.tensors, str
    if isinstance(module, DynamicViT) and not weights.ours:
        tensors, spoken = rename_released(tensors), released_name
    source = f"{weights.source}: does not fit {name}"
    try:
        load_exactly(module, tensors, source, spoken)
    except InputError as error:
        raise InputError(_misfit(weights, module, source, error)) from None


def _misfit(weights: _Checkpoint, module: nn.Module, source: str, error: InputError) -> str:
    """The error, or a better one where the checkpoint is nearer to another network."""
    tensors, expected = _under_released_names(weights.tensors), module.state_dict()
    theirs, wanted = known_network(tensors), known_network(expected)
    if theirs is not None:
        if theirs == wanted:
            return str(error)
        same = wanted is not None and theirs.architecture == wanted.architecture
        return f"{error if same else source}; its shapes are those of {theirs}"
    like = likeness(tensors)
    if like.nearest and like.nearest != likeness(_under_released_names(expected)).nearest:
        return f"{source}; {like}"
    return f"{error}; {like.nearest}" if like.nearest and wanted is not None else str(error)


def _under_released_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {released_name(name): tensor for name, tensor in tensors.items()}
