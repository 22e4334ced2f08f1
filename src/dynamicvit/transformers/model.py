"""A DynamicViT as a model of Hugging Face transformers: for its pipelines, Trainer and configs."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from dynamicvit.core.losses import LossWeights, dynamicvit_loss
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import own_image_size
from dynamicvit.core.outputs import MaskedOutput
from dynamicvit.core.teacher import ask, dense_teacher, warn_if_fresh_classifier, weigh_patches
from dynamicvit.errors import InputError
from dynamicvit.transformers.base import DynamicViTPreTrainedModel
from dynamicvit.transformers.config import DynamicViTConfig


class UnlabeledWarning(UserWarning):
    """A model that should learn from labels is trained, and gets none."""


@dataclass
class ClassifierOutput(ImageClassifierOutput):
    """transformers' output, with what a loss of the labels alone leaves out.

    Attributes:
        sparsity_loss: in ``train()``, the weighted parts that need no labels: ratio, and with a
            teacher distillation and tokens. ``loss`` has them too.
    """

    sparsity_loss: torch.FloatTensor | None = None


class DynamicViTForImageClassification(DynamicViTPreTrainedModel):
    """An image classifier of transformers that drops the patches it does not need.

    In ``eval()`` its output is the dense model's, computed on the pruned path. In ``train()`` the
    loss is the paper's (Eq. 16): classification and ratio, and with a teacher
    (:meth:`distil_from`) distillation and tokens.

    Args:
        config: of backbone and schedule.

    Attributes:
        dynamicvit: the :class:`~dynamicvit.DynamicViT` inside, with the backbone.
        loss_weights: of the training loss's parts.

    Raises:
        InputError: for an unsupported backbone.
    """

    #: The loss is a mean over the batch: Trainer divides it by its accumulation steps.
    accepts_loss_kwargs = False
    #: Whether its inputs are clips.
    takes_clips = False

    def __init__(self, config: DynamicViTConfig, dynamicvit: DynamicViT | None = None) -> None:
        super().__init__(config, dynamicvit)
        if self.dynamicvit.bound.reads_map:
            raise InputError(
                "the model segments images: load it by DynamicViTForUniversalSegmentation, or by "
                "AutoModelForUniversalSegmentation"
            )
        if (self.dynamicvit.bound.frames is not None) != self.takes_clips:
            right = "Image" if self.takes_clips else "Video"
            raise InputError(
                f"the model classifies {'images' if self.takes_clips else 'clips'}: load it by "
                f"DynamicViTFor{right}Classification, or by AutoModelFor{right}Classification"
            )
        self.loss_weights = LossWeights()
        self._warned = False
        self._teacher: tuple[DynamicViT, ...] = ()  # in a tuple: neither saved nor trained

    # ---------------------------------------------------------------- forward

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ClassifierOutput | tuple[Tensor, ...]:
        """Logits, and the loss if there are labels or, in training, a teacher.

        Args:
            pixel_values: ``(B, channels, height, width)``.
            labels: as the dense model takes them, by ``config.problem_type``.
            interpolate_pos_encoding: take images of another size than the config's.
            output_attentions: not supported: no tensor holds all tokens.
            output_hidden_states: likewise.
            return_dict: ``False`` for a tuple; by default the config's.

        Returns:
            In ``train()`` from the masked path with the loss of Eq. 16, in ``eval()`` from the
            pruned path with the loss of the task.

        Raises:
            InputError: for missing or unsuitable images, or unsupported arguments.
        """
        config = self.config
        if pixel_values is None:
            raise InputError("pixel_values must be given")
        for argument, default in (
            (output_attentions, config.output_attentions),
            (output_hidden_states, config.output_hidden_states),
        ):
            if default if argument is None else argument:
                raise InputError(
                    "output_attentions and output_hidden_states are not supported, as tokens are "
                    "dropped between blocks; forward_pruned reports the kept patches"
                )
        images = self._images(pixel_values, bool(interpolate_pos_encoding))
        if self.training:
            masked = self.dynamicvit.forward_masked(images)
            logits, rest = masked.logits, self._sparsity_loss(masked, images)
        else:
            logits, rest = self.dynamicvit(images), None
        loss = None if labels is None else self.loss_function(labels, logits, config)
        if rest is not None and labels is None:
            self._warn_if_unlabeled()
            loss = rest if self._teacher else None
        elif rest is not None and loss is not None:
            loss = self.loss_weights.classification * loss + rest
        output = ClassifierOutput(loss=loss, logits=logits, sparsity_loss=rest)
        named = config.return_dict if return_dict is None else return_dict
        return output if named else output.to_tuple()

    # ---------------------------------------------------------------- loss

    def distil_from(self, teacher: nn.Module | None = None) -> None:
        """Distill from a dense model: its logits and final tokens enter the loss (Eq. 13-14).

        Args:
            teacher: a transformers model of the same width, classes and patches, usually the one
                that this model was made from; by default the backbone as it is now. A copy is kept,
                which is neither trained nor saved.

        Raises:
            InputError: if it does not fit.
        """
        core = self.dynamicvit
        dense = DynamicViT(core.backbone if teacher is None else teacher, core.schedule)
        size = own_image_size(core)
        for what, of in (
            ("classes", lambda model: model.num_classes),
            ("features", lambda model: model.num_features),
            ("patches", lambda model: model.bound.grid(*size)),
        ):
            if of(core) != of(dense):
                raise InputError(f"the teacher has {of(dense)} {what}, but this model {of(core)}")
        warn_if_fresh_classifier(dense)
        self._teacher = (dense_teacher(dense),)

    def _sparsity_loss(self, output: MaskedOutput, images: Tensor) -> Tensor:
        """The weighted sum of the parts that need no labels."""
        weights, dense = self.loss_weights, None
        rest = LossWeights(classification=0.0, distillation=0.0, token=0.0, ratio=weights.ratio)
        if self._teacher:
            problem = self.config.problem_type
            if weights.distillation and problem not in (None, "single_label_classification"):
                raise InputError(
                    f"problem_type is {problem!r}, but distillation compares class probabilities; "
                    f"set loss_weights = LossWeights(distillation=0), or no teacher"
                )
            teacher = self._teacher[0].to(images.device, images.dtype)
            dense = (weigh_patches if weights.guidance else ask)(teacher, images)
            rest = dataclasses.replace(weights, classification=0.0)
        ratios = self.dynamicvit.schedule.keep_ratios
        return dynamicvit_loss(output, ratios, teacher=dense, weights=rest).total

    def _warn_if_unlabeled(self) -> None:
        """Once, where a classification loss has a weight."""
        if (
            self.loss_weights.classification
            and not self._warned
            and not torch.compiler.is_compiling()
        ):
            self._warned = True
            warnings.warn(
                "no labels reach the model in training, so its loss has no classification part. A "
                "Trainer that keeps them for a loss of its own (label smoothing, compute_loss) "
                "also drops distillation and ratio: put dynamicvit.transformers.TrainerMixin "
                "before it. To train without labels, set loss_weights = LossWeights("
                "classification=0)",
                UnlabeledWarning,
                stacklevel=3,
            )


AutoConfig.register(DynamicViTConfig.model_type, DynamicViTConfig, exist_ok=True)
AutoModelForImageClassification.register(
    DynamicViTConfig, DynamicViTForImageClassification, exist_ok=True
)
