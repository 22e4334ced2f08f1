"""bf16 gives way to fp32 where it would only cost time, and says so."""

from __future__ import annotations

import pytest
import torch

from dynamicvit.utils import precision
from dynamicvit.utils.distributed import launched_precision


@pytest.mark.parametrize(("ratio", "expected"), [(0.3, torch.bfloat16), (1.1, None), (20.0, None)])
def test_emulated_bf16_becomes_fp32(
    ratio: float,
    expected: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = {torch.float32: 1.0, torch.bfloat16: ratio}
    monkeypatch.setattr(precision, "_seconds", times.__getitem__)
    precision._emulates_bf16.cache_clear()
    try:
        assert launched_precision(torch.bfloat16, "cpu") is expected
        assert ("bf16 is emulated on this CPU" in caplog.text) is (expected is None)
        caplog.clear()
        monkeypatch.setenv("RANK", "1")  # another process of the same run says it
        assert launched_precision(torch.bfloat16, "cpu") is expected
        assert launched_precision(None, "cpu") is None
        assert not caplog.text
    finally:
        precision._emulates_bf16.cache_clear()


@pytest.mark.parametrize(("native", "busy"), [(True, 0), (True, 20), (False, 0), (False, 20)])
def test_other_work_on_the_cpu_is_no_emulation(
    native: bool, busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which slows the first times of bfloat16 alone, twofold."""
    counts = {torch.float32: 0, torch.bfloat16: 0}

    def seconds(dtype: torch.dtype) -> float:
        counts[dtype] += 1
        if dtype is torch.float32:
            return 1.0
        return (0.4 if native else 1.1) * (2.5 if counts[dtype] <= busy else 1.0)

    monkeypatch.setattr(precision, "_seconds", seconds)
    assert precision._bf16_takes_longer() is not native


def test_a_layer_is_timed() -> None:
    assert 0 < precision._seconds(torch.float32) < 1


def test_it_is_found_out_in_inference_too() -> None:
    """A backward pass is timed, which inference mode forbids."""
    precision._emulates_bf16.cache_clear()
    with torch.inference_mode():
        assert precision.worthwhile(torch.bfloat16, "cpu") in (torch.bfloat16, None)
