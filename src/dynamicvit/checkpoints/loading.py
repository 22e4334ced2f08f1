"""Load a model by timm's name, a folder, a file, a release, or its name on the Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import timm
import torch
from huggingface_hub.constants import CONFIG_NAME
from timm.models import is_model
from torch import nn

from dynamicvit.backbones import backbone_for
from dynamicvit.checkpoints.addon import is_addon, open_addon
from dynamicvit.checkpoints.dense import (
    FILE_SUFFIXES,
    classes_of,
    fill,
    is_sparse,
    is_transformers,
    saved_classifier,
    timm_name,
    timm_network,
)
from dynamicvit.checkpoints.description import Description, described
from dynamicvit.checkpoints.inflation import inflate
from dynamicvit.checkpoints.released import (
    CROP_PCT,
    download,
    find_keep_ratio,
    is_release,
    is_released,
    read_metadata,
    recognize,
)
from dynamicvit.checkpoints.runs import refuse_unfinished
from dynamicvit.checkpoints.timm_names import PREFIX
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import backbone_of, bound_of, core_of
from dynamicvit.core.schedule import Policy
from dynamicvit.core.schedule_file import ScheduleFile, ScheduleSource
from dynamicvit.costs import resolve_image_size
from dynamicvit.errors import InputError
from dynamicvit.sparsification import DEFAULT_KEEP_RATIO, sparsify
from dynamicvit.utils.weights import Weights, open_weights

_HUB_PREFIX = "hf-hub:"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_EXPORTED_SUFFIXES = (".onnx", ".xml", ".pt2")


def load(
    name_or_path: str | Path | nn.Module,
    *,
    checkpoint: str | Path | None = None,
    addon: str | Path | None = None,
    keep_ratio: float | Sequence[float] | None = None,
    stages: Sequence[int] | None = None,
    policy: Policy | None = None,
    method: str | None = None,
    default_method: str | None = None,
    num_classes: int | None = None,
    pretrained: bool = True,
    schedule: ScheduleSource | None = None,
    frames: int | None = None,
    tubelet: int | None = None,
) -> DynamicViT:
    """A DynamicViT by any name that the commands take as ``--model``.

    Args:
        name_or_path: one of

            - a folder that ``save_pretrained`` wrote, of this library or of a classifier of
              transformers (a dense one is sparsified);
            - ``user/name`` or ``hf-hub:user/name`` on the Hugging Face Hub, with such a folder of
              this library;
            - a checkpoint that the paper's authors released, such as ``deit-s-0.7``, which is
              downloaded once; or a file in their format;
            - timm's name of a vision transformer: the dense network is built and sparsified; with
              ``dynamicvit_`` in front, with prediction modules, which are fresh;
            - a network itself, for an add-on.
        checkpoint: a file of weights, which replace the model's own; for a timm name, dense ones or
            those of a DynamicViT.
        addon: a file that training with a frozen backbone wrote: its prediction modules, method and
            schedule go around the backbone of that name, whose own weights stay as they are.
        keep_ratio: ρ, or one ratio for each stage; by default what the model was saved with, or
            :func:`~dynamicvit.sparsify`'s default. For a file in the authors' format it comes from
            here, the file's metadata, or its name (``dynamic-vit_384_r0.7.pth``).
        stages: blocks before which tokens are dropped; those of a saved model can't be moved.
        policy: what becomes of dropped tokens; by default what the weights were trained for, or
            :func:`~dynamicvit.sparsify`'s default.
        method: how a dense network chooses tokens, likewise; a saved model has its own.
        default_method: what a dense network gets where neither ``method`` nor weights say; by
            default :func:`~dynamicvit.sparsify`'s.
        num_classes: if the weights have another number, the classifier is fresh.
        pretrained: whether a timm name without a checkpoint gets timm's pretrained weights,
            downloaded if need be; otherwise they are random.
        schedule: in place of ``keep_ratio``, ``stages`` and ``policy``, as for
            :func:`~dynamicvit.sparsify`; its method must be the model's, unless ``method`` is given
            too.
        frames: of a clip, for an image network's name: it becomes a video network as
            :func:`~dynamicvit.inflate` makes it.
        tubelet: frames of a token, likewise; by default 2.

    Returns:
        The model in ``eval()``.

    Raises:
        InputError: for an unknown name, an add-on of another backbone, weights of another
            architecture or method, or that don't say which policy they were trained for, a broken
            file, or a failed download.
    """
    found = None if schedule is None else ScheduleFile.of(schedule)
    if found is not None:
        for other, value in (("keep_ratio", keep_ratio), ("policy", policy), ("stages", stages)):
            if value is not None:
                raise InputError(f"{other} {value}: {found.source} says that too, give one")
    if addon is not None:
        added, base = open_addon(addon), name_or_path
        if not isinstance(base, nn.Module):
            base = load(
                base,
                checkpoint=checkpoint,
                policy=policy,
                pretrained=pretrained,
                frames=frames,
                tubelet=tubelet,
            )
        elif frames is not None:
            raise InputError(f"frames {frames} is for a name: inflate the network first")
        model = added.put_on(backbone_of(base))
        _check_trained_for(added.source, model, method, stages)
        model = _as_asked(model, keep_ratio, policy, num_classes)
        return model if found is None else _with_schedule(added.source, model, found, False)
    if isinstance(name_or_path, nn.Module):
        raise InputError("a network is for an add-on (addon=FILE); sparsify takes it without one")
    name, path = str(name_or_path), Path(name_or_path)
    if path.suffix.lower() in _EXPORTED_SUFFIXES:
        raise InputError(
            f"{name} is an exported file, for eval, predict, bench, visualize and stream; give its "
            "model"
        )
    weights = None if checkpoint is None else open_weights(checkpoint)
    if weights is not None and is_addon(weights):
        raise InputError(
            f"{weights.source} is an add-on: give it as addon (--addon), not checkpoint"
        )
    said = Description() if weights is None else described(weights)
    any_method = method is not None  # of a schedule's file: the user knows better
    method, policy = method or said.method, policy or said.policy
    own_method = method
    if found is not None:
        own_method, policy = method or found.method, policy or found.schedule.policy
        keep_ratio = DEFAULT_KEEP_RATIO  # until the model is whole, and the schedule set
    stages = said.stages if stages is None else stages
    if weights is not None and is_released(weights.tensors):
        keep_ratio, _ = find_keep_ratio(keep_ratio, read_metadata(weights), weights.source)
    network, whole = _named(name, weights, keep_ratio, stages, num_classes, pretrained)
    if frames is not None or tubelet is not None:
        network = _over_clips(name, network, frames, tubelet)
    weights = None if whole else weights
    drops = any(each is not None for each in (own_method, keep_ratio, stages, policy))
    keeps = isinstance(network, DynamicViT) and (network.schedule.stages or not drops)
    if keeps:  # or a dense model of ours that is to stay so
        model = network
        _check_trained_for(name, model, method, stages)
    elif weights is not None and policy is None:
        raise InputError(
            f"{weights.source} does not say what becomes of dropped tokens: give its model's "
            'folder, or the policy that it was trained for, "merged", "removed" or "bypassed" '
            "(--policy)"
        )
    else:
        ratios = (keep_ratio, said.keep_ratio, DEFAULT_KEEP_RATIO)
        keep_ratio = next(each for each in ratios if each is not None)  # 0 is an error
        default_method = "dynamicvit" if name.startswith(PREFIX) else default_method
        made = sparsify(network, keep_ratio, stages, policy, own_method or default_method)
        model = core_of(made)
        assert isinstance(model, DynamicViT)
        if said.restore_before is not None and policy == said.policy:
            model.schedule = replace(model.schedule, restore_before=said.restore_before)
    if weights is not None:
        fill(model, weights, name)
    asked = keep_ratio if keeps else None
    model = _as_asked(model, asked, policy, num_classes)
    return model if found is None else _with_schedule(name, model, found, any_method)


def _named(
    name: str,
    weights: Weights | None,
    keep_ratio: float | Sequence[float] | None,
    stages: Sequence[int] | None,
    num_classes: int | None,
    pretrained: bool,
) -> tuple[nn.Module, bool]:
    """The network of a name, a DynamicViT or a dense one; and whether it has the weights given."""
    path = Path(name)
    if path.is_file() or is_release(name):
        file = path if path.is_file() else download(name)
        return recognize(file, keep_ratio, stages=stages).build(), weights is None
    if is_transformers(path):
        return saved_classifier(path), weights is None
    if _is_saved(path) or _on_hub(name):
        refuse_unfinished(path)
        return DynamicViT.from_pretrained(name.removeprefix(_HUB_PREFIX)), weights is None
    if weights is None or not is_sparse(weights):
        hint = "; or random ones with pretrained=False (--no-pretrained)"
        return timm_network(timm_name(name), weights, num_classes, pretrained, hint), True
    # As the released code evaluates; its files don't say.
    crop = {"crop_pct": CROP_PCT} if is_released(weights.tensors) else {}
    classes = classes_of(weights)
    return timm.create_model(
        timm_name(name), num_classes=classes, pretrained_cfg_overlay=crop
    ), False


def _over_clips(
    name: str, network: nn.Module, frames: int | None, tubelet: int | None
) -> nn.Module:
    """The video network of an image network that was named."""
    if frames is None:
        raise InputError(f"tubelet {tubelet} goes with frames: give both")
    if isinstance(network, DynamicViT):
        raise InputError(f"frames {frames} is for timm's image networks; {name} is whole as it is")
    return inflate(network, frames, 2 if tubelet is None else tubelet)


def set_image_size(model: nn.Module, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Set the image size of a model in place, as its own library does.

    Args:
        model: a DynamicViT or a dense backbone.
        size: side of a square image, or height and width; ``None`` changes nothing.

    Returns:
        Height and width that it takes now.

    Raises:
        InputError: for a size that it does not support.
    """
    if size is None:
        return resolve_image_size(model)
    height, width = (size, size) if isinstance(size, int) else size
    (bound_of(model) or backbone_for(model)).set_image_size(height, width)
    return resolve_image_size(model, (height, width))


def set_drop_path(model: DynamicViT, rate: float) -> None:
    """Set stochastic depth of a built model in place, as timm's ``drop_path_rate`` does.

    Args:
        model: with any source of weights.
        rate: of the last block; it grows linearly from 0 at the first.

    Raises:
        InputError: if the backbone has no stochastic depth.
    """
    model.bound.set_drop_path(torch.linspace(0, rate, model.depth).tolist())


def _as_asked(
    model: DynamicViT,
    keep_ratio: float | Sequence[float] | None,
    policy: Policy | None,
    num_classes: int | None,
) -> DynamicViT:
    """The model with what was asked for in place of its own, in ``eval()``."""
    model.policy = policy or model.policy
    if keep_ratio is not None:
        model.keep_ratio = keep_ratio
    if num_classes is not None and num_classes != model.num_classes:
        model.reset_classifier(num_classes)
    return model.eval()


def _check_trained_for(
    name: str, model: DynamicViT, method: str | None, stages: Sequence[int] | None
) -> None:
    """Refuse to change what a saved model was trained for."""
    if method not in (None, model.method.name):
        raise InputError(
            f"{name} chooses tokens by method {model.method.name!r}, for which it was trained; "
            f"{method!r} is for a dense model"
        )
    if stages is not None and tuple(stages) != model.schedule.stages:
        raise InputError(
            f"{name} drops tokens before blocks {model.schedule.stages}, where its prediction "
            f"modules were trained; stages can't be moved to {tuple(stages)}"
        )


def _with_schedule(
    name: str, model: DynamicViT, found: ScheduleFile, any_method: bool
) -> DynamicViT:
    """The model with a schedule that was made for its depth and, unless told so, its method."""
    found = ScheduleFile.of(found, model.depth)
    if not any_method and found.method not in (None, model.method.name):
        raise InputError(
            f"{found.source}: is a schedule for method {found.method!r}; {name} chooses tokens by "
            f"{model.method.name!r} (name that method to use it all the same)"
        )
    try:
        model.schedule = found.schedule
    except InputError as error:
        raise InputError(f"{found.source}: {error}") from error
    return model


# ---------------------------------------------------------------- kinds of names


def _is_saved(path: Path) -> bool:
    """Whether this is a folder of a model, not one that happens to have a timm model's name."""
    return path.is_dir() and ((path / CONFIG_NAME).exists() or not is_model(str(path)))


def _on_hub(name: str) -> bool:
    """Whether this names a repository on the Hub rather than a path or a model of timm's."""
    if name.startswith(_HUB_PREFIX):
        return True
    looks_like_file = name.endswith(FILE_SUFFIXES) or name.startswith(".")
    return _HUB_ID.fullmatch(name) is not None and not looks_like_file
