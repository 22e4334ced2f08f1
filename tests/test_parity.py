"""Both layouts against tensors that the released implementation computed.

Inference, training, each loss and the gradients, with the same weights and the same draws. The
recordings of whole networks are not in the repository; ``test_golden.py`` runs parts of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from dynamicvit import DynamicViT, Schedule, sparsify
from dynamicvit.checkpoints.released import rename_released
from dynamicvit.core.losses import dynamicvit_loss
from shared import shared

CLOSE = {"atol": 1e-4, "rtol": 0.0}
N = 196


@dataclass(frozen=True)
class Golden:
    """A recorded network: its tensors, and how to build it.

    Attributes:
        tensors: by name, see the README beside the files.
        model: timm's name of the dense network.
        depth: number of blocks.
    """

    tensors: dict[str, Tensor]
    model: str
    depth: int

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in self.tensors.items()
            if name.startswith(prefix)
        }

    def backbone(self) -> nn.Module:
        return timm.create_model(
            self.model, embed_dim=48, num_heads=3, depth=self.depth, num_classes=10
        )

    def student(self) -> DynamicViT:
        model = sparsify(self.backbone(), keep_ratio=0.7, policy="removed", method="dynamicvit")
        model.load_state_dict(rename_released(self.part("student.")))
        return model.eval()

    def teacher(self) -> DynamicViT:
        backbone = self.backbone()
        state = self.part("teacher.")
        recorded = {"logits", "tokens"}
        backbone.load_state_dict({n: value for n, value in state.items() if n not in recorded})
        return DynamicViT(backbone, Schedule((), ())).eval()


@pytest.fixture(
    scope="module",
    params=[("deit_rho07", "deit_tiny_patch16_224", 12), ("lvvit_s_rho07", "lvvit_s", 16)],
    ids=["deit", "lvvit"],
)
def golden(request: pytest.FixtureRequest) -> Golden:
    name, model, depth = request.param
    with safe_open(shared(f"golden/{name}.safetensors"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return Golden(tensors, model, depth)


@torch.no_grad()
def test_inference(golden: Golden) -> None:
    output = golden.student().forward_pruned(golden["input"])
    torch.testing.assert_close(output.logits, golden["eval.logits"], **CLOSE)
    held = torch.arange(N).expand(2, -1)  # the released code holds tokens best first
    for stage, (survived, scores) in enumerate(zip(output.kept, output.keep_scores, strict=True)):
        expected = golden[f"eval.score.{stage}"]
        torch.testing.assert_close(F.logsigmoid(scores).gather(1, held), expected, **CLOSE)
        held = golden[f"eval.kept.{stage}"]
        kept = torch.zeros(2, N, dtype=torch.bool).scatter(1, held, True)
        assert torch.equal(survived, kept)


@torch.no_grad()
def test_teacher(golden: Golden) -> None:
    dense = golden.teacher().forward_dense(golden["input"])
    tokens = dense.features.patches if dense.patch_logits is None else dense.patch_logits
    torch.testing.assert_close(dense.loss_logits, golden["teacher.logits"], **CLOSE)
    torch.testing.assert_close(tokens, golden["teacher.tokens"], **CLOSE)


def test_training_losses_and_gradients(golden: Golden) -> None:
    student = golden.student().train()
    sampler = played_back([golden[f"train.draw.{stage}"] for stage in range(3)])
    output = student.forward_masked(golden["input"], sampler=sampler)
    tokens = output.features.patches if output.patch_logits is None else output.patch_logits
    torch.testing.assert_close(output.loss_logits, golden["train.logits"], **CLOSE)
    torch.testing.assert_close(tokens, golden["train.tokens"], **CLOSE)
    for stage, decision in enumerate(output.decisions):
        torch.testing.assert_close(decision, golden[f"train.decision.{stage}"], **CLOSE)
    assert torch.equal(output.features.decision, golden["train.final_mask"][..., 0])

    with torch.no_grad():
        dense = golden.teacher().forward_dense(golden["input"])
    losses = dynamicvit_loss(
        output, student.schedule.keep_ratios, labels=golden["labels"], teacher=dense
    )
    torch.testing.assert_close(losses.classification, golden["loss.classification"], **CLOSE)
    torch.testing.assert_close(losses.distillation, golden["loss.logit_kl"], **CLOSE)
    torch.testing.assert_close(losses.token, golden["loss.token"], **CLOSE)
    torch.testing.assert_close(losses.ratio * 3, golden["loss.ratio"], **CLOSE)
    torch.testing.assert_close(losses.total, golden["loss.total"], **CLOSE)

    losses.total.backward()
    gradients = {name: parameter.grad for name, parameter in student.named_parameters()}
    expected = rename_released(golden.part("grad."))
    assert len(expected) > 30
    for name, value in expected.items():
        error = (gradients[name] - value).norm() / value.norm()
        assert error < 1e-3, f"{name}: relative error {error:.1e}"


def played_back(draws: list[Tensor]) -> Callable[[Tensor, Tensor, int], Tensor]:
    """A sampler that gives recorded draws, with the gradient of the keep probability."""
    remaining = iter(draws)

    def sample(keep_scores: Tensor, decision: Tensor, k: int) -> Tensor:
        del decision, k
        probability = keep_scores.sigmoid()
        return next(remaining) + (probability - probability.detach())

    return sample
