"""The order of an epoch, augmentation, and splits, all reproducible."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset

from dynamicvit.data import UNLABELED, ImageData, Loader, split, train_transform
from dynamicvit.errors import InputError
from families import DEIT
from pictures import WORKERS, class_folders, grays, labels, write_image

pytestmark = WORKERS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "images")


def noise(image: Image.Image) -> torch.Tensor:
    """Draws from all three generators that timm's transforms use."""
    draws = [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002
    return torch.tensor(draws).reshape(3, 1, 1).expand(3, image.height, image.width)


def test_augmentation_depends_on_seed_epoch_and_index_only(folder: Path) -> None:
    data = ImageData(folder, transform=noise)

    def drawn(workers: int = 0, seed: int = 0, epoch: int = 0, batch: int = 4) -> torch.Tensor:
        batches = Loader(data, batch, seed=seed, num_workers=workers)
        batches.set_epoch(epoch)
        return torch.cat([batch.images for batch in batches])[:, :, 0, 0]

    reference = drawn()
    assert len(set(reference.flatten().tolist())) == 18, "each image has its own draws"
    assert torch.equal(drawn(workers=2), reference)
    assert torch.equal(drawn(batch=1), reference)
    for other in (drawn(seed=1), drawn(epoch=1)):
        assert not (other == reference).any()


def test_workers_do_not_matter_to_real_augmentation(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    transform = train_transform(
        DEIT.backbone(), 32, auto_augment="rand-m9-n2-mstd0.5", color_jitter=0.3, re_prob=0.5
    )
    data = ImageData(tmp_path, transform=transform)

    def drawn(workers: int, epoch: int = 0, start: int = 0) -> list[torch.Tensor]:
        batches = Loader(data, 2, shuffle=True, num_workers=workers)
        batches.set_epoch(epoch, start)
        return [batch.images for batch in batches]

    reference = drawn(0)
    for found in (drawn(0), drawn(1), drawn(2), reference[:1] + drawn(1, start=1)):
        assert all(map(torch.equal, found, reference))
    other = torch.cat(drawn(0, epoch=1))
    for image in torch.cat(reference):  # each is drawn anew in the next epoch
        assert not any(torch.equal(image, drawn_anew) for drawn_anew in other)


def test_the_callers_random_generators_are_left_alone(folder: Path) -> None:
    def state() -> tuple[float, float, float]:
        return random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)

    for workers in (0, 1):
        seed()
        expected = state()
        seed()
        list(Loader(ImageData(folder, transform=noise), 2, shuffle=True, num_workers=workers))
        assert state() == expected


def test_order(folder: Path) -> None:
    data = ImageData(folder)

    def order(seed: int, epoch: int, start: int = 0) -> list[int]:
        batches = Loader(data, 2, shuffle=True, seed=seed)
        batches.set_epoch(epoch, start)
        return grays(batches)

    orders = {tuple(order(0, epoch)) for epoch in range(5)}
    assert all(sorted(order) == [10, 11, 20, 21, 22, 30] for order in orders)
    assert len(orders) == 5
    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(1, 3)
    assert order(0, 3, start=1) == order(0, 3)[2:]


def test_drop_last(folder: Path) -> None:
    batches = Loader(ImageData(folder), 4, drop_last=True)
    assert len(batches) == 1
    assert batches.num_images == 4
    assert [len(batch) for batch in batches] == [4]
    assert len(Loader(ImageData(folder), 4)) == 2


def test_labeled_and_unlabeled_together(folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    write_image(flat / "50.png", 50)
    (flat / "51.png").write_bytes(b"")
    both = ConcatDataset([ImageData(folder), ImageData(flat)])
    batches = Loader(both, 3, num_workers=1)
    assert grays(batches) == [10, 11, 20, 21, 22, 30, 50]
    assert labels(batches) == [0, 0, 1, 1, 1, 2, UNLABELED]
    assert [name for batch in batches for name in batch.skipped] == [str(flat / "51.png")]


# ---------------------------------------------------------------- splits


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> ImageData:
    """40 images of class 0, 20 of class 1, and 30 classes of one image."""
    root = tmp_path_factory.mktemp("many")
    counts = {"000": 40, "001": 20} | {f"{number:03}": 1 for number in range(2, 32)}
    for name, count in counts.items():
        for number in range(count):
            write_image(root / name / f"{number:02}.png", 1, (1, 1))
    return ImageData(root)


def paths(data: ImageData) -> list[str]:
    return [data.path(index) for index in range(len(data))]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_split_is_stratified(many: ImageData, fraction: float) -> None:
    rest, held = split(many, fraction)
    assert sorted(paths(rest) + paths(held)) == sorted(paths(many))
    assert not set(paths(rest)) & set(paths(held))
    counts = Counter(held.labels.tolist())
    assert abs(counts[0] - 40 * fraction) <= 1
    assert abs(counts[1] - 20 * fraction) <= 1
    assert abs(sum(counts.values()) - 90 * fraction) <= 1
    assert held.labels.tolist() == [int(Path(path).parent.name) for path in paths(held)]


def test_split_is_deterministic_and_drawn(many: ImageData) -> None:
    held = paths(split(many, 0.25, seed=1)[1])
    assert paths(split(many, 0.25, seed=1)[1]) == held
    assert paths(split(many, 0.25, seed=2)[1]) != held
    # Which of the classes of one image lose it is drawn too.
    singles = [
        {path for path in paths(split(many, 0.25, seed)[1]) if Path(path).parent.name >= "002"}
        for seed in range(4)
    ]
    assert len(set.union(*singles)) > max(map(len, singles))


def test_split_parts_keep_labels_and_take_their_own_transform(folder: Path) -> None:
    data = ImageData(folder, class_map={"cat": 5, "dog": 6, "eel": 7})
    rest, held = split(data, 0.5)
    held = held.with_transform(lambda image: torch.zeros(3, 1, 1))
    assert len(rest) == len(held) == 3
    assert set(labels(Loader(held, 3))) <= {5, 6, 7}
    assert grays(Loader(held, 3)) == [0, 0, 0]
    assert min(grays(Loader(rest, 3))) >= 10
    again = held.with_class_map({"cat": 0, "dog": 1, "eel": 2})
    assert (again.labels == held.labels - 5).all()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 0.01, float("nan")])
def test_split_fractions_that_cannot_be(folder: Path, fraction: float) -> None:
    with pytest.raises(InputError, match="held-out fraction"):
        split(ImageData(folder), fraction)
