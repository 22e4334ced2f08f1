"""A batch shared out among threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dynamicvit.runtimes import export, load_exported, openvino
from dynamicvit.runtimes.openvino import MOST_AT_ONCE, shares
from families import DEIT, assert_agree

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize(
    ("count", "threads", "sizes"),
    [
        (1, 2, [1]),
        (5, 2, [3, 2]),
        (6, 1, [6]),
        (2, 4, [1, 1]),
        (2 * MOST_AT_ONCE, 2, [MOST_AT_ONCE] * 2),
        (2 * MOST_AT_ONCE + 2, 2, [MOST_AT_ONCE, MOST_AT_ONCE, 2]),
    ],
)
def test_each_thread_has_its_share(count: int, threads: int, sizes: list[int]) -> None:
    images = torch.arange(count)[:, None]
    parts = shares(images, threads)
    assert [len(part) for part in parts] == sizes
    assert torch.equal(torch.cat(parts), images)


@torch.no_grad()
def test_shared_out_images_come_back_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    model = DEIT.sparse(depth=2, stages=(1,))
    export(model, tmp_path / "model.xml")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    exported, images = load_exported(tmp_path / "model.xml"), DEIT.images(7, seed=3)
    monkeypatch.setattr(openvino, "MOST_AT_ONCE", 2)  # more shares than threads
    for count in (7, 1, 4):
        given, own = exported.forward_pruned(images[:count]), model.forward_pruned(images[:count])
        assert_agree(given.logits, own.logits, 1e-4)
        assert torch.equal(given.kept[0], own.kept[0])


@torch.no_grad()
@pytest.mark.timeout(60)
def test_networks_that_are_done_with_come_to_an_end(tmp_path: Path) -> None:
    """Their threads once waited for the interpreter, which waited for them."""
    pytest.importorskip("openvino")
    export(DEIT.sparse(depth=2, stages=(1,)), tmp_path / "model.xml")
    images = DEIT.images(4)
    for _ in range(8):
        exported = load_exported(tmp_path / "model.xml")
        exported(images)
        del exported
