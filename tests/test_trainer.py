"""Trainers that take their loss from the labels keep the model's own loss."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor

from families import assert_agree

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

from dynamicvit.transformers import TrainerMixin  # noqa: E402
from dynamicvit.transformers.model import UnlabeledWarning  # noqa: E402
from test_huggingface import VIT, Scenes, sparse  # noqa: E402


class SparseTrainer(TrainerMixin, transformers.Trainer):
    pass


class OwnLoss(transformers.Trainer):
    """Squares of the labels' logits, and what the model says is left where it is."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs.logits.gather(1, inputs["labels"][:, None]).square().mean()
        return (loss, outputs) if return_outputs else loss


class SparseOwnLoss(TrainerMixin, OwnLoss):
    pass


def squares(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    return outputs.logits.gather(1, labels[:, None]).square().sum() / num_items_in_batch


def settings(folder: Path, accumulation: int = 1, smoothing: float = 0.0) -> Any:
    """One step on four images."""
    return transformers.TrainingArguments(
        str(folder),
        max_steps=1,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        label_smoothing_factor=smoothing,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
    )


@pytest.mark.parametrize(
    ("kind", "accumulation"), [("plain", 2), ("smoothing", 1), ("function", 2), ("method", 1)]
)
def test_trainer_keeps_the_loss_of_the_tokens(kind: str, accumulation: int, tmp_path: Path) -> None:
    model = sparse()
    model.distil_from(VIT.backbone(seed=7))
    arguments = settings(tmp_path, accumulation, 0.2 if kind == "smoothing" else 0.0)
    of = SparseOwnLoss if kind == "method" else SparseTrainer
    own = {"compute_loss_func": squares} if kind == "function" else {}
    run = of(model, arguments, train_dataset=Scenes(), **own)
    losses: list[float] = []
    seen: list[tuple[Tensor, Tensor]] = []
    step = type(model).forward

    def noted(pixel_values: Tensor, labels: Tensor | None = None) -> Any:
        output = step(model, pixel_values, labels)
        seen.append((output.logits.detach(), output.sparsity_loss.detach()))
        return output

    model.forward = noted
    compute = run.compute_loss

    def computed(*args: Any, **kwargs: Any) -> Any:
        labels = args[1]["labels"].clone()
        loss = compute(*args, **kwargs)
        (logits, rest), parts = seen[-1], 4 // accumulation
        given = logits.gather(1, labels[:, None]).square()
        task = {
            "plain": lambda: F.cross_entropy(logits, labels),
            "smoothing": lambda: F.cross_entropy(logits, labels, label_smoothing=0.2),
            "function": lambda: given.sum() / (parts * accumulation),
            "method": given.mean,
        }[kind]()
        rest = rest / accumulation if kind == "function" else rest
        assert rest > 0.01
        assert_agree(loss.detach(), task + rest)
        losses.append(loss.item())
        return loss

    run.compute_loss = computed
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnlabeledWarning)
        run.train()
    assert len(losses) == accumulation


def test_without_it_smoothing_is_told(tmp_path: Path) -> None:
    run = transformers.Trainer(sparse(), settings(tmp_path, smoothing=0.2), train_dataset=Scenes())
    with pytest.warns(UnlabeledWarning, match="TrainerMixin"):
        run.train()
