"""Percentiles, exact and counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamicvit.streaming.controller import percentile
from dynamicvit.streaming.events import Latencies

VALUES = st.lists(st.floats(1e-5, 1e3), min_size=1, max_size=100)
SHARES = st.sampled_from([0.5, 0.9, 0.95, 0.99, 1.0])


@settings(max_examples=25, deadline=None)
@given(VALUES, SHARES)
def test_so_many_are_this_or_less_and_one_less_would_be_too_few(values, share) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


@settings(max_examples=25, deadline=None)
@given(VALUES, SHARES)
def test_counting_gives_the_same_within_half_a_percent(values, share) -> None:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    assert latencies.percentile(share) == pytest.approx(percentile(values, share), rel=0.005)


def test_no_latencies_and_zero() -> None:
    latencies = Latencies()
    assert latencies.percentile(0.5) is None
    latencies.add(0.0)
    assert latencies.percentile(0.5) == pytest.approx(0, abs=1e-6)
