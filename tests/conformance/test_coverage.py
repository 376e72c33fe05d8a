"""Every delivered item has a test, and the list knows when one has not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance.__main__ import main
from tests.conformance.coverage import put_together
from tests.conformance.numbers import Item, NumberedTest, find_tests, read_items

ITEMS = {
    1: Item(1, "A", "One is one."),
    2: Item(2, "A", "Two is two."),
    3: Item(3, "B", "Three comes later."),
}


def test_every_delivered_item_has_a_test() -> None:
    assert not list(put_together(read_items(), find_tests()).faults())


def test_all_items_of_the_specification_are_read() -> None:
    items = read_items()
    assert list(items) == list(range(1, 259))
    assert items[58] == Item(58, "D", "NEW without authorization → CMD NO_AUTH.")
    assert items[258].section == "S"


def test_numbers_come_from_names_and_markers(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "@conforms(1, 2)\n"
        "def test_001_one() -> None: ...\n"
        "async def test_003_three() -> None: ...\n"
        "def test_of_no_item() -> None: ...\n"
    )
    assert find_tests(tmp_path) == [
        NumberedTest("test_a.py", "test_001_one", (1, 2)),
        NumberedTest("test_a.py", "test_003_three", (3,)),
    ]


def test_an_item_twice_in_the_specification(tmp_path: Path) -> None:
    path = tmp_path / "list.md"
    path.write_text("## A. Letters\n\n1. One.\n1. One again.\n")
    with pytest.raises(ValueError, match="item 1 twice"):
        read_items(path)


def test_a_delivered_item_without_a_test_is_a_fault() -> None:
    coverage = put_together(
        ITEMS, [NumberedTest("test_a.py", "test_001_one", (1,))], {"later": [3]}
    )
    assert list(coverage.faults()) == ["item 2 is delivered and has no test: Two is two."]


def test_an_item_that_does_not_exist_is_a_fault() -> None:
    tests = [NumberedTest("test_a.py", "test_001_one", (1, 2, 4))]
    coverage = put_together(ITEMS, tests, {"later": [3, 5]})
    assert list(coverage.faults()) == [
        "test_a.py: test_001_one names item 4, which does not exist",
        "item 5 is said to come later and does not exist",
    ]


def test_an_item_that_has_come_is_no_later_one() -> None:
    tests = [NumberedTest("test_a.py", "test_001_one", (1, 2, 3))]
    coverage = put_together(ITEMS, tests, {"later": [3]})
    assert list(coverage.faults()) == ["item 3 is said to come later and has a test"]


def test_one_reason_for_each_item() -> None:
    with pytest.raises(ValueError, match="two reasons"):
        put_together(ITEMS, [], {"later": [3], "never": [3]})


def test_the_command_lists_all_items(capsys: pytest.CaptureFixture[str]) -> None:
    status = main([])
    output = capsys.readouterr().out
    assert status == (1 if "NO TEST" in output else 0)
    assert "D  68 PING unsigned, no entity → PONG" in output
    assert "test_d_commands.py::test_068_ping" in output


def test_the_command_says_of_each_item_what_becomes_of_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Behind the sentence of each item its tests, or why it has none yet."""
    main([])
    *lines, sums = capsys.readouterr().out.splitlines()
    kinds: dict[int, set[str]] = {}
    number = 0
    for line in lines:
        if found := re.match(r"[A-Z] +([0-9]+) ", line):
            number = int(found[1])
            kinds[number] = set()
        else:
            kinds[number].add("later" if line.startswith("        later: ") else "test")
    assert list(kinds) == list(range(1, 259))
    assert all(len(kind) == 1 for kind in kinds.values())
    tested = sum(kind == {"test"} for kind in kinds.values())
    assert sums == (
        f"258 items: {tested} with a test, 0 delivered without one, {258 - tested} to come later"
    )
