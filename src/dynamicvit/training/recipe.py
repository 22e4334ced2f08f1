"""What a training run does, as values that check themselves."""

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
from dynamicvit.core.method import NO_GRADIENT, Masking
from dynamicvit.core.schedule import Policy
from dynamicvit.utils.fields import MOST_COUNT, MOST_OF_RECIPES

Decisions = Literal["independent", "top-k", "best-k"]
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


class Recipe(Strict):
    """A training run; the defaults are the released code's, as the recipe deit_small has them.

    Attributes:
        task: "classification", one class an image; or "segmentation", one class a pixel.
        model: timm's name of the backbone; a command's ``--model`` goes first.
        keep_ratio: ρ, or one ratio for each stage.
        budgets: least and greatest ρ that training steps are spread over, for one model that serves
            any budget between them; by default every step has keep_ratio.
        stages: block indices; by default at 1/4, 2/4 and 3/4 of the depth.
        method: how a dense model chooses tokens, a name in :data:`~dynamicvit.methods.METHODS`; by
            default what the model was saved with, and "dynamicvit" for a new one.
        policy: what becomes of dropped tokens: "removed", "merged" into the most alike kept one,
            "bypassed", or "cheap" of ConvNeXt and Swin; by default the saved or the method's own.
        restore_before: index of the block before which bypassed tokens come back, and merged ones
            are patches again; by default after the last block, and never.
        image_size: side in pixels, or height and width; by default the model's own.
        epochs: how long; or
        images: the number of images to see instead of epochs.
        batch_size: images in a step.
        learning_rate: of the prediction modules, at its peak.
        backbone_lr_scale: the backbone's share of it.
        freeze_backbone: only the prediction modules learn; the backbone stays as it is, to the bit,
            and is its own dense teacher.
        backbone_frozen: share of the run in which the backbone does not learn (5 of 30 epochs).
        warmup: share of the run in which the learning rate rises.
        min_learning_rate: where the decay ends.
        optimizer: "adamw", or "sgd" with a momentum of 0.9.
        lr_decay: "cosine", or "poly": by a power of 0.9, as segmentation models are trained.
        weight_decay: not for biases, norms and position embeddings.
        clip_grad: largest gradient norm, or none.
        ema: decay of the averaged weights, which are the ones that are saved; or none.
        drop_path: stochastic depth of the backbone.
        decisions: "independent" draws each token for itself, as the paper does; "top-k" draws as
            many as inference keeps, so that no ratio loss is needed; "best-k" does not draw but
            keeps those that inference keeps.
        masking: when dropped tokens leave memory: "full", "lagged", "compact" or "zeroed"; see
            :meth:`~dynamicvit.core.model.DynamicViT.forward_masked`.
        share_first_blocks: leave the blocks before the first stage as they are and run them once
            for student and teacher: where nothing has been dropped yet, the dense weights are
            right.
        guided: share of the images on which the guidance loss looks; the others count as zero in
            its mean. It takes the teacher's backward pass, as much again as its answer.
        losses: weights of the loss parts. Without classification no labels are needed.
        teacher: whose logits are distilled, and how; the other parts that need a teacher have the
            backbone's own dense self.
        augment: what happens to images.
        frozen: parameters of the backbone that never learn.
        fresh: parameters of the backbone that learn at the full rate from the start: those of a
            new classifier.
        dense: how the dense model is fitted to the images' classes first, if it has others.
        segmentation: what only segmentation has. Its crops are of the image size.
        hold_out: share of the training images to keep aside and evaluate on, after each epoch
            (in long runs after some): top-1 if they have labels, else agreement with the dense
            network. The best checkpoint is told by it.
        seed: of everything.
    """

    task: Literal["classification", "segmentation"] = "classification"
    model: str | None = None
    keep_ratio: float | tuple[float, ...] = 0.7
    budgets: tuple[float, float] | None = None
    stages: tuple[int, ...] | None = None
    method: str | None = None
    policy: Policy | None = None
    restore_before: int | None = Field(None, ge=0)
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    epochs: int | None = Field(None, gt=0)
    images: int | None = Field(None, gt=0)
    batch_size: int = Field(1024, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    backbone_lr_scale: float = Field(0.01, ge=0)
    freeze_backbone: bool = False
    backbone_frozen: float = Field(5 / 30, ge=0, le=1)
    warmup: float = Field(5 / 30, ge=0, lt=1)
    min_learning_rate: float = Field(1e-6, ge=0)
    optimizer: Optimizer = "adamw"
    lr_decay: Decay = "cosine"
    weight_decay: float = Field(0.05, ge=0)
    clip_grad: float | None = Field(None, gt=0)
    ema: float | None = Field(0.9999, gt=0, lt=1)
    drop_path: float = Field(0.0, ge=0, lt=1)
    decisions: Decisions = "independent"
    masking: Masking = "full"
    share_first_blocks: bool = False
    guided: float = Field(1.0, gt=0, le=1)
    losses: LossRecipe = LossRecipe()
    teacher: TeacherRecipe = TeacherRecipe()
    augment: AugmentRecipe = AugmentRecipe()
    frozen: tuple[str, ...] = ("cls_token", "pos_embed")
    fresh: tuple[str, ...] = ()
    dense: DenseRecipe = DenseRecipe()
    segmentation: SegmentationRecipe = SegmentationRecipe()
    hold_out: float = Field(0.0, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=1 << 63)

    @property
    def scores_are_probabilities(self) -> bool:
        """Whether training keeps a patch as often as its keep score says.

        Otherwise only the order of the scores decides, and nothing holds their level.
        """
        return self.decisions == "independent"

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if (self.epochs is None) == (self.images is None):
            raise ValueError("give either epochs or images (how many to see)")
        if self.share_first_blocks and self.drop_path:
            raise ValueError(
                "share_first_blocks needs drop_path 0: the teacher must not see dropped paths"
            )
        if self.freeze_backbone and (self.drop_path or self.fresh):
            what = "fresh parameters" if self.fresh else f"drop_path {self.drop_path}"
            raise ValueError(f"{what}: these are for a backbone that learns; freeze_backbone is on")
        if self.masking in ("lagged", *NO_GRADIENT) and self.decisions == "independent":
            raise ValueError(
                f"masking: {self.masking} needs decisions that keep as many tokens of each image: "
                "top-k or best-k"
            )
        if self.budgets is not None:
            least, greatest = self.budgets
            if not 0 < least <= greatest <= 1:
                raise ValueError(
                    f"budgets must be two keep ratios in (0, 1], ascending, got {self.budgets}"
                )
            if self.decisions == "independent":
                raise ValueError(
                    "budgets need decisions that keep as many tokens as a budget says: top-k or "
                    "best-k, got independent"
                )
        if self.task == "segmentation" and (self.augment.mixup or self.augment.cutmix):
            raise ValueError("task segmentation: masks can't be mixed, so mixup and cutmix are 0")
        if self.stages == ():
            raise ValueError("stages: at least one is needed to drop anything")
        if self.masking in NO_GRADIENT and not self.losses.guidance:
            raise ValueError(
                f"masking: {self.masking} gives the decisions no gradient: set losses.guidance "
                "as well"
            )
        if not any(vars(self.losses).values()):
            raise ValueError("losses: every weight is 0, so there is nothing to learn")
        return self

    @property
    def taught_by_dense_self(self) -> tuple[str, ...]:
        """The parts of the loss with a weight that look at the backbone's own dense self."""
        logits = ("distillation",) if self.teacher.model is None else ()
        names = (*logits, "token", "feature", "guidance")
        return tuple(name for name in names if getattr(self.losses, name))

    @property
    def asks_external_teacher(self) -> bool:
        """Whether the loss looks at the logits of another network."""
        return self.teacher.model is not None and self.losses.distillation > 0
