"""Add-ons: the prediction modules of a model alone, in a file for any copy of its backbone."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from dynamicvit.backbones import backbone_for
from dynamicvit.checkpoints.description import values_of
from dynamicvit.core.hub import DESCRIPTION, described_method, schedule_in
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import backbone_name
from dynamicvit.core.registry import registered_method
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.utils.files import atomic_write
from dynamicvit.utils.outputs import WRITER
from dynamicvit.utils.tensors import fingerprint
from dynamicvit.utils.weights import Weights, load_exactly, open_weights

ADDON_NAME = "addon.safetensors"
"""What a run with a frozen backbone writes beside its model."""

_PREDICTORS = "predictors."


@dataclass(frozen=True)
class AddOn:
    """What turns a backbone into a DynamicViT, beside the backbone.

    Attributes:
        source: what error messages call the file.
        tensors: of the prediction modules, by name.
        method: its name.
        schedule: where and how much is dropped.
        backbone: its name at timm or transformers, for messages.
        fingerprint: of the backbone's weights.
        image_size: height and width that it was trained at.
    """

    source: str
    tensors: dict[str, Tensor]
    method: str
    schedule: Schedule
    backbone: str
    fingerprint: str
    image_size: tuple[int, int]

    def put_on(self, backbone: nn.Module) -> DynamicViT:
        """A DynamicViT around a backbone, which is used as it is.

        Args:
            backbone: with the weights that the add-on was trained on.

        Raises:
            InputError: for another backbone, by the fingerprint of its weights.
        """
        bound = backbone_for(backbone)
        found = backbone_fingerprint(bound.module)
        if found != self.fingerprint:
            raise InputError(
                f"{self.source} is of a {self.backbone} with weights {self.fingerprint[:8]}, and "
                f"this {backbone_name(bound.module)} has {found[:8]} (SHA-256): give the backbone "
                "that it was trained on"
            )
        if bound.image_size != self.image_size:
            bound.set_image_size(*self.image_size)
        model = DynamicViT(bound, self.schedule, registered_method(self.method))
        load_exactly(model.predictors, self.tensors, f"{self.source}: does not fit its method")
        return model.eval()


def backbone_fingerprint(backbone: nn.Module) -> str:
    """Tells the weights and buffers of one backbone from another's."""
    return fingerprint(backbone.state_dict())


def save_addon(model: DynamicViT, path: str | Path, weights: str | None = None) -> None:
    """Write a model's prediction modules as an add-on for its backbone.

    Args:
        model: whose backbone is as its own library has it, to the bit.
        path: of the file, which ends in ``.safetensors``.
        weights: the backbone's fingerprint, where it is not that of the backbone as it is now: its
            position embeddings were resized after it was loaded.

    Raises:
        InputError: for a method without a name or weights, or a file that can't be written.
    """
    if Path(path).suffix != ".safetensors":
        raise InputError(f"{path}: an add-on is a .safetensors file")
    state = model.predictors.state_dict()
    if not state:
        raise InputError(f"method {model.method.name!r} has no weights: sparsify is all it needs")
    about = {
        "written_by": WRITER,
        "method": described_method(model),
        "schedule": dataclasses.asdict(model.schedule),
        "backbone": {
            "architecture": backbone_name(model.backbone),
            "fingerprint": weights or backbone_fingerprint(model.backbone),
            "image_size": list(model.bound.image_size),
        },
    }
    tensors = {f"{_PREDICTORS}{n}": t.detach().cpu().contiguous() for n, t in state.items()}
    try:
        with atomic_write(path) as draft:
            draft.touch()
            readers = draft.stat().st_mode  # safetensors would let only the owner read it
            save_file(tensors, draft, metadata={DESCRIPTION: json.dumps(about)})
            draft.chmod(readers)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: can't be written ({error})") from error


def open_addon(path: str | Path) -> AddOn:
    """Read what :func:`save_addon` wrote.

    Raises:
        InputError: for a file that is missing, damaged, or something else.
    """
    weights = open_weights(path)
    about = values_of(weights)
    if not is_addon(weights):
        raise InputError(
            f"{path} is no add-on, as `dynamicvit train --freeze-backbone` writes it; give weights "
            "as the checkpoint (--checkpoint)"
        )
    of: dict[str, Any] = about["backbone"]
    missing = [name for name in ("architecture", "fingerprint", "image_size") if not of.get(name)]
    missing += [name for name in ("method", "schedule") if not about.get(name)]
    others = [name for name in weights.tensors if not name.startswith(_PREDICTORS)]
    if missing or others:
        problem = f"its metadata lacks {missing[0]}" if missing else f"it holds {others[0]}"
        raise InputError(f"{path} is a damaged add-on: {problem}")
    size = of["image_size"]
    try:
        schedule, _ = schedule_in(about), registered_method(about["method"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return AddOn(
        source=str(path),
        tensors={name.removeprefix(_PREDICTORS): t for name, t in weights.tensors.items()},
        method=about["method"],
        schedule=schedule,
        backbone=of["architecture"],
        fingerprint=of["fingerprint"],
        image_size=(size, size) if isinstance(size, int) else tuple(size),
    )


def is_addon(weights: Weights) -> bool:
    """Whether a file says of which backbone it is an add-on."""
    return isinstance(values_of(weights).get("backbone"), dict)
