"""The PostgreSQL server for tests and benchmarks: what it keeps, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from bench import postgres_server as module
from bench.postgres_server import (
    PostgresFailedError,
    PostgresMissingError,
    PostgresServer,
    Stop,
    programs,
)

ROOT = Path(__file__).parents[2]
RECOVERED = "was not properly shut down"


def execute(dsn: str, *statements: str) -> list[tuple[object, ...]]:
    """Runs the statements, each in a transaction of its own; the rows of the last."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def command_lines() -> Iterator[str]:
    """Those of all processes of the machine."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield path.read_text(errors="replace")


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def segments() -> set[str]:
    """The numbers of the segments of shared memory of the whole machine."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return {line.split()[1] for line in lines}


def segment(server: PostgresServer) -> str:
    """The number of the server's own."""
    return (server.directory / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]


def test_database_is_empty_and_its_owners(database: str) -> None:
    assert execute(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    assert execute(
        database,
        "CREATE TABLE kept (number int)",
        "INSERT INTO kept VALUES (7)",
        "SELECT number FROM kept",
    ) == [(7,)]
    assert execute(
        database,
        "SELECT rolsuper, rolcreatedb, rolcreaterole FROM pg_roles WHERE rolname = current_user",
    ) == [(False, False, False)]
    assert execute(database, "SHOW server_encoding") == [("UTF8",)]


def test_two_databases_are_apart(postgres_server: PostgresServer, database: str) -> None:
    other = postgres_server.database()
    execute(database, "CREATE TABLE here (number int)")
    with pytest.raises(psycopg.errors.UndefinedTable):
        execute(other, "SELECT * FROM here")
    postgres_server.drop(other)
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        execute(other, "SELECT 1")


def test_database_is_dropped_under_a_connection(postgres_server: PostgresServer) -> None:
    dsn = postgres_server.database()
    with psycopg.connect(dsn) as connection:
        postgres_server.drop(dsn)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_a_password_is_needed(database: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(make_conninfo(database, password="another"))


def test_socket_is_a_way_too(postgres_server: PostgresServer) -> None:
    dsn = postgres_server.database(by_socket=True)
    assert execute(dsn, "SELECT inet_server_addr()") == [(None,)]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(make_conninfo(dsn, password="another"))
    postgres_server.drop(dsn)


def test_the_data_are_nobody_elses(postgres_server: PostgresServer) -> None:
    assert postgres_server.directory.stat().st_mode & 0o077 == 0
    assert execute(postgres_server.dsn, "SHOW data_directory_mode") == [("0700",)]


def test_killed_server_keeps_what_was_committed(own_postgres_server: PostgresServer) -> None:
    server = own_postgres_server
    dsn = server.database()
    execute(dsn, "CREATE TABLE kept (number int)", "INSERT INTO kept VALUES (1)")
    open_transaction = psycopg.connect(dsn)
    open_transaction.execute("INSERT INTO kept VALUES (2)")
    before, logged = server.pids, len(server.log)
    server.kill()
    assert not server.running
    assert not any(map(lives, before))
    assert (server.directory / "data" / "postmaster.pid").exists()
    with pytest.raises(psycopg.OperationalError):
        open_transaction.execute("SELECT 1")
    open_transaction.close()
    server.start()
    assert execute(dsn, "SELECT number FROM kept") == [(1,)]
    assert RECOVERED in server.log[logged:]


@pytest.mark.parametrize("mode", Stop)
def test_stopped_server_starts_again(own_postgres_server: PostgresServer, mode: Stop) -> None:
    server = own_postgres_server
    dsn = server.database()
    execute(dsn, "CREATE TABLE kept (number int)", "INSERT INTO kept VALUES (1)")
    with psycopg.connect(dsn) as connection:
        before, logged = server.pids, len(server.log)
        server.stop(mode)
        assert not any(map(lives, before))
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    server.stop(mode)
    with pytest.raises(psycopg.OperationalError, match="refused"):
        execute(dsn, "SELECT 1")
    server.start()
    server.start()
    assert execute(dsn, "SELECT number FROM kept") == [(1,)]
    assert (RECOVERED in server.log[logged:]) is (mode is Stop.IMMEDIATE)


def test_paused_server_does_not_answer_until_it_goes_on(
    own_postgres_server: PostgresServer,
) -> None:
    server = own_postgres_server
    dsn = server.database()
    with psycopg.connect(dsn) as connection, ThreadPoolExecutor(1) as thread:
        server.pause()
        server.pause()
        try:
            with pytest.raises(psycopg.OperationalError, match="timeout"):
                psycopg.connect(make_conninfo(dsn, connect_timeout=2))
            query = thread.submit(connection.execute, "SELECT 1")
            with pytest.raises(TimeoutError):
                query.result(timeout=0.3)
        finally:
            server.go_on()
        assert query.result(timeout=20).fetchall() == [(1,)]
    assert execute(dsn, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("end", ["stop", "kill", "close"])
def test_paused_server_can_be_ended(own_postgres_server: PostgresServer, end: str) -> None:
    server = own_postgres_server
    with psycopg.connect(server.dsn):
        server.pause()
        before = server.pids
        getattr(server, end)()
    assert not any(map(lives, before))


def test_server_that_does_not_run_is_not_paused(own_postgres_server: PostgresServer) -> None:
    own_postgres_server.stop()
    with pytest.raises(PostgresFailedError, match="is not running"):
        own_postgres_server.pause()


def test_syncing_is_off_unless_asked_for(database: str) -> None:
    statement = "SELECT current_setting('fsync'), current_setting('full_page_writes')"
    assert execute(database, statement) == [("off", "off")]
    with PostgresServer(fsync=True, settings={"max_connections": "20"}) as server:
        assert execute(server.dsn, statement) == [("on", "on")]
        assert execute(server.dsn, "SHOW max_connections") == [("20",)]


@pytest.mark.parametrize("killed", [False, True])
def test_nothing_is_left_over(own_postgres_server: PostgresServer, killed: bool) -> None:
    server = own_postgres_server
    directory, pids, memory = server.directory, server.pids, segment(server)
    assert memory in segments()
    assert len(pids) > 1
    if killed:
        server.kill()
    server.close()
    server.close()
    assert not any(map(lives, pids))
    assert not directory.exists()
    assert memory not in segments()


def test_server_ends_with_the_process_that_started_it() -> None:
    program = (
        "import sys, time\n"
        "from bench.postgres_server import PostgresServer\n"
        "with PostgresServer() as server:\n"
        "    print(server.directory, *server.pids, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        place, *numbers = process.stdout.readline().split()
        process.kill()
    pids = [int(number) for number in numbers]
    assert pids
    wait_until(lambda: not any(map(lives, pids)))
    wait_until(lambda: not Path(place).exists())


def test_nothing_is_left_over_of_a_test_session() -> None:
    test = f"{Path(__file__).relative_to(ROOT)}::{test_socket_is_a_way_too.__name__}"
    with tempfile.TemporaryDirectory() as directory:
        # The server's user has to get in.
        Path(directory).chmod(0o755)
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", test],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": directory},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "1 passed" in run.stdout, run.stdout + run.stderr
        assert not list(Path(directory).glob("postgres-*"))
        assert not [line for line in command_lines() if directory in line]


def test_server_that_cannot_start_says_why_and_is_removed(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    parent = postgres_server.directory / "others"
    parent.mkdir()
    parent.chmod(0o755)
    server = PostgresServer(settings={"shared_buffers": "much"}, parent=parent)
    with pytest.raises(PostgresFailedError, match='invalid value for parameter "shared_buffers"'):
        server.start()
    assert not server.running
    assert not list(parent.iterdir())
    parent.rmdir()


def test_missing_programs_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PostgresMissingError, match="apt-get install postgresql"):
        programs()


def test_newest_programs_are_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_DEBIAN", tmp_path)
    for version in ("9", "15", "16"):
        place = tmp_path / version / "bin"
        place.mkdir(parents=True)
        (place / "initdb").touch(0o755)
        if version != "16":
            (place / "postgres").touch(0o755)
    assert programs() == tmp_path / "15" / "bin"


def test_interrupt_of_the_terminal_is_not_for_the_server(
    own_postgres_server: PostgresServer,
) -> None:
    assert os.getsid(own_postgres_server.pid) != os.getsid(0)
    assert signal.SIGINT is Stop.FAST.value
