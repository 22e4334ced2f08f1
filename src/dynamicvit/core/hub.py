"""Saving and loading through huggingface_hub: ``config.json`` and ``model.safetensors``.

The config holds the schedule and a description of the backbone by the library that builds it, its
source. Loading needs these two files only, no dense weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from dynamicvit.core.per_image import PerImage, described, per_image_in
from dynamicvit.core.registry import METHODS, registered_method
from dynamicvit.core.schedule import Schedule
from dynamicvit.core.spatial import method_for
from dynamicvit.errors import InputError
from dynamicvit.utils.connection import hub_if_reachable
from dynamicvit.utils.fields import read_json
from dynamicvit.utils.files import atomic_folder
from dynamicvit.utils.memory import room_for
from dynamicvit.utils.optional import need
from dynamicvit.utils.outputs import WRITER
from dynamicvit.utils.weights import load_exactly, open_weights
from dynamicvit.utils.words import first_line, shortened

FORMAT_VERSION = 2
"""Version of ``config.json`` that this code writes, and the newest that it reads."""

DESCRIPTION = "dynamicvit"
"""Key in the header of ``model.safetensors`` of method and schedule, for who takes it alone."""

MODEL_FILES = (CONFIG_NAME, SAFETENSORS_SINGLE_FILE)
"""What is written beside a model card, which stays as it is where there is one."""

_CARD = "README.md"
#: Above this room, as it counts what the model costs.
_CARD_WRITER = "dynamicvit.checkpoints.card"

T = TypeVar("T", bound="HubMixin")


class Source(NamedTuple):
    """How backbones of one library are written into ``config.json`` and built again.

    Attributes:
        describe: JSON entries of a backbone; raises :class:`InputError` if it can't be rebuilt.
        rebuild: the backbone, with any weights, from a config with these entries.
    """

    describe: Callable[[nn.Module], dict[str, Any]]
    rebuild: Callable[[Mapping[str, Any]], nn.Module]


#: Modules of backbones with ``describe`` and ``rebuild``, imported with the first of the source.
_MODULES = {"timm": "timm_config", "transformers": "hf", "inflated": "inflated"}
_SOURCES: dict[str, Source] = {}

#: Where the classes are that answer something else than one class an image.
_TASKS = {"segmentation": ("dynamicvit.core.segmenter", "Segmenter")}


def register_source(
    name: str,
    describe: Callable[[nn.Module], dict[str, Any]],
    rebuild: Callable[[Mapping[str, Any]], nn.Module],
) -> None:
    """Let models be saved whose backbone's family names this source; see :class:`Source`."""
    _SOURCES[name] = Source(describe, rebuild)


class HubMixin(
    ModelHubMixin,
    library_name="dynamicvit",
    pipeline_tag="image-classification",
    tags=["dynamicvit", "token-pruning"],
    paper_url="https://arxiv.org/abs/2106.02034",
):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for a class that is built from
    ``(backbone, schedule, method)`` and has ``backbone``, ``schedule`` and ``predictors``.
    """

    #: What the model answers, by its name in ``config.json``.
    task: ClassVar[str] = "classification"

    backbone: nn.Module
    predictors: nn.ModuleList
    per_image: PerImage | None

    def save_pretrained(
        self, save_directory: str | Path, *, config: Any = None, **kwargs: Any
    ) -> str | None:
        """Write ``config.json``, ``model.safetensors`` and a model card into a folder.

        Args:
            save_directory: the folder; made if it is not there.
            config: ignored, the config describes the model as it is.
            **kwargs: see :class:`huggingface_hub.ModelHubMixin`; ``push_to_hub=True`` uploads.
                ``model_card_kwargs``: see :func:`dynamicvit.checkpoints.card.model_card`. A card
                that is there already stays as it is.

        Raises:
            InputError: if the backbone can't be described, or the folder can't be written.
        """
        # Before anything is written: after this, only the disk can fail.
        self._hub_mixin_config = _config_of(self)
        user, name = Path(save_directory).resolve().parts[-2:]
        kwargs.setdefault("repo_id", name)
        said = {"name": name} | (kwargs.get("model_card_kwargs") or {})
        kwargs["model_card_kwargs"] = said | {"name": said["name"] or f"{user}/{name}"}
        try:
            with atomic_folder(save_directory, CONFIG_NAME, keep=_CARD) as draft:
                return super().save_pretrained(draft, **kwargs)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{save_directory}: can't be written ({error})") from error

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """What :meth:`save_pretrained` writes beside the model, from its ``model_card_kwargs``."""
        return import_module(_CARD_WRITER).model_card(self, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload to ``user/name`` what :meth:`save_pretrained` writes, by its arguments."""
        kwargs["model_card_kwargs"] = {**(kwargs.get("model_card_kwargs") or {}), "name": None}
        return super().push_to_hub(repo_id, **kwargs)

    def _save_pretrained(self, save_directory: Path) -> None:
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        file = save_directory / SAFETENSORS_SINGLE_FILE
        file.touch()
        readers = file.stat().st_mode  # safetensors would let only the owner read it
        config = _config_of(self)
        said = {key: config[key] for key in ("method", "schedule")}
        # One entry: safetensors puts several in any order, and equal models are equal files.
        about = {DESCRIPTION: json.dumps({"written_by": WRITER, **said})}
        save_file(tensors, file, metadata=about)
        file.chmod(readers)

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

    def _own_config(self) -> dict[str, Any]:
        """What a subclass has beside backbone, schedule and method."""
        return {}

    @classmethod
    def _from_config(
        cls: type[T], config: Mapping[str, Any], backbone: nn.Module, schedule: Any, method: Any
    ) -> T:
        """The model, with any weights; ``config`` has what :meth:`_own_config` gave."""
        del config
        return cls(backbone, schedule, method)

    @classmethod
    def _from_pretrained(cls: type[T], *, model_id: str, **download: Any) -> T:
        config_file = _fetch(model_id, CONFIG_NAME, download)
        weights_file = _fetch(model_id, SAFETENSORS_SINGLE_FILE, download)
        config = _read_config(config_file)
        kind = _class_for(config.get("task", HubMixin.task), cls, config_file)
        try:
            source = _source(config.get("backbone_source", "timm"))
            method = registered_method(config.get("method", "dynamicvit"))
            with room_for([weights_file]):
                model = kind._from_config(
                    config, source.rebuild(config), schedule_in(config), method
                )
            model.per_image = per_image_in(config)
        except Exception as error:  # the backbone's library may raise anything
            reason = first_line(error)
            raise InputError(f"{config_file}: does not describe a model ({reason})") from error
        tensors = open_weights(weights_file).tensors
        load_exactly(model, tensors, f"{weights_file}: does not fit {config_file}")
        return model.eval()


# ---------------------------------------------------------------- the config


def _config_of(model: Any) -> dict[str, Any]:
    """The config from which :meth:`HubMixin.from_pretrained` builds the model again.

    Raises:
        InputError: if its method or backbone can't be described.
    """
    method = described_method(model)
    source = model.bound.source
    if not source:
        raise InputError(
            f"this {type(model.backbone).__name__} can't be described in {CONFIG_NAME}: its family "
            f"names no source; save the state_dict instead"
        )
    return {
        **_source(source).describe(model.backbone),
        **({} if model.task == HubMixin.task else {"task": model.task}),
        **model._own_config(),
        "written_by": WRITER,
        "format_version": FORMAT_VERSION,
        "backbone_source": source,
        "method": method,
        "schedule": dataclasses.asdict(model.schedule),
        **({} if model.per_image is None else {"per_image": described(model.per_image)}),
    }


def described_method(model: Any) -> str:
    """The name by which a file gives a model's method.

    Raises:
        InputError: if it has none that is registered.
    """
    for kind in (model.method, *map(type, model.predictors)):
        registered = METHODS.get(model.method.name)
        if registered is None or kind is not method_for(registered, model.bound):
            raise InputError(
                f"a stage's {kind.__name__} can't be described in {CONFIG_NAME}: register_method "
                "gives its class a name; or save the state_dict instead"
            )
    return model.method.name


def _class_for(task: Any, asked: type[T], config_file: Path) -> type[T]:
    """The class of a task's models, a subclass of the one that was asked for."""
    if task == asked.task:
        return asked
    if task in _TASKS:
        module, name = _TASKS[task]
        found = getattr(import_module(module), name)
        if issubclass(found, asked):
            return found
    raise InputError(f"{config_file}: is a model for {task}; {asked.__name__} is for {asked.task}")


def _source(name: str) -> Source:
    if name in _SOURCES:
        return _SOURCES[name]
    if name in _MODULES:
        return need(f"dynamicvit.backbones.{_MODULES[name]}", extra=name)
    known = ", ".join(sorted({*_MODULES, *_SOURCES}))
    raise InputError(f"no backbone_source {name!r}, one of {known}; register_source adds one")


# ---------------------------------------------------------------- reading


def _fetch(model_id: str, filename: str, download: Mapping[str, Any]) -> Path:
    """A file of the folder, or of the Hub's repository."""
    folder = Path(model_id)
    if folder.is_dir():
        if not (folder / filename).is_file():
            raise InputError(f"{folder}: has no {filename}; give a folder made by save_pretrained")
        return folder / filename
    with hub_if_reachable() as problem:
        try:
            return Path(hf_hub_download(model_id, filename, **download))
        except HFValidationError as error:
            raise InputError(
                f"{model_id}: no such folder, and not a name on the Hub (user/name)"
            ) from error
        except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
            reason = problem or first_line(error)
            raise InputError(
                f"{model_id}: no such folder, and no {filename} on the Hub ({reason})"
            ) from error


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    config = config if isinstance(config, dict) else {}
    version = config.get("format_version")
    if version is None and "model_type" in config:
        raise InputError(
            f"{path}: is of a model of transformers; load its folder with dynamicvit.load, or with "
            f"transformers after importing dynamicvit.transformers"
        )
    if not isinstance(version, int):
        raise InputError(f"{path}: is not a DynamicViT's (it has no format_version)")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: is of format {version}, and this dynamicvit reads up to {FORMAT_VERSION}; "
            f"install a newer one"
        )
    return config


def schedule_in(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a config or a header says.

    Raises:
        InputError: if it says none, or one that can't be.
    """
    schedule = config.get("schedule")
    if not isinstance(schedule, dict):
        raise InputError(f"schedule must be a mapping, got {shortened(schedule)}")
    for key in ("stages", "keep_ratios"):
        if schedule.get(key) is None:
            raise InputError(f"schedule.{key} must be a list of numbers, and is missing")
    return Schedule(
        tuple(schedule["stages"]),
        tuple(schedule["keep_ratios"]),
        policy_in(schedule),
        schedule.get("restore_before"),
    )


def policy_in(config: Mapping[str, Any]) -> Any:
    """The policy in a config; version 0.1.0 wrote it as "dropped": "gone" or "merged"."""
    if "dropped" in config:
        return "removed" if config["dropped"] == "gone" else config["dropped"]
    return config.get("policy", Schedule.policy)
