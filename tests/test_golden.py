"""Parts of both layouts against what the released implementation computed, in any clone.

``golden/record.py`` cut the recordings: DeiT from the last of three stages on, LV-ViT's first stage
and its last block, all losses. ``test_parity.py`` runs the whole networks where they are at hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dynamicvit import DynamicViT, Schedule
from dynamicvit.checkpoints.released import rename_released
from dynamicvit.core.losses import Losses, dynamicvit_loss
from dynamicvit.core.outputs import DenseOutput, MaskedOutput
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.layers.tokens import Tokens
from test_parity import played_back

CLOSE = {"atol": 1e-4, "rtol": 0.0}
GRID, N = (14, 14), 196
RATIOS = (0.7, 0.7**2, 0.7**3)


@dataclass(frozen=True)
class Cut:
    """The end of a recorded network.

    Attributes:
        name: of the recording.
        model: timm's name of the network.
        begin: the first of the recorded blocks.
        depth: of the whole network.
        keep_ratios: of the recorded stages.
    """

    name: str
    model: str
    begin: int
    depth: int
    keep_ratios: tuple[float, ...]

    def tensors(self) -> dict[str, Tensor]:
        return load_file(Path(__file__).parent / "golden" / f"{self.name}.safetensors")

    def ours(self, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """By the names that a network of the recorded blocks has."""
        named = {}
        for name, value in tensors.items():
            if name.startswith(prefix):
                name = re.sub(r"blocks\.(\d+)", self._renumbered, name.removeprefix(prefix))
                named[name.replace("score_predictor.2.", "score_predictor.0.")] = value
        return rename_released(named)

    def _renumbered(self, block: re.Match[str]) -> str:
        return f"blocks.{int(block[1]) - self.begin}"

    def network(self, tensors: dict[str, Tensor]) -> DynamicViT:
        """The recorded blocks; with the last stage before them, where that is recorded."""
        small = {"embed_dim": 48, "num_heads": 3, "num_classes": 10}
        backbone = timm.create_model(self.model, depth=self.depth - self.begin, **small)
        stages = range(len(self.keep_ratios))
        model = DynamicViT(backbone, Schedule(tuple(stages), self.keep_ratios))
        recorded = self.ours(tensors, "student.")
        state = {name: recorded.get(name, value) for name, value in model.state_dict().items()}
        assert {n for n in state if "blocks" in n or "predictors" in n} <= recorded.keys()
        model.load_state_dict(state)
        return model.eval()


DEIT = Cut("deit", "deit_tiny_patch16_224", begin=9, depth=12, keep_ratios=RATIOS[2:])
LVVIT = Cut("lvvit_s", "lvvit_s", begin=15, depth=16, keep_ratios=())

each_cut = pytest.mark.parametrize("cut", [DEIT, LVVIT], ids=lambda cut: cut.name)


@each_cut
def test_losses(cut: Cut) -> None:
    """Of what the released student and teacher gave."""
    tensors = cut.tensors()
    logits, tokens = tensors["train.logits"], tensors["train.tokens"]
    decisions = tuple(tensors[f"train.decision.{stage}"] for stage in range(3))
    output = MaskedOutput(
        logits,
        Tokens(tokens, 0, GRID, decision=decisions[-1]),
        decisions=decisions,
        keep_scores=(),
        grid=GRID,
        pooled=tokens,
        loss_logits=logits,
        patch_logits=tokens if cut is LVVIT else None,
    )
    check_losses(output, tensors)


@torch.no_grad()
def test_first_stage() -> None:
    tensors = LVVIT.tensors()
    module = PredictionModule(48)
    weights = LVVIT.ours(tensors, "student.")
    prefix = "predictors.0."
    module.load_state_dict(
        {n.removeprefix(prefix): v for n, v in weights.items() if n.startswith(prefix)}
    )
    pruned, scores = module.prune(Tokens(tensors["enter.first"], 0, GRID), 137)
    torch.testing.assert_close(F.logsigmoid(scores), tensors["eval.score.0"][:1], **CLOSE)
    assert torch.equal(pruned.kept(), places(tensors["eval.kept.0"][:1]))


@each_cut
@torch.no_grad()
def test_inference(cut: Cut) -> None:
    tensors = cut.tensors()
    entering = Tokens(tensors["enter.pruned"], 1, GRID, index=tensors["enter.index"])
    output = cut.network(tensors).forward_pruned(entering)
    torch.testing.assert_close(output.logits, tensors["eval.logits"], **CLOSE)
    if cut is DEIT:  # the released code holds tokens best first
        scores = F.logsigmoid(output.keep_scores[0]).gather(1, tensors["eval.kept.1"])
        torch.testing.assert_close(scores, tensors["eval.score.2"], **CLOSE)
        assert torch.equal(output.kept[0], places(tensors["eval.kept.2"]))


@each_cut
def test_training_losses_and_gradients(cut: Cut) -> None:
    tensors = cut.tensors()
    model = cut.network(tensors).train()
    decisions = tuple(tensors[f"train.decision.{stage}"] for stage in range(3))
    before = decisions[1] if cut is DEIT else decisions[2]
    output = model.forward_masked(
        Tokens(tensors["enter.masked"], 1, GRID, decision=before),
        sampler=played_back([tensors["train.draw.2"]] if cut is DEIT else []),
    )
    tokens = output.features.patches if output.patch_logits is None else output.patch_logits
    torch.testing.assert_close(output.loss_logits, tensors["train.logits"], **CLOSE)
    torch.testing.assert_close(tokens, tensors["train.tokens"], **CLOSE)
    assert torch.equal(output.features.decision, decisions[2])

    earlier = decisions[: 3 - len(output.decisions)]
    losses = check_losses(replace(output, decisions=earlier + output.decisions), tensors)
    losses.total.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    expected = cut.ours(tensors, "grad.")
    assert len(expected) == (12 if cut is DEIT else 1)
    for name, value in expected.items():
        error = (gradients[name] - value).norm() / value.norm()
        assert error < 1e-3, f"{name}: relative error {error:.1e}"


def check_losses(output: MaskedOutput, tensors: dict[str, Tensor]) -> Losses:
    """They are the released ones."""
    logits, tokens = tensors["teacher.logits"], tensors["teacher.tokens"]
    patch_logits = None if output.patch_logits is None else tokens
    teacher = DenseOutput(logits, Tokens(tokens, 0, GRID), tokens, logits, patch_logits)
    losses = dynamicvit_loss(output, RATIOS, labels=tensors["labels"], teacher=teacher)
    torch.testing.assert_close(losses.classification, tensors["loss.classification"], **CLOSE)
    torch.testing.assert_close(losses.distillation, tensors["loss.logit_kl"], **CLOSE)
    torch.testing.assert_close(losses.token, tensors["loss.token"], **CLOSE)
    torch.testing.assert_close(losses.ratio * 3, tensors["loss.ratio"], **CLOSE)
    torch.testing.assert_close(losses.total, tensors["loss.total"], **CLOSE)
    return losses


def places(index: Tensor) -> Tensor:
    """``(B, N)`` bool from ``(B, K)`` indices."""
    return torch.zeros(len(index), N, dtype=torch.bool).scatter(1, index, True)
