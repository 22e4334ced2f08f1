"""PEFT: LoRA on the backbone, with the classifier, or prediction modules too, trained whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dynamicvit import DynamicViT, TrainingObjective, load
from families import BY_NAME, assert_agree

peft = pytest.importorskip("peft", reason="peft is not installed")

PREDICTORS = ["predictors.0", "predictors.1", "predictors.2"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # the base model has no name on the Hub
@pytest.mark.parametrize(
    ("name", "targets", "whole"),
    [
        ("deit", ["qkv", "proj"], ["head"]),
        ("deit", ["qkv"], ["head", *PREDICTORS]),
        ("deit", ["fc1"], ["head", "predictors.0.mlp"]),
        ("deit", "all-linear", ["head"]),
        pytest.param("lvvit", ["qkv"], ["head"], marks=pytest.mark.extended),
        ("hf_vit", ["q_proj", "v_proj"], ["classifier"]),
    ],
)
def test_lora_trains_saves_and_merges(
    name: str, targets: list[str] | str, whole: list[str], tmp_path: Path
) -> None:
    if name not in BY_NAME:
        pytest.skip("transformers is not installed")
    family = BY_NAME[name]
    model, images, labels = family.sparse(), family.images(), torch.tensor([1, 2])
    with torch.no_grad():
        before = model(images)
    config = peft.LoraConfig(target_modules=targets, modules_to_save=whole, r=4)
    adapted = peft.get_peft_model(model, config)
    learns = {n for n, value in model.named_parameters() if value.requires_grad}
    assert all("lora" in n or "modules_to_save" in n for n in learns)
    of_predictors = targets == "all-linear" or any("predictors" in each for each in whole)
    assert any("predictors" in n for n in learns) == of_predictors
    with torch.no_grad():
        assert_agree(adapted.eval()(images), before)
    objective = TrainingObjective(model).train()
    learned = [value for value in adapted.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=0.01)
    for _ in range(2):
        objective(images, labels).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.keep_ratio = 0.5
    with torch.no_grad():
        after = adapted.eval()(images)
        assert not torch.allclose(after, before, atol=1e-2)
        adapted.save_pretrained(tmp_path / "adapter")
        again = peft.PeftModel.from_pretrained(family.sparse(0.5), tmp_path / "adapter").eval()
        assert_agree(again(images), after)
        merged = again.merge_and_unload()
        assert type(merged) is DynamicViT
        assert_agree(merged(images), after, 1e-4)
        merged.save_pretrained(tmp_path / "merged")
        assert_agree(DynamicViT.from_pretrained(tmp_path / "merged")(images), merged(images))


@pytest.mark.parametrize("name", ["deit", "hf_vit"])
@torch.no_grad()
def test_files_in_which_the_mlp_is_called_head(name: str, tmp_path: Path) -> None:
    """Of 0.1.0, when prediction modules had a child of the classifier's name."""
    if name not in BY_NAME:
        pytest.skip("transformers is not installed")
    family = BY_NAME[name]
    model, images = family.sparse(), family.images()
    model.save_pretrained(tmp_path)
    old = aged(tmp_path / "model.safetensors")
    assert torch.equal(DynamicViT.from_pretrained(tmp_path)(images), model(images))
    assert torch.equal(load(tmp_path)(images), model(images))
    other = family.sparse(seed=3)
    other.load_state_dict(old)
    assert torch.equal(other(images), model(images))
    if name == "hf_vit":
        from dynamicvit.transformers import DynamicViTForImageClassification

        DynamicViTForImageClassification.around(model).save_pretrained(tmp_path / "hf")
        aged(tmp_path / "hf" / "model.safetensors")
        assert torch.equal(load(tmp_path / "hf")(images), model(images))


def aged(file: Path) -> dict[str, torch.Tensor]:
    """The file's tensors under the older names, written back."""
    tensors = load_file(file)
    old = {n.replace(".mlp.", ".head.") if "predictors" in n else n: t for n, t in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, file, metadata={"format": "pt"})
    return old
