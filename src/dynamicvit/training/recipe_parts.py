"""The parts of a recipe, as values that check themselves."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dynamicvit.core.losses import (
    Distillation,
    LossWeights,
    distillation_loss,
    hard_distillation_loss,
)
from dynamicvit.utils.fields import MOST_COUNT, MOST_OF_RECIPES

Optimizer = Literal["adamw", "sgd"]
Decay = Literal["cosine", "poly"]


class Strict(BaseModel):
    """Values that don't change; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse YAML's yes, no, on and off where they would pass for 1 and 0."""
        is_switch = cls.model_fields[info.field_name or ""].annotation is bool
        values = value if isinstance(value, list | tuple) else (value,)
        if not is_switch and any(isinstance(each, bool) for each in values):
            raise ValueError(f"takes no true or false (nor yes, no, on or off), got {value}")
        return value

    @field_validator("*")
    @classmethod
    def _can_be_counted(cls, value: Any) -> Any:
        """Refuse numbers beyond float32, and whole ones that nobody counts to."""
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, int | float):
                most = MOST_COUNT if isinstance(each, int) else MOST_OF_RECIPES
                if abs(each) > most:
                    raise ValueError(f"must be a number up to {most:g}, got {each:g}")
        return value


class LossRecipe(Strict):
    """Weights of the loss parts, see :class:`~dynamicvit.core.losses.LossWeights`."""

    classification: float = Field(1.0, ge=0)
    distillation: float = Field(0.5, ge=0)
    token: float = Field(0.5, ge=0)
    feature: float = Field(0.0, ge=0)
    ratio: float = Field(2.0, ge=0)
    guidance: float = Field(0.0, ge=0)

    def weights(self) -> LossWeights:
        """The weights as the loss takes them."""
        return LossWeights(**self.model_dump())


class TeacherRecipe(Strict):
    """Whose logits the distillation loss looks at, and what it makes of them.

    Attributes:
        model: timm's name of a network, or a folder of transformers; a command's ``--teacher`` goes
            first. By default the backbone's own dense self.
        hard: learn the class that the teacher holds likeliest, not its probabilities (DeiT).
        temperature: that softens the probabilities.
    """

    model: str | None = None
    hard: bool = False
    temperature: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _fits_together(self) -> TeacherRecipe:
        if self.hard and self.temperature != 1.0:
            raise ValueError(f"hard has no use for temperature {self.temperature:g}: leave one out")
        return self

    def distillation(self) -> Distillation:
        """The loss of the logits."""
        if self.hard:
            return hard_distillation_loss
        return partial(distillation_loss, temperature=self.temperature)


class AugmentRecipe(Strict):
    """Augmentation, all of it timm's and by timm's names.

    Mixup and cutmix mix pairs of images: the teacher answers for the mixture, and labels, where
    they are learned from, are mixed alike. Smoothing is about labels alone.

    Attributes:
        scale: least and greatest share of an image's area that a crop has.
        hflip: probability of a mirror image.
        auto_augment: timm's description of one, or none.
        re_prob: probability of random erasing.
        mixup: alpha; 0 is none.
        cutmix: alpha; 0 is none. With both, chance decides.
        mixup_prob: probability of mixing at all.
        mixup_mode: whether that and how much is drawn for each "batch", "pair" or "elem" (image).
        smoothing: of labels.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = Field(0.5, ge=0, le=1)
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    re_prob: float = Field(0.25, ge=0, le=1)
    mixup: float = Field(0.8, ge=0)
    cutmix: float = Field(1.0, ge=0)
    mixup_prob: float = Field(1.0, ge=0, le=1)
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    smoothing: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _is_a_range(self) -> AugmentRecipe:
        least, greatest = self.scale
        if not 0 < least <= greatest <= 1:
            raise ValueError(f"scale must be two shares in (0, 1], ascending, got {self.scale}")
        return self

    def transform_arguments(self) -> dict[str, Any]:
        """What of it happens to single images, as timm's transform takes it."""
        return self.model_dump(include={"scale", "hflip", "auto_augment", "re_prob"})


class SegmentationRecipe(Strict):
    """What only segmentation has; the augmentation is torchvision's.

    Attributes:
        head: of a fresh one, "linear" or "mask".
        scale: least and greatest length that an image's short side is resized to, in crops.
        hflip: probability of a mirror image.
        photometric: probability of each change of brightness, contrast, saturation and hue.
        stride: from window to window of held-out images, in pixels; by default the window's side.
        ignore_index: of pixels without a class.
        reduce_labels: masks count classes from 1, and 0 is no class, as in ADE20K.
    """

    head: Literal["linear", "mask"] = "linear"
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    hflip: float = Field(0.5, ge=0, le=1)
    photometric: float = Field(0.5, ge=0, le=1)
    stride: PositiveInt | None = None
    ignore_index: int = Field(255, ge=0)
    reduce_labels: bool = False


class VideoRecipe(Strict):
    """What only clips have; how many frames is the model's to say.

    Attributes:
        stride: frames from one of a clip to the next; by default they are spread over the video.
    """

    stride: PositiveInt | None = None


class DenseRecipe(Strict):
    """How the dense model is fitted to classes that it does not have, before it is sparsified.

    First the fresh classifier learns alone, then all of the network.

    Attributes:
        images: the number of images to see; by default 20 times those that there are, of many fewer
            (:func:`~dynamicvit.training.dense.recipe_for`).
        batch_size: images in a step; fewer where there are fewer.
        learning_rate: of the classifier, at its peak.
        backbone_lr_scale: the rest's share of it.
        head_alone: share of the steps in which the classifier learns alone.
        optimizer: as for :class:`Recipe`, like all that follow.
        lr_decay: likewise.
        weight_decay: likewise.
        warmup: likewise.
        drop_path: likewise.
        augment: "mild", crops and mirror images alone; or "full", all that the recipe says.
    """

    images: int | None = Field(None, gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    backbone_lr_scale: float = Field(0.05, ge=0)
    head_alone: float = Field(0.2, ge=0, le=1)
    optimizer: Optimizer = "adamw"
    lr_decay: Decay = "cosine"
    weight_decay: float = Field(0.05, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1)
    augment: Literal["mild", "full"] = "mild"
