"""What the models of Hugging Face transformers around a DynamicViT have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import Self

from dynamicvit.backbones.hf import classifier_from
from dynamicvit.backbones.hf_base import HFBackbone
from dynamicvit.core.method import Method
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.core.per_image import described, per_image_in
from dynamicvit.core.prediction import PredictionModule, init_weights
from dynamicvit.core.registry import registered_method
from dynamicvit.core.schedule import Policy, Schedule
from dynamicvit.transformers.config import DynamicViTConfig


class DynamicViTPreTrainedModel(PreTrainedModel):
    """A model of transformers around a :class:`~dynamicvit.DynamicViT`; its subclasses answer.

    Args:
        config: of backbone and schedule.
        dynamicvit: what is inside, if it is there already.

    Raises:
        InputError: for an unsupported backbone.
    """

    config_class = DynamicViTConfig
    config: DynamicViTConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # Attention is the core's own, so the choice has no effect.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: DynamicViTConfig, dynamicvit: DynamicViT | None = None) -> None:
        super().__init__(config)
        if dynamicvit is None:
            backbone = classifier_from(config.backbone_config)
            schedule = Schedule(
                tuple(config.stages),
                tuple(config.keep_ratios),
                config.policy,
                config.restore_before,
            )
            dynamicvit = self._built(backbone, schedule, registered_method(config.method))
            dynamicvit.per_image = per_image_in(vars(config))
        else:
            for module in dynamicvit.modules():
                module._is_hf_initialized = True  # or post_init would initialize it again
        self.dynamicvit = dynamicvit
        self.post_init()

    def _built(self, backbone: nn.Module, schedule: Schedule, method: type[Method]) -> DynamicViT:
        """What is inside, with fresh weights."""
        return DynamicViT(backbone, schedule, method)

    @classmethod
    def around(cls, model: nn.Module) -> Self:
        """A transformers model around a :class:`~dynamicvit.DynamicViT` of a transformers backbone.

        The backbone and its config are shared, not copied.
        """
        core = cast(DynamicViT, model)
        schedule = core.schedule
        config = DynamicViTConfig(
            core.backbone.config,
            schedule.keep_ratios,
            schedule.stages,
            schedule.policy,
            core.method.name,
            schedule.restore_before,
        )
        return cls(config, core).train(core.backbone.training)

    def _init_weights(self, module: nn.Module) -> None:
        # Of prediction modules only: the backbone, a transformers model, initializes its own.
        init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's patch embedding."""
        backbone = cast(PreTrainedModel, self.dynamicvit.backbone)
        return backbone.get_input_embeddings()

    # ---------------------------------------------------------------- budget

    @property
    def keep_ratio(self) -> float | None:
        """ρ; ``None`` when the stages' ratios are not ρ, ρ², ρ³, ...; set it as on the core."""
        return self.dynamicvit.keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, keep_ratio: float | Sequence[float]) -> None:
        self.dynamicvit.keep_ratio = keep_ratio
        self._note_schedule()

    @property
    def policy(self) -> Policy:
        """What becomes of dropped tokens; set it as on the core."""
        return self.dynamicvit.policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self.dynamicvit.policy = policy
        self._note_schedule()

    def _note_schedule(self) -> None:
        self.config.keep_ratios = list(self.dynamicvit.schedule.keep_ratios)
        self.config.stages = list(self.dynamicvit.schedule.stages)
        self.config.policy = self.dynamicvit.schedule.policy
        self.config.restore_before = self.dynamicvit.schedule.restore_before

    def forward_pruned(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = None
    ) -> PrunedOutput:
        """The pruned path, with the patches that each stage kept; arguments as in `forward`."""
        images = self._images(pixel_values, bool(interpolate_pos_encoding))
        return self.dynamicvit.forward_pruned(images)

    def _images(self, pixel_values: Tensor, interpolate: bool) -> Tensor:
        """The images in the precision of the weights, as transformers' dense models do."""
        backbone = self.dynamicvit.backbone
        bound = cast(HFBackbone, self.dynamicvit.bound)
        if pixel_values.ndim == 4:  # the core refuses others
            bound.check_image_size(*pixel_values.shape[2:], interpolate)
        dtype = next(backbone.parameters()).dtype
        if pixel_values.dtype == dtype or torch.is_autocast_enabled(pixel_values.device.type):
            return pixel_values
        return pixel_values.to(dtype)

    # ---------------------------------------------------------------- saving

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load what :meth:`save_pretrained` wrote, as transformers' models do."""
        older = {
            rf"(predictors\.\d+)\.{old}\.": rf"\1.{new}."
            for old, new in PredictionModule.old_names.items()
        }
        return super().from_pretrained(*args, **{"key_mapping": older, **kwargs})

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Write config and weights, as :meth:`transformers.PreTrainedModel.save_pretrained` does.

        Names on disk are those in memory, from which Trainer resumes and loads its best model.
        """
        self._note_schedule()
        self.config.per_image = described(self.dynamicvit.per_image)
        return super().save_pretrained(save_directory, **{"save_original_format": False, **kwargs})
