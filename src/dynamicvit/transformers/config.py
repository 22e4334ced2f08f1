"""The config of a DynamicViT that is a model of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from dynamicvit.core.hub import policy_in
from dynamicvit.core.schedule import Policy, Schedule

#: What a config says of the labels: kept in the backbone's config, whichever of the two is asked.
_LABELS = {"id2label", "label2id", "problem_type"}


class DynamicViTConfig(PretrainedConfig):
    """The backbone's config, and where and how much to drop.

    Every key of the backbone's config (``id2label``, ``hidden_size``, ``image_size``, ...) reads
    and writes the same here: it is stored once.

    Args:
        backbone_config: the dense model's, or its dictionary with ``model_type``; ViT's by default.
        keep_ratios: for each stage, which part of the original patches it keeps.
        stages: indices of the blocks before which tokens are dropped.
        policy: what becomes of dropped tokens, "removed" or "merged".
        method: a name in :data:`~dynamicvit.methods.METHODS`.
        **kwargs: what :class:`transformers.PretrainedConfig` takes.

    Raises:
        InputError: for ratios, stages or a policy that can't be.
    """

    model_type = "dynamicvit"

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        keep_ratios: Sequence[float] = (),
        stages: Sequence[int] = (),
        policy: Policy = "removed",
        method: str = "dynamicvit",
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone_config, PretrainedConfig):
            description = {"model_type": "vit", **(backbone_config or {})}
            backbone_config = AutoConfig.for_model(description.pop("model_type"), **description)
        if "dropped" in kwargs:  # as 0.1.0 wrote it
            policy = policy_in({"dropped": kwargs.pop("dropped")})
        schedule = Schedule(tuple(stages), tuple(keep_ratios), policy)
        # First of all and past __setattr__: the keys that follow are looked up in it.
        self.__dict__["backbone_config"] = backbone_config
        num_labels = kwargs.pop("num_labels", None)
        labels = {key: getattr(backbone_config, key) for key in _LABELS}
        super().__init__(**{**labels, **kwargs})
        self.keep_ratios = list(schedule.keep_ratios)
        self.stages = list(schedule.stages)
        self.policy = schedule.policy
        self.method = method
        if num_labels is not None:
            self.num_labels = num_labels

    def __getattribute__(self, key: str) -> Any:
        if key in _LABELS:
            return getattr(self.backbone_config, key)
        return super().__getattribute__(key)

    def __getattr__(self, key: str) -> Any:
        # Only asked for what is not found here; "_..." are the library's own notes on a config.
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
        """What ``config.json`` holds; not where the backbone was once loaded from."""
        described = super().to_diff_dict()
        described["backbone_config"].pop("_name_or_path", None)
        return described
