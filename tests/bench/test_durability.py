"""The benchmark of the stores: its figures, and how they are put together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.durability import Measured, Phase, Use
from bench.percentiles import Durations
from bench.server import Server
from txsimplex.addresses import Scheme, ServerAddress

ROOT = Path(__file__).parents[2]
ADDRESS = "smp://AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=@127.0.0.1:1"


def measured(store: str, *per_cpu_second: int) -> Measured:
    result = Measured(store, Server(ServerAddress.parse(ADDRESS, Scheme.SMP), ()))
    for messages in per_cpu_second:
        cpu, written = Use(1.0, 3.0), Use(messages * 10, messages * 5)
        result.loads.append(Phase(messages, 2.0, cpu, Durations(), 50.0, written, 0))
    return result


def test_the_run_in_the_middle_counts() -> None:
    one = measured("memory", 900, 1000, 1500)
    assert one.load.per_cpu_second == 1000
    assert one.load.written_per_message == 15
    assert one.load.per_cpu_second_together == 250
    assert one.half_rate == 250


def test_stores_are_compared_run_by_run() -> None:
    # The machine was slow in the second run, for both.
    memory = measured("memory", 1000, 500, 1000)
    assert measured("sqlite", 900, 450, 880).share_of(memory) == pytest.approx(0.9)


@pytest.mark.slow
@pytest.mark.parametrize("stores", [["memory"], ["memory", "sqlite"]], ids=str)
def test_figures(stores: list[str]) -> None:
    check_figures(stores)


@pytest.mark.slow
@pytest.mark.usefixtures("postgres_programs")
def test_figures_of_a_database() -> None:
    figures = check_figures(["memory", "postgres"])["postgres"]
    relay, database = figures["relay_cpu_us_per_message"], figures["database_cpu_us_per_message"]
    assert database > 0
    assert relay == pytest.approx(1e6 / figures["messages_per_cpu_second"], rel=0.01)
    assert relay + database == pytest.approx(
        1e6 / figures["messages_per_cpu_second_together"], rel=0.01
    )
    # The log of changes and the table.
    assert figures["database_bytes_written_per_message"] > 2 * 16048
    assert figures["bytes_written_per_message"] == pytest.approx(
        figures["database_bytes_written_per_message"] + figures["relay_bytes_written_per_message"],
        abs=1,
    )


def check_figures(stores: list[str]) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.durability", "--quick", "--json"),
            *("--connections", "10", "--seconds", "1", "--half-load-seconds", "1"),
            *("--stores", ",".join(stores)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["message_bytes"] == 16048
    for store in stores:
        figures = result[store]
        for key in ("messages_per_cpu_second", "messages_per_second", "ok_p50_ms", "ok_p99_ms"):
            assert figures[key] > 0
        assert figures["ok_p99_ms_waiting"] > 0
        assert figures["faults"] == []
        written = figures["bytes_written_per_message"]
        if store == "memory":
            assert written == figures["bytes_written_per_message_at_once"] == 0
        else:
            assert written > result["message_bytes"] / 2
    return result


def test_a_store_that_there_is_not() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.durability", "--stores", "memory,stone"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no store 'stone'" in done.stderr
