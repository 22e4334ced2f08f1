"""Saving and loading through huggingface_hub: ``config.json`` and ``model.safetensors``.

The config holds timm's name of the backbone, timm's arguments for it, the schedule, and what
timm's data pipeline wants to know. Loading builds the backbone from that, without its dense
weights: nothing but the two files is needed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors.torch import save_file
from timm.layers import DropPath
from timm.models import is_model
from timm.models._pretrained import PretrainedCfg, filter_pretrained_cfg
from torch import nn

from dynamicvit.errors import InputError
from dynamicvit.prediction import PredictionModule
from dynamicvit.schedule import Schedule
from dynamicvit.weights import first_line, load_exactly, read_weights

FORMAT_VERSION = 1
"""Version of ``config.json`` that this code writes, and the newest that it reads."""

MODEL_CARD = """---
{{ card_data }}
---

A [DynamicViT]({{ paper_url }}): a vision transformer that drops the patches it does not need.

```python
from dynamicvit import DynamicViT

model = DynamicViT.from_pretrained("this repository or folder")
logits = model(images)  # pruned path
model.keep_ratio = 0.5  # the budget is a property
```
"""

T = TypeVar("T", bound="HubMixin")


class HubMixin(
    ModelHubMixin,
    library_name="dynamicvit",
    pipeline_tag="image-classification",
    tags=["dynamicvit", "token-pruning"],
    paper_url="https://arxiv.org/abs/2106.02034",
    model_card_template=MODEL_CARD,
):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for a class that is built from
    ``(backbone, schedule)`` and has ``backbone``, ``schedule`` and ``predictors``.
    """

    backbone: Any  # with timm's attributes, which type checkers can't know of an nn.Module
    predictors: nn.ModuleList

    def save_pretrained(
        self, save_directory: str | Path, *, config: Any = None, **kwargs: Any
    ) -> str | None:
        """Write ``config.json``, ``model.safetensors`` and a model card into a folder.

        Args:
            save_directory: the folder; made if it is not there.
            config: ignored, the config describes the model as it is.
            **kwargs: see :class:`huggingface_hub.ModelHubMixin`; ``push_to_hub=True`` uploads.

        Raises:
            InputError: if timm can't build the backbone by name, or the folder can't be written.
        """
        # Before anything is written: after this, saving can only fail on the disk.
        self._hub_mixin_config = _describe(self)
        try:
            return super().save_pretrained(save_directory, **kwargs)
        except OSError as error:
            raise InputError(f"{save_directory}: can't be written ({error})") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        path = save_directory / SAFETENSORS_SINGLE_FILE
        unfinished = path.with_suffix(".partial")
        save_file(tensors, unfinished, metadata={"format": "pt"})
        unfinished.replace(path)  # an interrupted save leaves the old weights whole

    @classmethod
    def from_pretrained(
        cls: type[T],
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
    ) -> T:
        """Load what ``save_pretrained`` or ``push_to_hub`` wrote, in ``eval()``.

        Args:
            pretrained_model_name_or_path: a folder, or ``user/name`` on the Hub.
            force_download: download again what is in the cache.
            token: for private repositories.
            cache_dir: where downloads are kept.
            local_files_only: take the cached files, ask no server.
            revision: branch, tag or commit on the Hub.

        Raises:
            InputError: if it is missing, broken, from a newer version, or not a DynamicViT.
        """
        # The parent would read the config here and pass its keys on as constructor arguments.
        return cls._from_pretrained(
            model_id=str(pretrained_model_name_or_path),
            force_download=force_download,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            revision=revision,
        )

    @classmethod
    def _from_pretrained(cls: type[T], *, model_id: str, **download: Any) -> T:
        config_file = _fetch(model_id, CONFIG_NAME, download)
        weights_file = _fetch(model_id, SAFETENSORS_SINGLE_FILE, download)
        config = _read_config(config_file)
        try:
            backbone = _build(
                config["architecture"], config["model_args"], config["pretrained_cfg"]
            )
            stages, keep_ratios = (config["schedule"][key] for key in ("stages", "keep_ratios"))
            model = cls(backbone, Schedule(tuple(stages), tuple(keep_ratios)))
        except Exception as error:  # whatever timm says to arguments that it does not know
            reason = first_line(error)
            raise InputError(f"{config_file}: does not describe a model ({reason})") from error
        tensors, _ = read_weights(weights_file)
        load_exactly(model, tensors, f"{weights_file}: does not fit {config_file}")
        return model.eval()


# ---------------------------------------------------------------- the config


def _describe(model: Any) -> dict[str, Any]:
    """The config from which the model can be built again, which is tried before it is given.

    Raises:
        InputError: if it can't.
    """
    for predictor in model.predictors:
        if type(predictor) is not PredictionModule:
            raise InputError(
                f"a {type(predictor).__name__} in place of a PredictionModule can't be described "
                f"in {CONFIG_NAME}; save the state_dict instead"
            )
    backbone = model.backbone
    architecture = getattr(backbone, "pretrained_cfg", {}).get("architecture")
    if not architecture or not is_model(architecture):
        raise InputError(
            f"timm knows no name for this {type(backbone).__name__} "
            f"(pretrained_cfg['architecture'] is {architecture!r}); only a backbone made by "
            f"timm.create_model can be saved, or save the state_dict instead"
        )
    pretrained_cfg = _input_and_labels(backbone)
    args = _backbone_args(backbone, architecture, pretrained_cfg)
    for name, value in args.items():
        if not _is_json(value):
            raise InputError(
                f"the backbone was made with {name}={value!r}, which {CONFIG_NAME} can't hold; "
                f"save the state_dict instead"
            )
    config = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "model_args": args,
        "schedule": dataclasses.asdict(model.schedule),
        "pretrained_cfg": pretrained_cfg,
    }
    config = json.loads(json.dumps(config))  # as it will be read
    _check_rebuilds(backbone, config)
    return config


def _input_and_labels(backbone: Any) -> dict[str, Any]:
    """timm's ``pretrained_cfg`` for the backbone as it is now, without sources of weights."""
    cfg = {k: v for k, v in backbone.pretrained_cfg.items() if k != "state_dict"}
    cfg = filter_pretrained_cfg(cfg, remove_source=True, remove_null=True)
    embed = backbone.patch_embed
    if embed.strict_img_size and embed.img_size is not None:
        size = (embed.proj.in_channels, *embed.img_size)
        if size != tuple(cfg["input_size"]):
            cfg["input_size"] = size
            cfg.pop("test_input_size", None)
    if backbone.num_classes != cfg["num_classes"]:
        cfg["num_classes"] = backbone.num_classes
        cfg = {k: v for k, v in cfg.items() if not k.startswith("label_")}
    return {key: value for key, value in cfg.items() if _is_json(value)}


def _backbone_args(
    backbone: nn.Module, architecture: str, pretrained_cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments with which ``timm.create_model`` builds the backbone again."""
    try:
        from timm.models import get_model_args
    except ImportError:  # an older timm does not remember: what is visible must do
        usual = _on_meta(lambda: _build(architecture, {}, pretrained_cfg))
        unusual = {
            name: value
            for name, value in _visible_shape(backbone).items()
            if value != _visible_shape(usual)[name]
        }
        return _visible_input_and_head(backbone) | unusual
    return get_model_args(backbone)


def _visible_input_and_head(backbone: Any) -> dict[str, Any]:
    embed = backbone.patch_embed
    return {
        "num_classes": backbone.num_classes,
        "in_chans": embed.proj.in_channels,
        "global_pool": backbone.global_pool,
        "img_size": embed.img_size,
    }


def _visible_shape(backbone: Any) -> dict[str, Any]:
    return {
        "embed_dim": backbone.embed_dim,
        "depth": len(backbone.blocks),
        "num_heads": backbone.blocks[0].attn.num_heads,
        "dynamic_img_size": not backbone.patch_embed.strict_img_size,
    }


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


# ---------------------------------------------------------------- building again

#: Arguments of timm.create_model that say where weights come from: not for a config to say.
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
    """The backbone with random weights, as timm makes it."""
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


def _on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Build without memory or initialisation, where timm's code allows it."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):  # older timm reads values while it builds
        return build()


def _check_rebuilds(backbone: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise unless the config builds a network with the same tensors and settings."""
    architecture, args = config["architecture"], config["model_args"]
    rebuilt = _on_meta(lambda: _build(architecture, args, config["pretrained_cfg"]))
    for what, ours, theirs in (
        ("tensors", _shapes(backbone), _shapes(rebuilt)),
        ("settings", dict(_settings(backbone)), dict(_settings(rebuilt))),
    ):
        other = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if other:
            name = other[0]
            raise InputError(
                f"timm's {architecture} with {args} has other {what} than this backbone: {name} "
                f"is {theirs.get(name, 'absent')} instead of {ours.get(name, 'absent')}; only a "
                f"backbone as timm.create_model makes it can be saved, or save the state_dict"
            )


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


#: Modules and attributes that inference does not depend on.
_TRAINING_ONLY = (nn.Identity, nn.Dropout, DropPath)
_RUNTIME = {"training", "grad_checkpointing", "fused_attn"}


def _settings(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Class and plain attributes of every module: what shapes don't show, such as heads."""
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


# ---------------------------------------------------------------- reading


def _fetch(model_id: str, filename: str, download: Mapping[str, Any]) -> Path:
    """A file of the folder, or of the Hub's repository."""
    folder = Path(model_id)
    if folder.is_dir():
        if not (folder / filename).is_file():
            raise InputError(f"{folder}: has no {filename}; give a folder made by save_pretrained")
        return folder / filename
    try:
        return Path(hf_hub_download(model_id, filename, **download))
    except HFValidationError as error:
        raise InputError(
            f"{model_id}: no such folder, and no name on the Hub (those are user/name)"
        ) from error
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        raise InputError(
            f"{model_id}: no such folder, and {filename} can't be had from the Hub "
            f"({first_line(error)})"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: truncated or not JSON ({error})") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{path}: is not a DynamicViT's (it has no format_version)")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: is of format {version}, and this dynamicvit reads up to {FORMAT_VERSION}; "
            f"install a newer one"
        )
    _check_types(config, path)
    return config


def _check_types(config: Mapping[str, Any], path: Path) -> None:
    for key in ("model_args", "schedule", "pretrained_cfg"):
        if not isinstance(config.get(key), dict):
            raise InputError(f"{path}: {key} must be a mapping, got {config.get(key)!r}")
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not is_model(architecture):
        raise InputError(f"{path}: this timm knows no architecture {architecture!r}")
    for key, kind in (("stages", int), ("keep_ratios", (int, float))):
        value = config["schedule"].get(key)
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise InputError(f"{path}: schedule.{key} must be a list of numbers, got {value!r}")
    reserved = sorted(_RESERVED & set(config["model_args"]))
    if reserved:
        raise InputError(f"{path}: model_args can't hold {', '.join(reserved)}")
