"""Another network as teacher: what it is shown, what it answers, and who is refused."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit import InputError, sparsify
from dynamicvit.core.networks import DenseNetwork, core_of
from dynamicvit.training.external_teacher import ExternalTeacher
from families import BY_NAME, DEIT, NUM_CLASSES, assert_agree

#: timm's DeiT: what the student's images are normalized with.
from memory import shallow

MEAN, STD = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def network(name: str = "test_resnet", num_classes: int = NUM_CLASSES) -> nn.Module:
    """A small one of timm's; its own images are of 160 px, with a mean and deviation of 0.5."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=num_classes).eval()


def shown(module: nn.Module) -> list[Tensor]:
    """The images that the module will be called with."""
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    return seen


def pictures(height: int, width: int) -> Tensor:
    """In [0, 1], smooth enough for any way to resize."""
    small = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(small, (height, width), mode="bilinear")


@torch.no_grad()
def test_it_sees_the_students_images_in_its_own_way() -> None:
    other = network()
    teacher, seen = ExternalTeacher(other, shallow()), shown(other)
    logits = teacher((pictures(*DEIT.size) - MEAN) / STD)
    expected = (pictures(160, 160) - 0.5) / 0.5
    assert seen[0].shape == expected.shape
    assert (seen[0] - expected).abs().mean() < 0.02  # resized twice, once
    assert_agree(logits, other(seen[0]))

    same_size = (pictures(160, 160) - MEAN) / STD
    teacher(same_size)
    assert_agree(seen[2], expected)


@torch.no_grad()
def test_where_nothing_differs_nothing_is_changed() -> None:
    other, images = DEIT.backbone(seed=3), DEIT.images()
    teacher, seen = ExternalTeacher(other, shallow()), shown(other)
    assert torch.equal(teacher(images), other(images))
    assert seen[0] is images


def test_it_is_frozen_and_never_learns() -> None:
    other = network().train()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    logits = ExternalTeacher(other, shallow())(DEIT.images())
    assert not other.training
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert logits.is_inference()
    after = other.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "test_vit", "test_nfnet"])
def test_any_family_teaches(name: str) -> None:
    logits = ExternalTeacher(network(name), shallow())(DEIT.images())
    assert logits.shape == (2, NUM_CLASSES)
    assert logits.isfinite().all()


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_transformers_models_teach() -> None:
    family = BY_NAME["hf_deit"]
    backbone = family.backbone()
    model = core_of(sparsify(backbone, method="dynamicvit"))
    teacher, images = ExternalTeacher(DenseNetwork(model), shallow()), family.images()
    size = model.pretrained_cfg["input_size"][1:]
    assert teacher.size == tuple(size)
    shape = F.interpolate(images, size, mode="bicubic", antialias=True)
    mean, std = (torch.tensor(model.pretrained_cfg[x]).view(3, 1, 1) for x in ("mean", "std"))
    expected = family.dense(backbone, (shape * STD + MEAN - mean) / std)
    assert_agree(teacher(images), expected)


def test_other_classes_or_channels_are_refused() -> None:
    for other, said in (
        (network(), "the teacher has 7 classes, the student 5"),
        (network(num_classes=0), "the teacher has 0 classes, the student 5"),
        (nn.Flatten(), "the teacher has None classes, the student 5"),
        (DEIT.backbone(num_classes=5, in_chans=1), "the teacher has 1 channels, the student 3"),
    ):
        with pytest.raises(InputError, match=said):
            ExternalTeacher(other, shallow(num_classes=5))
    with pytest.raises(InputError, match="the teacher has 0 classes, the student 0"):
        ExternalTeacher(network(num_classes=0), shallow(num_classes=0))


def test_a_fingerprint_tells_weights_apart() -> None:
    def fingerprint(changed: bool) -> str:
        other = network()
        if changed:
            other.bn1.running_mean[0] += 1e-6
        return ExternalTeacher(other, shallow()).fingerprint

    assert fingerprint(False) == fingerprint(False)
    assert fingerprint(False) != fingerprint(True)
