"""What several parts ask of any network: a DynamicViT, a model around one, or a dense one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

from dynamicvit.backbones import Backbone, backbone_for
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError, UnsupportedBackboneError

_Module = TypeVar("_Module", bound=nn.Module)


def without_compiler(model: _Module) -> _Module:
    """The module that ``torch.compile`` wrapped."""
    return getattr(model, "_orig_mod", model)


def core_of(model: nn.Module) -> nn.Module:
    """The DynamicViT inside a model that speaks another library's language; others as they are."""
    model = without_compiler(model)
    inner = getattr(model, "dynamicvit", None)
    return inner if isinstance(inner, DynamicViT) else model


def backbone_of(model: nn.Module) -> nn.Module:
    """The dense network inside, or the model itself."""
    core = core_of(model)
    return core.backbone if isinstance(core, DynamicViT) else core


def backbone_name(backbone: nn.Module) -> str:
    """What a backbone is called: its name at timm, its kind at transformers, else its class."""
    architecture = (getattr(backbone, "pretrained_cfg", None) or {}).get("architecture")
    kind = getattr(getattr(backbone, "config", None), "model_type", None)
    return architecture or kind or type(backbone).__name__


class DenseNetwork(nn.Module):
    """The dense network inside a DynamicViT, run by its own library's code.

    Args:
        model: the DynamicViT; its weights are shared, not copied.

    Attributes:
        num_classes: of its classifier.
        task: of the model.
        labels: how masks name its classes, of a segmentation model.
        pretrained_cfg: timm's description of it.
    """

    def __init__(self, model: DynamicViT) -> None:
        super().__init__()
        for name, part in model.named_children():
            if name != "predictors":
                self.add_module(name, part)
        self.num_classes, self.pretrained_cfg = model.num_classes, model.pretrained_cfg
        self.task, self.labels = model.task, getattr(model, "labels", None)
        # In a tuple: what it holds of modules is named above.
        self._alone = (model.like(model.bound, Schedule((), ())),)

    @property
    def bound(self) -> Backbone:
        """The backbone with what its family says of it."""
        return self._alone[0].bound

    def forward(self, images: Tensor) -> Tensor:
        """The model's logits, also where the library's own output is more than a tensor."""
        return self._alone[0].dense(images)


def bound_of(model: nn.Module) -> Backbone | None:
    """The bound backbone of a DynamicViT, or of a dense network; ``None`` of an unsupported one."""
    core = core_of(model)
    if isinstance(core, DynamicViT | DenseNetwork):
        return core.bound
    try:
        return backbone_for(core)
    except UnsupportedBackboneError:
        return None


def segments(model: nn.Module) -> bool:
    """Whether a model gives a map of classes, as an exported file of one does."""
    return getattr(core_of(model), "task", "classification") == "segmentation"


def check_takes_images(model: nn.Module, what: str) -> None:
    """Refuse a model that takes clips.

    Args:
        model: any network.
        what: it is needed for.

    Raises:
        InputError: for a network of clips.
    """
    shape = input_shape(model)
    if len(shape) > 3:
        raise InputError(
            f"the model takes clips of {'x'.join(map(str, shape))}: {what} takes models of images"
        )


def check_classifies(model: Any, what: str, whose: str = "the model") -> None:
    """Refuse a model that does not give one class an image.

    Args:
        model: anything with ``num_classes``.
        what: it is needed for.
        whose: the model is.

    Raises:
        InputError: for one without a classifier, or for segmentation.
    """
    if segments(model):
        raise InputError(f"{whose} is for segmentation: {what} takes classifiers")
    if model.num_classes < 1:
        raise InputError(f"{whose} has no classifier: {what} takes classifiers")


def own_image_size(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels that a network was built for.

    Of an unsupported network: what timm's ``pretrained_cfg`` says, or 224.
    """
    bound = bound_of(model)
    if bound is not None:
        return bound.image_size
    config = getattr(backbone_of(model), "pretrained_cfg", None) or {}
    return tuple(config.get("input_size", (3, 224, 224))[1:])


def image_channels(model: nn.Module) -> int:
    """Number of channels of the images that a network takes."""
    bound = bound_of(model)
    return getattr(backbone_of(model), "in_chans", 3) if bound is None else bound.in_chans


def input_shape(model: nn.Module, size: tuple[int, int] | None = None) -> tuple[int, ...]:
    """Shape of one input of a network: ``(channels, height, width)``, of a clip frames in front.

    Args:
        model: the network.
        size: height and width; by default those that it was built for.
    """
    bound = bound_of(model)
    if bound is not None:
        return bound.input_shape(size)
    return image_channels(model), *(size or own_image_size(model))


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """The models in ``eval()``, and each of their modules back in its own mode afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def untrained_on_purpose(model: nn.Module) -> Iterator[None]:
    """No word on untrained scores meanwhile: for what does not depend on them, as times."""
    core = core_of(model)
    warns = isinstance(core, DynamicViT) and core.warns_untrained
    if warns:
        core.warns_untrained = False
    try:
        yield
    finally:
        if warns:
            core.warns_untrained = True
