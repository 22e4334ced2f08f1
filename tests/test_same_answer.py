"""The same image keeps the same patches: alone, in a batch, in a thread, in a file; ties too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dynamicvit import DynamicViT, sparsify
from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.networks import core_of
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.core.schedule import Policy
from dynamicvit.layers.tokens import TIE, top_k
from dynamicvit.runtimes import load_exported
from exports import NOWHERE, ignore_deprecations, small
from families import BY_NAME, DEIT, POLICIES, Family, assert_agree, randomize

pytestmark = ignore_deprecations

#: Methods with stages of their own.
OWN = ("lookahead", "diffrate", "tome", "mctf", "downsample")

#: Methods whose answer is the image's alone, and their policies.
BOTH = POLICIES
METHODS = [(name, policy) for name in ("dynamicvit", "class-attention", "evit") for policy in BOTH]
METHODS += [(name, "removed") for name in ("static", "tps", *OWN)]


def model_of(method: str, policy: Policy, family: Family) -> DynamicViT:
    if method == "dynamicvit":
        return family.sparse(depth=2, stages=(0, 1), policy=policy)
    own = method in OWN
    stages = None if own else (1, 2)
    made = sparsify(family.backbone(4 if own else 3), 0.7, stages, policy, method=method)
    model = core_of(made)
    assert isinstance(model, DynamicViT)
    randomize(model.predictors)
    model.warns_untrained = False
    return model.eval()


def plain(family: Family) -> dict[str, Tensor]:
    """Images with ties, and one without: ``(1, 3, height, width)``."""
    random = torch.Generator().manual_seed(3)
    noise, (rows, columns), side = family.images(1, seed=5), family.grid, family.patch
    half = noise.clone()
    half[..., : family.size[0] // 2, :] = 0.37
    tile = torch.randn(1, 3, side, side, generator=random)
    return {
        "noise": noise,
        "black": torch.full_like(noise, -2.1),
        "gray": torch.full_like(noise, 0.37),
        "half": half,
        "tiles": tile.repeat(1, 1, rows, columns),
    }


@torch.inference_mode()
def run(model: PrunedClassifier, images: Tensor) -> PrunedOutput:
    return model.forward_pruned(images)


def assert_same(found: PrunedOutput, expected: PrunedOutput, name: str) -> None:
    for mine, other in zip(expected.kept, found.kept, strict=True):
        assert torch.equal(mine, other), name
    assert_agree(found.logits, expected.logits)


def in_a_batch(model: PrunedClassifier, images: dict[str, Tensor]) -> dict[str, PrunedOutput]:
    """What each gives among 31 others, each at another place."""
    batch = torch.randn(32, *next(iter(images.values())).shape[1:])
    places = {name: slice(7 * number, 7 * number + 1) for number, name in enumerate(images)}
    for name, at in places.items():
        batch[at] = images[name]
    output = run(model, batch)
    return {
        name: PrunedOutput(output.logits[at], tuple(k[at] for k in output.kept), (), output.grid)
        for name, at in places.items()
    }


def in_threads(work: Callable[[str], Any], names: list[str]) -> list[tuple[str, Any]]:
    """What two threads get that ask for the same things at the same time, in another order."""
    found, errors = [], []
    start = threading.Barrier(2)

    def ask(order: list[str]) -> None:
        try:
            start.wait()
            for name in order * 2:
                found.append((name, work(name)))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(order,)) for order in (names, names[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(found) == 4 * len(names)
    return found


# ---------------------------------------------------------------- ties


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_of_scores_that_tie_the_first_are_kept(data: st.DataObject) -> None:
    """Whatever rounding does to them, and to the others."""
    levels = data.draw(st.lists(st.sampled_from([-9.0, -1.0, 0.01, 0.5, 3.0]), min_size=1))
    k = data.draw(st.integers(0, len(levels)))
    exact = torch.tensor([levels])
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    rounding = 1 + 0.4 * TIE * (2 * torch.rand(exact.shape, generator=random) - 1)
    ranked = sorted(range(len(levels)), key=lambda place: -levels[place])  # sorted() is stable
    expected = sorted(ranked[:k])
    assert top_k(exact, k).tolist() == [expected]
    assert top_k(exact * rounding, k).tolist() == [expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_in_every_precision(dtype: torch.dtype) -> None:
    scores = torch.zeros(2, 5000, dtype=dtype)
    scores[:, -3:] = 1.0
    assert top_k(scores, 5).tolist() == [[0, 1, 4997, 4998, 4999]] * 2


@pytest.mark.parametrize("infinite", [-float("inf"), float("inf")])
def test_certain_scores_come_first_or_last(infinite: float) -> None:
    scores = torch.tensor([[infinite, 1.0, infinite, 2.0]])
    order = [3, 1, 0, 2] if infinite < 0 else [0, 2, 3, 1]
    assert [top_k(scores, k).tolist() for k in range(5)] == [[sorted(order[:k])] for k in range(5)]


# ---------------------------------------------------------------- alone, in a batch, in a thread


@pytest.mark.parametrize(("method", "policy"), METHODS)
@pytest.mark.parametrize(
    "family",
    [NOWHERE, pytest.param(BY_NAME["beit"], marks=pytest.mark.extended)],
    ids=lambda family: family.name,
)
def test_alone_in_a_batch_and_in_threads(method: str, policy: Policy, family: Family) -> None:
    model, images = model_of(method, policy, family), plain(family)
    alone = {name: run(model, image) for name, image in images.items()}
    for name, found in in_a_batch(model, images).items():
        assert_same(found, alone[name], name)
    for name, found in in_threads(lambda name: run(model, images[name]), [*images]):
        assert torch.equal(found.logits, alone[name].logits), name
        assert_same(found, alone[name], name)


def test_a_model_that_is_watched_takes_several_threads() -> None:
    """Hooks put the path in the place of the backbone's forward while it runs."""
    model, images = DEIT.sparse(), plain(DEIT)
    alone = {name: run(model, image).logits for name, image in images.items()}
    seen = []
    for module in (model.backbone, model.blocks[1]):
        module.register_forward_hook(lambda *call: seen.append(call[0]))
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    found = in_threads(lambda name: run(model, images[name]).logits, [*images])
    assert all(torch.equal(logits, alone[name]) for name, logits in found)
    assert len(seen) == 2 * len(found), "each call of each"
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()


# ---------------------------------------------------------------- in a file


@pytest.mark.parametrize(
    "name", ["onnx", "torch", pytest.param("openvino", marks=pytest.mark.extended)]
)
def test_in_a_file(name: str, exported: Callable[..., Path]) -> None:
    """Alone, in a batch, and in threads that share the file."""
    model, images = small("merged"), plain(NOWHERE)
    file = load_exported(exported(name, policy="merged"))
    alone = {each: run(model, image) for each, image in images.items()}
    for each, found in in_a_batch(file, images).items():
        assert_same(found, alone[each], each)
    for each, found in in_threads(lambda each: run(file, images[each]), [*images]):
        assert_same(found, alone[each], each)
