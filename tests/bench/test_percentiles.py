"""Percentiles of durations that are counted in classes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, strategies as st

from bench.percentiles import Durations, merged

seconds = st.floats(1e-6, 100)


def durations(values: list[float]) -> Durations:
    result = Durations()
    for value in values:
        result.add(value)
    return result


@given(st.lists(seconds, min_size=1, max_size=300), st.integers(1, 100))
def test_a_percentile_is_off_by_one_percent_at_most(values: list[float], percent: int) -> None:
    exact = sorted(values)[math.ceil(len(values) * percent / 100) - 1]
    assert durations(values).percentile(percent) == pytest.approx(exact, rel=0.01)


@given(st.lists(st.lists(seconds, max_size=50), max_size=5))
def test_merging_is_as_if_they_had_been_one(parts: list[list[float]]) -> None:
    sent = [json.loads(json.dumps(durations(part).as_pairs())) for part in parts]
    whole = durations([value for part in parts for value in part])
    assert merged(sent).as_pairs() == whole.as_pairs()
    assert len(merged(sent)) == sum(map(len, parts))


def test_nothing_has_no_percentile() -> None:
    assert math.isnan(Durations().percentile(50))


def test_milliseconds() -> None:
    assert durations([0.5]).milliseconds(99) == pytest.approx(500, rel=0.01)
