"""Durations by the thousand: counted in classes of one percent, so that they add up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

_CLASSES_PER_E = 100


class Durations:
    """Durations in seconds, each known to about half a percent."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._counts = Counter(counts or {})

    def add(self, seconds: float) -> None:
        """Takes one in."""
        self._counts[round(math.log(max(seconds, 1e-7)) * _CLASSES_PER_E)] += 1

    def __len__(self) -> int:
        return self._counts.total()

    def percentile(self, percent: float) -> float:
        """The duration in seconds that `percent` of them do not exceed; nan when there are none."""
        wanted = math.ceil(len(self) * percent / 100)
        seen = 0
        for each in sorted(self._counts):
            seen += self._counts[each]
            if seen >= wanted:
                return math.exp(each / _CLASSES_PER_E)
        return math.nan

    def milliseconds(self, percent: float) -> float:
        """`percentile` in milliseconds, rounded to a hundredth."""
        return round(self.percentile(percent) * 1000, 2)

    def as_pairs(self) -> list[tuple[int, int]]:
        """For another process; `merged` takes it."""
        return sorted(self._counts.items())


def merged(parts: Iterable[Iterable[tuple[int, int]]]) -> Durations:
    """The durations of several `as_pairs` together."""
    counts: Counter[int] = Counter()
    for part in parts:
        for each, count in part:
            counts[each] += count
    return Durations(counts)
