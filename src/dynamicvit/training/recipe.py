"""What a training run does, as values that check themselves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from dynamicvit.core.method import NO_GRADIENT, Masking
from dynamicvit.core.schedule import Policy
from dynamicvit.training.recipe_parts import (
    AugmentRecipe,
    Decay,
    DenseRecipe,
    LossRecipe,
    Optimizer,
    SegmentationRecipe,
    Strict,
    TeacherRecipe,
    VideoRecipe,
)

Decisions = Literal["independent", "top-k", "best-k"]


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
            default what the model was saved with, and "dynamicvit" for a new one, if the recipe is
            not a run's default.
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
        interpolate: how much of the way from the dense backbone's weights to the trained ones those
            lie that are saved (WiSE-FT, Wortsman et al., CVPR 2022): 1 saves what was trained.
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
        video: what only clips have.
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
    interpolate: float = Field(1.0, gt=0, le=1)
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
    video: VideoRecipe = VideoRecipe()
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
        if self.interpolate < 1:
            self._check_interpolates()
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

    def _check_interpolates(self) -> None:
        """Weights between need two ends."""
        if self.ema is not None:
            raise ValueError(f"interpolate {self.interpolate} needs ema=null: only one is saved")
        if self.freeze_backbone:
            raise ValueError(f"interpolate {self.interpolate} is for a backbone that learns")
        if not self.taught_by_dense_self:
            raise ValueError(
                f"interpolate {self.interpolate} needs the dense model among the teachers: weight "
                "losses.distillation, token, feature or guidance"
            )

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
