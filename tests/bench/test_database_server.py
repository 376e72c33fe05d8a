"""The PostgreSQL server of benchmarks: what it uses, and what is said when there can be none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from bench import crash, durability, postgres_server
from bench.database_server import (
    database_cpu_seconds,
    database_written_bytes,
    own_database_server,
    why_unavailable,
)
from bench.postgres_server import PostgresServer
from bench.running import Cores

pytestmark = pytest.mark.usefixtures("postgres_programs")

MIB = 1 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with own_database_server(Cores()) as made:
        yield made


def until_at_least(value: float, now: Callable[[], float]) -> float:
    """What `now` is when it is as much, or after some seconds."""
    deadline = time.monotonic() + 5
    while (reached := now()) < value and time.monotonic() < deadline:
        time.sleep(0.05)
    return reached


def shown(server: PostgresServer, name: str) -> str:
    with psycopg.connect(server.dsn) as connection:
        row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return str(row[0])


def test_it_is_safe_from_power_cuts(server: PostgresServer) -> None:
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        assert shown(server, name) == "on"


def test_what_is_written_by_connections_that_have_ended_counts(server: PostgresServer) -> None:
    dsn = server.database()
    before = database_written_bytes(server)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE filled (content bytea)")
        connection.execute("ALTER TABLE filled ALTER content SET STORAGE EXTERNAL")
        connection.execute("INSERT INTO filled VALUES (%s)", (bytes(4 * MIB),))
        connection.execute("SELECT pg_current_wal_flush_lsn()")
    # Its log and its table, both of which zeros may come before.
    at_least = before + 8 * MIB
    server.checkpoint()
    written = until_at_least(at_least, lambda: database_written_bytes(server))
    assert at_least <= written <= at_least + 56 * MIB


def test_processor_time_of_connections_that_have_ended_counts(server: PostgresServer) -> None:
    before = database_cpu_seconds(server)
    with psycopg.connect(server.dsn) as connection:
        connection.execute("SELECT count(*) FROM generate_series(1, 2000000)")
    assert until_at_least(before + 0.05, lambda: database_cpu_seconds(server)) >= before + 0.05


def test_where_there_are_no_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(postgres_server, "_DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no PostgreSQL server" in (why_unavailable() or "")
    assert crash.main(["--store", "postgres", "--kills", "1"]) == 1
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "bench:" in each]
    assert "no PostgreSQL server" in line
    assert durability.main(["--stores", "memory,postgres"]) == 1
    assert "no PostgreSQL server" in capsys.readouterr().err
    assert durability.possible_stores() == ["memory", "sqlite"]
    assert "without the postgres store" in capsys.readouterr().err
