"""The crash benchmark against real relays, and above all: that it finds losses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

MOST = ("--seconds", "200")
"""Kills are counted: how long they take depends on the machine."""
NONE = ("lost", "duplicated_after_ack", "out_of_order", "altered", "queues_lost")

pytestmark = pytest.mark.slow


def run(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.crash", "--quick", "--json", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return done.returncode, result


def test_what_a_store_in_memory_loses_is_found() -> None:
    status, result = run("--store", "memory", "--kills", "4", *MOST, "--queues", "20")
    assert status == 1
    assert result["kills"] >= 4
    assert result["acknowledged"] > 0
    assert result["lost"] > 0
    assert result["queues_lost"] > 0
    assert result["faults"]


@pytest.mark.parametrize("by", ["KILL", "TERM"])
def test_a_store_on_disk_loses_nothing(by: str) -> None:
    status, result = run("--store", "sqlite", "--kills", "6", *MOST, "--queues", "20", "--by", by)
    assert result["faults"] == []
    assert status == 0
    assert result["kills"] >= 6
    assert result["acknowledged"] > 0
    assert result["redelivered"] > 0
    for name in NONE:
        assert result[name] == 0


@pytest.mark.usefixtures("postgres_programs")
def test_a_database_loses_nothing() -> None:
    status, result = run("--store", "postgres", "--kills", "4", *MOST, "--queues", "20")
    assert result["faults"] == []
    assert status == 0
    assert result["kills"] >= 4
    assert result["acknowledged"] > 0
    for name in NONE:
        assert result[name] == 0


@pytest.mark.usefixtures("postgres_programs")
@pytest.mark.parametrize("kill_database", ["0", "0.5"])
def test_relays_that_share_a_database_lose_nothing(kill_database: str) -> None:
    status, result = run(
        *("--store", "postgres", "--relays", "2", "--kill-database", kill_database),
        *("--kills", "6", *MOST, "--queues", "20"),
    )
    assert result["faults"] == []
    assert status == 0
    assert result["relays"] == 2
    assert result["kills"] >= 6
    assert result["acknowledged"] > 0
    assert result["moves"] > 0
    for name in NONE:
        assert result[name] == 0


@pytest.mark.parametrize(
    "arguments",
    [("--relays", "2"), ("--kill-database", "0.1", "--store", "sqlite"), ("--kill-database", "2")],
    ids=str,
)
def test_bad_usage(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.crash", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert "Traceback" not in done.stderr
