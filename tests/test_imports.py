"""Imports go one way, and what is pure stays so (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PURE_TWISTED = {
    "twisted.internet.defer",
    "twisted.logger",
    "twisted.python.failure",
}
"""What rules may take of Twisted: values, and no way to reach a reactor or a transport."""


def contract(name: str) -> dict[str, list[str]]:
    """The import-linter contract of that id in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = {each["id"]: each for each in project["tool"]["importlinter"]["contracts"]}
    found: dict[str, list[str]] = contracts[name]
    return found


def sources(module: str) -> list[Path]:
    """The files of a module or package."""
    place = ROOT.joinpath(*module.split("."))
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a source may import; names imported from a package may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def reactor_imports(source: str) -> list[str]:
    """The modules of Twisted that `source` imports beyond `PURE_TWISTED`.

    Of ``from twisted.internet import defer`` only the second half counts, and of ``from
    twisted.internet.defer import Deferred`` the first.
    """
    names = set(imported(ast.parse(source)))
    return sorted(
        name
        for name in names
        if name.partition(".")[0] == "twisted"
        and name not in PURE_TWISTED
        and name.rpartition(".")[0] not in PURE_TWISTED
        and not any(other.startswith(f"{name}.") for other in names)
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from twisted.internet.defer import Deferred", []),
        ("from twisted.internet import defer", []),
        ("import twisted.internet.defer", []),
        ("from twisted.internet import defer, reactor", ["twisted.internet.reactor"]),
        ("def f():\n    import twisted.internet.reactor", ["twisted.internet.reactor"]),
        ("from twisted.internet.task import Clock", ["twisted.internet.task.Clock"]),
        ("import txsimplex.keys", []),
    ],
)
def test_reactor_imports_are_recognised(source: str, found: list[str]) -> None:
    assert reactor_imports(source) == found


@pytest.mark.parametrize("module", contract("pure")["source_modules"])
def test_pure_modules_reach_no_reactor(module: str) -> None:
    files = sources(module)
    assert files
    found = {str(file): reactor_imports(file.read_text()) for file in files}
    assert not {file: names for file, names in found.items() if names}


def test_import_linter_keeps_every_contract() -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the checkers")
    command = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run(
        [command, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
