"""A timm backbone in ``config.json``: its name, arguments of ``create_model``, and input.

Rebuilding needs neither dense weights nor a network connection.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from timm.layers import DropPath
from timm.models import is_model
from timm.models._pretrained import PretrainedCfg, filter_pretrained_cfg
from torch import nn

from dynamicvit.errors import InputError


def describe(backbone: Any) -> dict[str, Any]:
    """The entries of ``config.json`` from which :func:`rebuild` builds the backbone.

    Raises:
        InputError: if timm does not build the same network from them.
    """
    architecture = getattr(backbone, "pretrained_cfg", {}).get("architecture")
    if not architecture or not is_model(architecture):
        raise InputError(
            f"timm has no name for this {type(backbone).__name__} "
            f"(pretrained_cfg['architecture'] is {architecture!r}); make it with "
            f"timm.create_model, or save the state_dict instead"
        )
    args = _backbone_args(backbone)
    for name, value in args.items():
        if not _is_json(value):
            raise InputError(
                f"the backbone was made with {name}={value!r}, which config.json can't hold; "
                f"save the state_dict instead"
            )
    description = {
        "architecture": architecture,
        "model_args": args,
        "pretrained_cfg": _input_and_labels(backbone),
    }
    description = json.loads(json.dumps(description))  # as it is read later
    _check_rebuilds(backbone, description)
    return description


def rebuild(description: Mapping[str, Any]) -> nn.Module:
    """The backbone with random weights.

    Raises:
        InputError: with the entry that is missing or invalid.
    """
    for key in ("model_args", "pretrained_cfg"):
        if not isinstance(description.get(key), dict):
            raise InputError(f"{key} must be a mapping, got {description.get(key)!r}")
    architecture = description.get("architecture")
    if not isinstance(architecture, str) or not is_model(architecture):
        raise InputError(f"timm {timm.__version__} has no architecture {architecture!r}")
    reserved = sorted(_RESERVED & set(description["model_args"]))
    if reserved:
        raise InputError(f"model_args can't hold {', '.join(reserved)}")
    return _build(architecture, description["model_args"], description["pretrained_cfg"])


def _input_and_labels(backbone: Any) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` for the backbone as it is now, without sources of weights."""
    cfg = {k: v for k, v in backbone.pretrained_cfg.items() if k != "state_dict"}
    cfg = filter_pretrained_cfg(cfg, remove_source=True, remove_null=True)
    embed = getattr(backbone, "patch_embed", None)  # a ConvNeXt has none, and takes any size
    if embed is not None and embed.strict_img_size and embed.img_size is not None:
        size = (_in_chans(embed), *embed.img_size)
        if size != tuple(cfg["input_size"]):
            cfg["input_size"] = size
            cfg.pop("test_input_size", None)
    if backbone.num_classes != cfg["num_classes"]:
        cfg["num_classes"] = backbone.num_classes
        cfg = {k: v for k, v in cfg.items() if not k.startswith("label_")}
    return {key: value for key, value in cfg.items() if _is_json(value)}


def _backbone_args(backbone: Any) -> dict[str, Any]:
    """The arguments with which ``timm.create_model`` builds the backbone again."""
    try:
        from timm.models import get_model_args
    except ImportError:  # older timm keeps no record of them: read what the network shows
        embed = backbone.patch_embed
        args = {
            "num_classes": backbone.num_classes,
            "in_chans": _in_chans(embed),
            "global_pool": backbone.global_pool,
            "img_size": embed.img_size,
            "embed_dim": backbone.embed_dim,
            "depth": len(backbone.blocks),
            "num_heads": backbone.blocks[0].attn.num_heads,
        }
        return args if embed.strict_img_size else args | {"dynamic_img_size": True}
    return get_model_args(backbone)


def _in_chans(embed: nn.Module) -> int:
    return next(m for m in embed.modules() if isinstance(m, nn.Conv2d)).in_channels


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


# ---------------------------------------------------------------- rebuilding

#: Arguments of timm.create_model that load weights; not allowed in a config.
_RESERVED = {
    "cache_dir",
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
}


def _build(
    architecture: str, args: Mapping[str, Any], pretrained_cfg: Mapping[str, Any]
) -> nn.Module:
    known = {field.name for field in dataclasses.fields(PretrainedCfg)}
    cfg = {name: _as_tuple(value) for name, value in pretrained_cfg.items() if name in known}
    return timm.create_model(
        architecture,
        pretrained=False,
        pretrained_cfg=cfg,
        **{name: _as_tuple(value) for name, value in args.items()},
    )


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_rebuilds(backbone: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise unless the config builds a network with the same tensors and settings."""
    architecture, args = config["architecture"], config["model_args"]
    with torch.device("meta"):  # neither memory nor initialization
        rebuilt = _build(architecture, args, config["pretrained_cfg"])
    for what, ours, theirs in (
        ("tensors", _shapes(backbone), _shapes(rebuilt)),
        ("settings", dict(_settings(backbone)), dict(_settings(rebuilt))),
    ):
        other = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if other:
            name = other[0]
            raise InputError(
                f"timm's {architecture} with {args} has other {what} than this backbone: {name} "
                f"is {theirs.get(name, 'absent')} instead of {ours.get(name, 'absent')}; save the "
                f"state_dict instead"
            )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


#: Modules and attributes without effect on inference.
_TRAINING_ONLY = (nn.Identity, nn.Dropout, DropPath)
_RUNTIME = {"training", "grad_checkpointing", "fused_attn"}


def _settings(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Class and plain attributes of every module: what shapes don't tell, such as heads."""
    for path, module in model.named_modules():
        if isinstance(module, _TRAINING_ONLY):
            continue
        yield f"class of {path or 'model'}", type(module).__name__
        for name, value in vars(module).items():
            if not name.startswith("_") and name not in _RUNTIME and _is_plain(value):
                yield f"{path}.{name}".lstrip("."), _as_tuple(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, (bool, int, float, str))
