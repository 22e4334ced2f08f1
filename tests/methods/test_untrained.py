"""The word on untrained scores: once, where it is true, and never where it is not."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dynamicvit import DynamicViT, UntrainedWarning, count_macs, sparsify
from dynamicvit.core.networks import untrained_on_purpose
from dynamicvit.evaluation.bench import bench
from dynamicvit.methods import METHODS
from families import BY_NAME, DEIT, HF_FAMILIES

pytestmark = pytest.mark.filterwarnings("error::dynamicvit.UntrainedWarning")

IMAGES = DEIT.images()


def untrained(method: str = "dynamicvit", policy: str = "removed") -> DynamicViT:
    return sparsify(DEIT.backbone(), 0.7, policy=policy, method=method).eval()


def trained() -> DynamicViT:
    """After one step of AdamW."""
    model = untrained().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model(IMAGES).logits.square().sum().backward()
    optimizer.step()
    return model.eval()


class TestItIsSaid:
    @pytest.mark.parametrize("call", ["__call__", "forward_pruned"])
    @torch.no_grad()
    def test_once(self, call: str) -> None:
        model = untrained()
        with pytest.warns(UntrainedWarning) as said:
            getattr(model, call)(IMAGES)
        assert said[0].filename == __file__, "the user's own line"
        model(IMAGES)  # the warning is an error
        named = [name for name in METHODS if f'"{name}"' in str(said[0].message)]
        assert named
        assert all(METHODS[name].works_untrained for name in named)

    @pytest.mark.parametrize(
        "method", sorted(name for name, kind in METHODS.items() if not kind.for_clips)
    )
    @torch.no_grad()
    def test_of_methods_with_scores_to_train(self, method: str) -> None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            untrained(method)(IMAGES)
        assert bool(said) == (method in ("dynamicvit", "static"))

    def test_of_copies_and_what_was_saved_untrained(self, tmp_path: Path) -> None:
        untrained().save_pretrained(tmp_path)
        loaded = DynamicViT.from_pretrained(tmp_path)
        for model in (copy.deepcopy(untrained()), untrained().half().float(), loaded):
            with pytest.warns(UntrainedWarning):
                model(IMAGES)

    @pytest.mark.skipif(not HF_FAMILIES, reason="transformers is not installed")
    def test_of_a_model_of_transformers(self) -> None:
        family = BY_NAME["hf_vit"]
        with pytest.warns(UntrainedWarning):
            sparsify(family.backbone(), method="dynamicvit").eval()(family.images())


class TestItIsNotSaid:
    """The warning is an error in this file, so running is the assertion."""

    def test_after_a_step_whatever_comes_then(self, tmp_path: Path) -> None:
        model = trained()
        model.save_pretrained(tmp_path)
        save_file(model.state_dict(), tmp_path / "all.safetensors")
        by_hand = untrained()
        for name, value in by_hand.named_parameters():
            value.data.copy_(model.state_dict()[name])
        loaded = untrained()
        loaded.load_state_dict(load_file(tmp_path / "all.safetensors"))
        assigned = untrained()
        assigned.load_state_dict(model.state_dict(), assign=True)
        around = DynamicViT(model.backbone, model.schedule, list(model.predictors)).eval()
        pickled = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        for one in (
            *(model, copy.deepcopy(model), by_hand, loaded, assigned, around, pickled),
            DynamicViT.from_pretrained(tmp_path),
            copy.deepcopy(model).to(torch.bfloat16).float(),
        ):
            one(IMAGES)

    def test_of_static_places(self) -> None:
        model = untrained("static")
        for stage in model.predictors:
            stage.places.data += 0.1
        copy.deepcopy(model)(IMAGES)

    def test_with_adapters(self) -> None:
        """Whose own weights are what is trained (LoRA), around layers as initialized."""

        class Adapter(nn.Module):
            def __init__(self, base_layer: nn.Linear) -> None:
                super().__init__()
                self.base_layer = base_layer

            def forward(self, x: Tensor) -> Tensor:
                return self.base_layer(x)

        model = untrained()
        for stage in model.predictors:
            stage.project = Adapter(stage.project)
        model(IMAGES)

    def test_where_nothing_is_inferred(self) -> None:
        model = untrained()
        count_macs(model)
        model.forward_dense(IMAGES)
        model.forward_pruned(IMAGES, DEIT.decisions())
        model.train()(IMAGES)
        model.forward_pruned(IMAGES)  # in training
        model.keep_ratio = 1.0
        model.eval()(IMAGES)
        model.keep_ratio = 0.5
        torch.export.export(model.eval(), (IMAGES,))

    def test_of_times(self) -> None:
        model = untrained()
        bench(model, batch_sizes=(1,), precisions=("fp32",), threads=1, seconds=1e-6)
        with untrained_on_purpose(model):
            model(IMAGES)
        assert model.warns_untrained
