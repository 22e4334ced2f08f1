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


def test_a_layer_is_timed() -> None:
    assert 0 < precision._seconds(torch.float32) < 1
