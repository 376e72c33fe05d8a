"""Every benchmark, run as `--quick --json`: a line of JSON in the end, and no process stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.running import children

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"bench.{name}", "--quick", "--json", *arguments]


def run(name: str, *arguments: str, limit: float = 120.0) -> dict[str, Any]:
    done = subprocess.run(
        command(name, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def descendants(pid: int) -> list[int]:
    found = children(pid)
    return found + [grandchild for child in found for grandchild in descendants(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_relay() -> None:
    result = run("relay", "--connections", "20", "--seconds", "2")
    for key in (
        "messages_per_cpu_second",
        "messages_per_cpu_second_v10",
        "latency_p50_ms",
        "latency_p99_ms",
    ):
        assert result[key] > 0
    assert [each["version"] for each in result["runs"]] == [18, 10]
    assert all(each["faults"] == [] and each["messages"] > 0 for each in result["runs"])


def test_conversion() -> None:
    result = run("conversion", "--queues", "500", "--messages", "200")
    assert result["faults"] == []
    for name in ("to_postgres", "to_sqlite"):
        assert result[f"{name}_seconds"] > 0
        assert result[f"{name}_cpu_seconds"] > 0
        assert result[f"{name}_peak_mib"] > 10


def test_proxy() -> None:
    result = run("proxy", "--senders", "4", "--seconds", "1", "--latency-seconds", "1")
    assert result["faults"] == []
    assert result["dead_relays_asked_for"] >= 1
    for role in ("proxy", "destination"):
        assert result[f"{role}_messages_per_cpu_second"] > 0
    for way in ("direct", "proxied", "beside_dead_relays"):
        assert 0 < result[f"{way}_p50_ms"] <= result[f"{way}_p99_ms"]
    assert result["p99_beside_dead_relays_ratio"] > 0


def test_destinations_of_a_proxy() -> None:
    result = run("proxy", "--destinations", "40", "--seconds", "1")
    assert result["faults"] == []
    assert result["destinations"] == 40
    assert result["kib_per_destination_connected"] > 10
    assert result["kib_per_destination_used"] > 10
    assert result["idle_cpu_percent"] >= 0


SHORT = ("--seconds", "1", "--latency-seconds", "0")


def test_relay_with_small_messages_in_groups() -> None:
    groups = ("--window", "2", "--batch", "10", "--size", "100", "--verify", "1")
    result = run("relay", *SHORT, "--connections", "8", "--versions", "6", *groups)
    (only,) = result["runs"]
    assert only["faults"] == []


def test_relay_with_few_queues() -> None:
    few = ("--connections", "4", "--window", "8", "--queues", "2", "--processes", "2")
    result = run("relay", *SHORT, "--versions", "18", *few)
    (only,) = result["runs"]
    assert only["faults"] == []


def test_processes() -> None:
    result = run("processes", "--seconds", "1", "--connections", "10", "--repeat", "1")
    one, two = result["processes_1"], result["processes_2"]
    assert one["edges_us_per_message"] == 0
    assert two["edges_us_per_message"] > 0
    for each in (one, two):
        assert each["core_us_per_message"] > 0
        assert each["messages"] > 0
        assert each["faults"] == []
    assert one["gain_on_two_cores"] == 1
    assert two["gain_on_two_cores"] > 0


@pytest.mark.usefixtures("postgres_programs")
def test_processes_with_a_database() -> None:
    short = ("--seconds", "1", "--connections", "10", "--repeat", "1", "--processes", "1,2")
    result = run("processes", "--store", "postgres", *short)
    for name in ("processes_1", "processes_2"):
        assert result[name]["database_us_per_message"] > 0
        assert result[name]["faults"] == []


@pytest.mark.usefixtures("postgres_programs")
def test_relay_with_a_database() -> None:
    result = run("relay", *SHORT, "--connections", "8", "--versions", "18", "--store", "postgres")
    (only,) = result["runs"]
    assert only["faults"] == []
    assert only["messages"] > 0


def test_connections() -> None:
    result = run("connections", "--idle", "200", "--burst", "50", "--seconds", "2")
    for key in (
        "handshakes_per_cpu_second",
        "kib_per_idle_connection",
        "ping_p99_ms_during_handshakes",
    ):
        assert result[key] > 0
    assert result["idle_connections"] == 200


def test_connections_dropped() -> None:
    result = run("connections", "--drop", "400", "--groups", "X448:X25519")
    assert result["files_after"] <= result["files_before"]


@pytest.mark.parametrize(
    "by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name
)
@pytest.mark.parametrize(
    ("name", "begun"),
    [
        ("relay", "warming up"),
        ("durability", "full load"),
        ("crash", "kills;"),
        ("proxy", "load, "),
    ],
)
def test_nothing_is_left_running(name: str, begun: str, by: signal.Signals) -> None:
    check_that_nothing_is_left(name, begun, by, ())


@pytest.mark.usefixtures("postgres_programs")
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
@pytest.mark.parametrize("relays", ["1", "2"])
def test_no_database_is_left_running(relays: str, by: signal.Signals) -> None:
    check_that_nothing_is_left(
        "crash", "kills;", by, ("--store", "postgres", "--relays", relays), processes=8
    )


def check_that_nothing_is_left(
    name: str, begun: str, by: signal.Signals, more: tuple[str, ...], processes: int = 2
) -> None:
    options = more if name in ("crash", "proxy") else ("--connections", "8", *more)
    with subprocess.Popen(
        command(name, *options),
        cwd=ROOT,
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if begun in line:
                break
        deadline = time.monotonic() + 5
        while len(started := descendants(process.pid)) < processes and time.monotonic() < deadline:
            # A server that was killed is started again.
            time.sleep(0.01)
        assert len(started) >= processes
        process.send_signal(by)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            # It says where it is.
            process.send_signal(signal.SIGABRT)
            pytest.fail(f"it does not end:\n{process.stderr.read()}")
    deadline = time.monotonic() + 5
    while any(map(alive, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, started))
    if by is not signal.SIGKILL:
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 128 + by}[by]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["--connections", "1"], 2), (["--versions", "5"], 2), (["--address", "nonsense"], 2)],
    ids=str,
)
def test_bad_usage(arguments: list[str], status: int) -> None:
    done = subprocess.run(
        command("relay", *arguments), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_there() -> None:
    address = "smp://AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=@127.0.0.1:1"
    done = subprocess.run(
        command("relay", "--address", address, "--pid", str(os.getpid())),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "cannot connect" in done.stderr
    assert "Traceback" not in done.stderr
