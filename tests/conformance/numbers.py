"""Numbers of items: in the specification, and in the tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from tests.conformance import ROOT

SPECIFICATION: Final = ROOT / "docs" / "spec" / "smp-conformance.md"
TESTS: Final = Path(__file__).parent

_SECTION: Final = re.compile(r"## ([A-Z])\. (.+)")
_ITEM: Final = re.compile(r"([1-9][0-9]*)\. (.+)")
_TEST: Final = re.compile(r"test_([0-9]{3})_[a-z0-9_]+")

_Test = TypeVar("_Test", bound=Callable[..., object])


def conforms(*numbers: int) -> Callable[[_Test], _Test]:
    """Says that a test is one of all these items; the first is in its name too.

    The numbers are read from the source (`find_tests`), so they are written as numbers.
    """

    def mark(test: _Test) -> _Test:
        assert _TEST.fullmatch(test.__name__), test.__name__
        assert test.__name__.startswith(f"test_{numbers[0]:03}_"), test.__name__
        return test

    return mark


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the list: its number, the letter of its section, and its sentence."""

    number: int
    section: str
    sentence: str


def read_items(path: Path = SPECIFICATION) -> dict[int, Item]:
    """The items of the specification by number. Raises `ValueError` if one is there twice."""
    items: dict[int, Item] = {}
    section = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if heading := _SECTION.fullmatch(line):
            section = heading[1]
        elif section and (found := _ITEM.fullmatch(line)):
            item = Item(int(found[1]), section, found[2])
            if item.number in items:
                raise ValueError(f"{path.name} has item {item.number} twice")
            items[item.number] = item
    return items


@dataclass(frozen=True, slots=True)
class NumberedTest:
    """A test and the numbers of its items, the one of its name first."""

    file: str
    name: str
    numbers: tuple[int, ...]


def find_tests(folder: Path = TESTS) -> list[NumberedTest]:
    """The tests in `folder` that have a number, from their source."""
    return [
        test
        for path in sorted(folder.glob("test_*.py"))
        for test in _tests_of(path.name, ast.parse(path.read_text(encoding="utf-8")))
    ]


def _tests_of(file: str, module: ast.Module) -> Iterator[NumberedTest]:
    for node in ast.walk(module):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if found := _TEST.fullmatch(node.name):
            numbers = dict.fromkeys([int(found[1]), *_marked(node)])
            yield NumberedTest(file, node.name, tuple(numbers))


def _marked(test: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[int]:
    for decorator in test.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Name)
            and decorator.func.id == conforms.__name__
        ):
            for argument in decorator.args:
                yield int(ast.literal_eval(argument))
