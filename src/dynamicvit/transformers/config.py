"""The config of a DynamicViT that is a model of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from dynamicvit.core.hub import policy_in
from dynamicvit.core.schedule import Policy, Schedule

#: Keys of a config about the labels, stored in the backbone's config.
_LABELS = {"id2label", "label2id", "problem_type"}


class DynamicViTConfig(PretrainedConfig):
    """The backbone's config, and the schedule.

    Every key of the backbone's config (``id2label``, ``hidden_size``, ``image_size``, ...) can be
    read and set here, but is stored there.

    Args:
        backbone_config: the dense model's, or its dictionary with ``model_type``; ViT's by default.
        keep_ratios: for each stage, the share of the original patches that it keeps.
        stages: indices of the blocks before which tokens are dropped.
        policy: for dropped tokens, "removed", "merged" or "bypassed".
        method: a name in :data:`~dynamicvit.methods.METHODS`.
        restore_before: index of the first block that runs on every patch again, or ``None``.
        decode_head: of a model for semantic segmentation, "linear" or "mask".
        **kwargs: of :class:`transformers.PretrainedConfig`.

    Raises:
        InputError: for invalid ratios, stages, policy or block to restore before.
    """

    model_type = "dynamicvit"

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        keep_ratios: Sequence[float] = (),
        stages: Sequence[int] = (),
        policy: Policy = "removed",
        method: str = "dynamicvit",
        restore_before: int | None = None,
        decode_head: str | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone_config, PretrainedConfig):
            description = {"model_type": "vit", **(backbone_config or {})}
            backbone_config = AutoConfig.for_model(description.pop("model_type"), **description)
        if "dropped" in kwargs:  # from version 0.1.0
            policy = policy_in({"dropped": kwargs.pop("dropped")})
        schedule = Schedule(tuple(stages), tuple(keep_ratios), policy, restore_before)
        # First, and not by __setattr__, which looks the other keys up in it.
        self.__dict__["backbone_config"] = backbone_config
        num_labels = kwargs.pop("num_labels", None)
        labels = {key: getattr(backbone_config, key) for key in _LABELS}
        super().__init__(**{**labels, **kwargs})
        self.keep_ratios = list(schedule.keep_ratios)
        self.stages = list(schedule.stages)
        self.policy = schedule.policy
        self.restore_before = schedule.restore_before
        self.method = method
        if decode_head is not None:
            self.decode_head = decode_head
        if num_labels is not None:
            self.num_labels = num_labels

    def __getattribute__(self, key: str) -> Any:
        if key in _LABELS:
            return getattr(self.backbone_config, key)
        return super().__getattribute__(key)

    def __getattr__(self, key: str) -> Any:
        # Called for what is not found here; transformers keeps notes of its own under "_...".
        if key.startswith("_") or "backbone_config" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {key!r}")
        return getattr(self.backbone_config, key)

    def __setattr__(self, key: str, value: Any) -> None:
        ours = key.startswith("_") or key in self.__dict__ or hasattr(type(self), key)
        if key in _LABELS or (not ours and hasattr(self.backbone_config, key)):
            setattr(self.backbone_config, key, value)
        else:
            super().__setattr__(key, value)

    def to_diff_dict(self) -> dict[str, Any]:
        """The entries of ``config.json``, without the path that the backbone was loaded from."""
        described = super().to_diff_dict()
        described["backbone_config"].pop("_name_or_path", None)
        return described
