"""What keeps the model's own loss in a Trainer that computes another one from the labels."""

from __future__ import annotations

import warnings
from typing import Any

from dynamicvit.transformers.model import UnlabeledWarning


class TrainerMixin:
    """Adds distillation, token and ratio losses where Trainer takes its loss from the labels.

    With label smoothing, ``compute_loss_func`` or a ``compute_loss`` of its own, Trainer drops the
    loss that the model gives. Before any Trainer, this adds the parts that need no labels::

        class Trainer(TrainerMixin, transformers.Trainer): ...

    A loss of one's own gives the part of the labels, computed from the logits.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The loss that the next Trainer computes, with the model's other parts."""
        trainer: Any = super()
        with warnings.catch_warnings():  # where labels go is known here
            warnings.simplefilter("ignore", UnlabeledWarning)
            loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True, **kwargs)
        rest = outputs.get("sparsity_loss") if isinstance(outputs, dict) else None
        if rest is not None and loss is not outputs.get("loss"):
            loss = loss + (rest / self._accumulation if self._is_scaled else rest)
        return (loss, outputs) if return_outputs else loss

    @property
    def _is_scaled(self) -> bool:
        """Whether Trainer takes the loss as a share of the accumulated batches."""
        trainer: Any = self
        said = getattr(trainer, "loss_is_scaled_for_ga", None)
        return trainer.compute_loss_func is not None if said is None else said

    @property
    def _accumulation(self) -> int:
        return getattr(self, "current_gradient_accumulation_steps", 1)
