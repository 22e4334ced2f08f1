"""A batch shared among OpenVINO's threads."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dynamicvit.runtimes import load_exported, openvino
from dynamicvit.runtimes.openvino import MOST_AT_ONCE, shares
from dynamicvit.utils.signals import signal_stack
from exports import ignore_deprecations, small
from families import DEIT, assert_agree

pytestmark = ignore_deprecations


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
def test_images_of_several_threads_come_back_in_order(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    file, images = load_exported(exported("openvino")), DEIT.images(7, seed=3)
    monkeypatch.setattr(openvino, "MOST_AT_ONCE", 2)  # more shares than threads
    for count in (7, 1, 4):
        given, own = file.forward_pruned(images[:count]), small().forward_pruned(images[:count])
        assert_agree(given.logits, own.logits, 1e-4)
        assert torch.equal(given.kept[0], own.kept[0])


@torch.no_grad()
@pytest.mark.timeout(60)
def test_unused_networks_come_to_an_end(exported: Callable[..., Path]) -> None:
    """Their threads once waited for the interpreter, which waited for them."""
    for _ in range(8):
        file = load_exported(exported("openvino"))
        file(DEIT.images(4))
        del file


def test_signals_are_handled_where_they_were(exported: Callable[..., Path]) -> None:
    """On the thread's own stack, also after the older of two files that were read is gone."""
    if sys.platform != "linux":
        pytest.skip("Linux's stack for signals")
    older, newer = (load_exported(exported("openvino")) for _ in range(2))
    del older
    gc.collect()
    del newer
    gc.collect()
    stack = signal_stack()
    assert stack is not None
    assert stack.flags == 2  # SS_DISABLE: none but its own
