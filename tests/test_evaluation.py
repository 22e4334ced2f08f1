"""Accuracy: each image counts once; by hand-made logits of known counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dynamicvit
from dynamicvit import sparsify
from dynamicvit.data import UNLABELED, Batch, ImageData, Loader, eval_transform
from dynamicvit.errors import InputError
from dynamicvit.evaluation.accuracy import evaluate
from families import FAMILIES
from pictures import noise_folders


class Oracle(nn.Module):
    """Ranks the classes of an image in the order that its first pixels spell."""

    def forward(self, images: Tensor) -> Tensor:
        self.dtype = (images @ images.transpose(2, 3)).dtype  # of a product under autocast
        self.grad = torch.is_grad_enabled()
        self.was_training = self.training
        ranking = images[:, 0, 0].long()  # (B, classes), best first
        return torch.zeros(ranking.shape).scatter(
            1, ranking, torch.arange(ranking.shape[1], 0, -1.0).expand(ranking.shape)
        )


class Always(nn.Module):
    """Answers the same class for every image."""

    def __init__(self, answer: int, classes: int = 7) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(classes))
        self.logits.data[answer] = 1

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


class Double(nn.Module):
    """Twice the logits."""

    def forward(self, images: Tensor) -> Tensor:
        return 2 * images


def spelling(*rankings: list[int]) -> Tensor:
    """Images ``(B, 3, 1, classes)`` that spell rankings of classes."""
    return torch.tensor(rankings).float()[:, None, None, :].repeat(1, 3, 1, 1)


SEVEN = list(range(7))
BATCHES = [
    # ranks of the label: 1st, 2nd, 5th
    Batch(spelling(SEVEN, SEVEN, SEVEN), torch.tensor([0, 1, 4])),
    # 6th, 1st
    Batch(spelling(SEVEN, SEVEN[::-1]), torch.tensor([5, 6]), ("bad.jpg",)),
]


def test_top1_and_top5() -> None:
    result = evaluate(Oracle(), BATCHES)
    assert result.top1 == 2 / 5
    assert result.top5 == 4 / 5
    assert (result.images, result.labeled) == (5, 5)
    assert result.skipped == ("bad.jpg",)
    assert result.agreement is None
    assert result.dense_top1 is None
    assert result.images_per_second == pytest.approx(5 / result.seconds)


def test_agreement_with_a_dense_model() -> None:
    result = evaluate(Oracle(), BATCHES, dense=Always(6))
    assert result.agreement == 1 / 5
    assert result.dense_top1 == 1 / 5
    assert result.top1 == 2 / 5
    assert evaluate(Oracle(), BATCHES, dense=Always(0)).agreement == 4 / 5


def test_divergence_is_as_torch_has_it() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).split([2, 3])
    batches = [Batch(each, torch.zeros(len(each), dtype=torch.long)) for each in logits]
    given, dense = torch.cat(logits).log_softmax(1), (2 * torch.cat(logits)).log_softmax(1)
    wanted = F.kl_div(given, dense, reduction="batchmean", log_target=True)
    found = evaluate(nn.Identity(), batches, dense=Double())
    assert found.divergence == pytest.approx(wanted.item(), rel=1e-5)
    assert found.agreement == 1
    assert evaluate(nn.Identity(), batches, dense=nn.Identity()).divergence == 0
    assert evaluate(nn.Identity(), batches).divergence is None


def test_images_without_labels_count_for_agreement_only() -> None:
    unlabeled = Batch(spelling(SEVEN, SEVEN), torch.full((2,), UNLABELED))
    result = evaluate(Oracle(), [unlabeled], dense=Always(0))
    assert (result.top1, result.top5, result.dense_top1) == (None, None, None)
    assert result.agreement == 1
    assert (result.images, result.labeled) == (2, 0)
    mixed = evaluate(Oracle(), [*BATCHES, unlabeled], dense=Always(0))
    assert (mixed.top1, mixed.top5) == (2 / 5, 4 / 5)
    assert mixed.agreement == 6 / 7
    assert (mixed.images, mixed.labeled) == (7, 5)


def test_a_batch_of_unreadable_images_only() -> None:
    done: list[int] = []
    result = evaluate(Oracle(), [EMPTY, *BATCHES], dense=Always(0), progress=done.append)
    assert result.images == 5
    assert result.skipped == ("a.jpg", "b.jpg", "bad.jpg")
    assert done == [2, 3, 3]


def test_fewer_classes_than_five() -> None:
    batch = Batch(spelling([0, 1, 2], [1, 0, 2]), torch.tensor([2, 1]))
    result = evaluate(Oracle(), [batch])
    assert (result.top1, result.top5) == (1 / 2, 1)


class Coarse(nn.Module):
    """Many equal logits, as bf16 gives them."""

    def forward(self, images: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(4, (len(images), 1000), generator=generator).float()


def test_equal_logits_are_ordered_alike_for_every_count() -> None:
    batch = Batch(torch.zeros(64, 3, 1, 1), torch.arange(64))
    logits = Coarse()(batch.images)
    first = torch.stack([(row == row.max()).nonzero()[0, 0] for row in logits])
    result = evaluate(Coarse(), [Batch(batch.images, first)], dense=Coarse())
    assert (result.top1, result.dense_top1, result.agreement) == (1, 1, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_no_answer(value: float) -> None:
    broken = Always(0)
    broken.logits.data[0] = value
    with pytest.raises(InputError, match=r"the model .*3 of 3 images"):
        evaluate(broken, BATCHES)
    with pytest.raises(InputError, match="the dense model"):
        evaluate(Oracle(), BATCHES, dense=broken)


EMPTY = Batch(torch.empty(0, 3, 0, 0), torch.empty(0, dtype=torch.int64), ("a.jpg", "b.jpg"))


@pytest.mark.parametrize(
    ("model", "batches", "dense", "said"),
    [
        (Oracle(), [], None, "no readable image"),
        (Oracle(), [EMPTY], None, "no readable image"),
        (Oracle(), [Batch(spelling(SEVEN), torch.tensor([7]))], None, "label 7 .* 7 classes"),
        (Oracle(), [Batch(spelling(SEVEN), torch.tensor([-2]))], None, "label -2"),
        (Oracle(), BATCHES, Always(0, classes=9), "9 classes, the model 7"),
        (Oracle(), BATCHES, True, "Oracle"),
        (FAMILIES[0].sparse(num_classes=0), BATCHES, None, "classifier"),
    ],
)
def test_bad_input(
    model: nn.Module, batches: list[Batch], dense: nn.Module | bool | None, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        evaluate(model, batches, dense=dense)


def test_autocast_and_no_gradients() -> None:
    model = Oracle()
    evaluate(model, BATCHES)
    assert (model.dtype, model.grad) == (torch.float32, False)
    evaluate(model, BATCHES, amp_dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16


def test_modes_are_put_back_even_after_an_error() -> None:
    model = nn.Sequential(Oracle(), nn.Dropout())
    model[1].eval()
    evaluate(model, BATCHES)
    assert not model[0].was_training
    assert [module.training for module in model.modules()] == [True, True, False]
    with pytest.raises(InputError):
        evaluate(model, [Batch(spelling(SEVEN), torch.tensor([9]))])
    assert [module.training for module in model.modules()] == [True, True, False]


def test_a_dynamicvit_against_its_own_dense_output() -> None:
    family = FAMILIES[0]
    backbone = family.backbone()
    images = torch.randn(8, 3, *family.size, generator=torch.Generator().manual_seed(0))
    answers = backbone(images).argmax(1)
    batches = [
        Batch(part, label) for part, label in zip(images.split(3), answers.split(3), strict=True)
    ]
    model = sparsify(backbone, keep_ratio=1.0, method="dynamicvit").train()
    whole = evaluate(model, batches, dense=model.backbone)
    assert (whole.top1, whole.agreement, whole.dense_top1) == (1, 1, 1)
    assert model.training
    model.keep_ratio = (0.1, 0.1, 0.1)
    few = evaluate(model, batches, dense=model.backbone)
    assert few.dense_top1 == 1
    assert few.top1 == few.agreement == (model.eval()(images).argmax(1) == answers).float().mean()
    assert few.agreement != 1


def test_images_by_path(tmp_path: Path) -> None:
    """The same as its parts by hand: class map, the model's own transform, its own dense self."""
    model = FAMILIES[0].sparse(keep_ratio=0.3)
    noise_folders(tmp_path / "images", classes=7, each=2)
    data = ImageData(tmp_path / "images", transform=eval_transform(model))
    found = dynamicvit.evaluate(model, tmp_path / "images", dense=True, batch_size=3, workers=0)
    by_hand = evaluate(model, Loader(data, 14), dense=model.backbone)
    assert found.divergence == pytest.approx(by_hand.divergence)  # of other batches
    assert replace(found, seconds=0, divergence=0) == replace(by_hand, seconds=0, divergence=0)
    assert (found.images, found.labeled) == (14, 14)
    assert found.agreement not in (None, 1)

    turned = tmp_path / "classes.txt"
    turned.write_text("".join(f"{6 - index}\n" for index in range(7)))
    other = evaluate(model, str(tmp_path / "images"), class_map=turned, workers=0)
    relabeled = data.with_class_map({str(name): 6 - name for name in range(7)})
    assert other.top1 == evaluate(model, relabeled, workers=0).top1 != found.top1
