"""Which items of the list are delivered, and why the others are not yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.conformance.numbers import Item, NumberedTest

CONTROL_PORT: Final = "needs the control port"
AGENT: Final = "behaviour of an agent"
OPERATION: Final = "the operator's commands, pages and figures"
OTHER_STORE: Final = "a file of the reference's own, for which this project has a store of its own"
DEFECT: Final = "a defect of the reference, which this project does not copy"

LATER: Final[Mapping[str, Sequence[int]]] = {
    AGENT: (186, 187, 200, 201),
    CONTROL_PORT: (257,),
    OTHER_STORE: (211, *range(217, 228)),
    OPERATION: (216, *range(228, 239)),
    DEFECT: (255, 256, 258),
}
"""Items that a later part of the work brings, by the reason; all others are delivered."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """The items and their tests put together."""

    items: Mapping[int, Item]
    later: Mapping[int, str]
    tests: Mapping[int, Sequence[NumberedTest]]

    def missing(self) -> list[Item]:
        """The delivered items that have no test."""
        return [
            item
            for number, item in self.items.items()
            if number not in self.later and number not in self.tests
        ]

    def faults(self) -> Iterator[str]:
        """What is wrong, one sentence each."""
        for item in self.missing():
            yield f"item {item.number} is delivered and has no test: {item.sentence}"
        for number, tests in self.tests.items():
            if number not in self.items:
                for test in tests:
                    yield f"{test.file}: {test.name} names item {number}, which does not exist"
        for number in self.later:
            if number not in self.items:
                yield f"item {number} is said to come later and does not exist"
            elif number in self.tests:
                yield f"item {number} is said to come later and has a test"


def put_together(
    items: Mapping[int, Item],
    tests: Iterable[NumberedTest],
    later: Mapping[str, Sequence[int]] = LATER,
) -> Coverage:
    """The coverage of `items` by `tests`. Raises `ValueError` for two reasons for one item."""
    by_number: dict[int, list[NumberedTest]] = {}
    for test in tests:
        for number in test.numbers:
            by_number.setdefault(number, []).append(test)
    reasons: dict[int, str] = {}
    for reason, numbers in later.items():
        for number in numbers:
            if number in reasons:
                raise ValueError(f"item {number} has two reasons to come later")
            reasons[number] = reason
    return Coverage(items, reasons, by_number)
