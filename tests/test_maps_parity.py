"""ConvNeXt and Swin with cheap paths against tensors that the released implementation computed.

Those recordings are not in the repository (tests/shared.py). Those of smaller networks in
``golden/`` run in any clone: ``golden/record_maps.py`` made them by a reference that gives all that
is in the large ones. The released training form carries two maps (tests/two_streams.py): where no
decision changes it computes what ours does, but gives the prediction modules another gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

import two_streams
from dynamicvit import DynamicViT
from dynamicvit.checkpoints.released import recognize
from dynamicvit.checkpoints.released.spatial import rename_spatial, spatial_layout
from shared import shared
from small_maps import SMALL, Small
from test_parity import played_back

CLOSE = {"atol": 1e-4, "rtol": 0.0}
CLASS = 3

Golden = dict[str, Tensor]


@pytest.fixture(scope="module", params=["dyconvnext", "dyswin", *SMALL.values()], ids=str)
def golden(request: pytest.FixtureRequest) -> Golden:
    if isinstance(request.param, Small):
        return request.param.recording()
    with safe_open(shared(f"golden/{request.param}_rho07.safetensors"), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {n: t.float() if t.dtype == torch.float16 else t for n, t in tensors.items()}


def part(golden: Golden, prefix: str) -> Golden:
    return {n.removeprefix(prefix): t for n, t in golden.items() if n.startswith(prefix)}


@pytest.fixture
def model(golden: Golden) -> DynamicViT:
    """Recognized by names and shapes alone."""
    model = recognize(part(golden, "model."), keep_ratio=0.7).build()
    tables = [t for n, t in golden.items() if n.endswith("relative_position_bias_table")]
    if tables:
        backbone: Any = model.backbone
        window = (math.isqrt(len(tables[0])) + 1) // 2
        backbone.set_input_size(img_size=golden["input"].shape[2:], window_size=window)
    return model


@torch.no_grad()
def test_inference(golden: Golden, model: DynamicViT) -> None:
    output = model.forward_pruned(golden["input"])
    torch.testing.assert_close(output.logits, golden["eval.logits"], **CLOSE)
    torch.testing.assert_close(model(golden["input"]), golden["eval.logits"], **CLOSE)
    for stage, scores in enumerate(output.keep_scores):
        torch.testing.assert_close(F.logsigmoid(scores), golden[f"eval.score.{stage}"], **CLOSE)
        assert torch.equal(output.kept_index[stage], golden[f"eval.kept.{stage}"].long())


@torch.no_grad()
def test_a_batch_of_two(golden: Golden, model: DynamicViT) -> None:
    """With which the released Swin fails."""
    two = model(golden["input"][:2])
    torch.testing.assert_close(two, golden["eval.logits"][:2], **CLOSE)


def errors(golden: Golden, model: DynamicViT, logits: Tensor) -> dict[str, float]:
    """Relative errors of the gradients of the sum of a class's log-probability, by our names."""
    logits.log_softmax(dim=-1)[:, CLASS].sum().backward()
    layout = spatial_layout(part(golden, "model."))
    assert layout is not None
    recorded = rename_spatial(part(golden, "grad."), model.state_dict(), layout)
    found = {name: value.grad for name, value in model.named_parameters()}
    return {
        name: ((found[name] - value).norm() / value.norm()).item()
        for name, value in recorded.items()
    }


def test_the_released_training_form(golden: Golden, model: DynamicViT) -> None:
    """Everything recorded, the gradients of the prediction modules too."""
    draws = [golden["train.draw"]] * 3
    logits, features = two_streams.forward(model, golden["input"], draws)
    torch.testing.assert_close(logits, golden["train.logits"], **CLOSE)
    torch.testing.assert_close(features, golden["train.features"], **CLOSE)
    found = errors(golden, model, logits)
    assert sum("mlp.4" in name for name in found) == 3
    assert sum("cheap" in name for name in found) == model.depth - 1
    assert max(found.values()) < 1e-3, found


def test_training_in_one_map(golden: Golden, model: DynamicViT) -> None:
    """The same logits and features; the same gradients where no score lies behind."""
    draws = [golden["train.draw"]] * 3
    output = model.forward_masked(golden["input"], sampler=played_back(draws))
    torch.testing.assert_close(output.logits, golden["train.logits"], **CLOSE)
    torch.testing.assert_close(output.features.patches, golden["train.features"], **CLOSE)
    found = errors(golden, model, output.logits)
    last = [name for name in found if name.startswith("predictors.2.cheap")]
    assert len(last) == model.depth - 3
    assert max(found[name] for name in last) < 1e-3, found


def test_weights_get_the_same_gradient_in_one_map(golden: Golden, model: DynamicViT) -> None:
    """Of a decision that is given: all weights as in the released form."""
    draws, gradients = [golden["train.draw"]] * 3, []
    for run in (
        lambda images: two_streams.forward(model, images, draws, learns=False)[0],
        lambda images: model.forward_masked(images, draws).logits,
    ):
        model.zero_grad()
        run(golden["input"]).log_softmax(dim=-1)[:, CLASS].sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 100
    for name, released in gradients[0].items():
        assert (gradients[1][name] - released).norm() < 1e-3 * released.norm() + 1e-6, name


def test_the_decision_s_slope_says_what_inference_does(golden: Golden, model: DynamicViT) -> None:
    """Flips at inference against the derivative: well in one map, hardly in the released form."""
    random = torch.Generator().manual_seed(0)
    shape = golden["train.draw"].shape
    draws = [(torch.rand(shape, generator=random) < share).float() for share in (0.7, 0.5, 0.3)]

    def slopes(logits: Callable[[list[Tensor]], Tensor]) -> list[Tensor]:
        decisions = [draw.clone().requires_grad_() for draw in draws]
        answer = logits(decisions).log_softmax(dim=-1)[:, CLASS].sum()
        return list(torch.autograd.grad(answer, decisions))

    ours = slopes(lambda d: model.forward_masked(golden["input"], d).logits)
    released = slopes(lambda d: two_streams.forward(model, golden["input"], d, learns=False)[0])

    @torch.no_grad()
    def answered(decisions: list[Tensor]) -> Tensor:
        logits = model.forward_pruned(golden["input"], decisions).logits
        return logits.log_softmax(dim=-1)[:, CLASS]

    before, found = answered(draws), []
    for position in range(0, shape[1], shape[1] // 14):
        flipped = [draw.clone() for draw in draws]
        step = 1 - 2 * flipped[0][:, position]
        flipped[0][:, position] += step
        parts = (answered(flipped) - before, *(s[0][:, position] * step for s in (ours, released)))
        found.append(torch.stack(parts))
    change, one_map, two_maps = torch.cat(found, dim=1)
    assert torch.corrcoef(torch.stack([change, one_map]))[0, 1] > 0.9
    assert torch.corrcoef(torch.stack([change, two_maps]))[0, 1] < 0.6
