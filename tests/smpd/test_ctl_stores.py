"""smpctl database and smpctl store: what they do, say and refuse."""

from __future__ import annotations

import io
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from bench.postgres_server import PostgresServer
from smpd.ctl import run as run_smpctl, store as store_command
from smpd.ctl.store import Progress
from smpd.store_opening import open_store
from smpd.stores import postgres_database
from smpd.stores.conversion import Counts
from smpd.stores.interface import StoreUnusable
from smpd.stores.postgres_database import connect, schema_steps, schema_version, upgrade
from smpd.stores.sqlite_conversion import SqliteSource
from tests.smpd.stores.conversions import (
    PostgresPlace,
    SnapshotPlace,
    SqlitePlace,
    contents,
    fill,
    in_order,
    of_every_sort,
)
from tests.smpd.stores.disk_stores import DiskStores
from tests.smpd.stores.records import new_queue
from tests.smpd.test_ctl import ROOT, Result, assert_refused

SECRET = "hunter2"
NEXT_STEP = "CREATE TABLE more (number bigint PRIMARY KEY); INSERT INTO more VALUES (1);"


class Smpctl:
    """The command, with a configuration that names a database."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.configuration = directory / "smpd.ini"
        self._capsys = capsys

    def configure(self, database: str) -> None:
        self.configuration.write_text(f"[store]\nkind = postgres\ndatabase = {database}\n")

    def __call__(self, *arguments: str | Path) -> Result:
        self._capsys.readouterr()
        status = run_smpctl(["--config", str(self.configuration), *map(str, arguments)])
        return Result(status, *self._capsys.readouterr())


@pytest.fixture
def smpctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Smpctl:
    return Smpctl(tmp_path, capsys)


@pytest.fixture
def configured(smpctl: Smpctl, database: str) -> Smpctl:
    """With a database that is empty."""
    smpctl.configure(database)
    return smpctl


def without_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed."""
    for name in list(sys.modules):
        if name.startswith(("psycopg", "smpd.stores.postgres")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)


def unusable(server: PostgresServer, database: str) -> dict[str, tuple[str, str]]:
    """Databases that cannot be used, and a part of what is said."""
    parts = conninfo_to_dict(database)
    return {
        "wrong password": (
            make_conninfo("", **{**parts, "password": SECRET}),
            "password authentication failed",
        ),
        "no database": (make_conninfo("", **{**parts, "dbname": "none"}), '"none" does not exist'),
        "server down": (make_conninfo("", **{**parts, "port": 1}), "onnection refused"),
        "no host": (f"postgresql://u:{SECRET}@none.invalid/x", "cannot use the database: "),
        "no URL": (f"postgresql://u:1/{SECRET}%zz@127.0.0.1/x", "cannot be understood"),
        "a slash": (f"postgresql://u:{SECRET}/@127.0.0.1/x", "cannot be understood"),
        "an at": (f"postgresql://u:x@{SECRET}@127.0.0.1/x", "cannot be understood"),
        "no string": (f"password={SECRET} {SECRET}", "cannot be understood"),
    }


UNUSABLE = list(unusable(None, ""))  # type: ignore[arg-type]


class TestDatabase:
    def test_create_and_show(self, configured: Smpctl, database: str) -> None:
        assert_refused(configured("database", "show"), 1, "no tables", '"smpctl database create"')
        assert configured("database", "create") == (0, "The tables are made, in version 1.\n", "")
        assert configured("database", "show") == (
            0,
            "The tables are of version 1; this program makes 1.\n",
            "",
        )
        again = configured("database", "create")
        assert again == (0, "The tables are of version 1 already.\n", "")

    def test_upgrade(
        self, configured: Smpctl, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert_refused(configured("database", "upgrade"), 1, '"smpctl database create" makes them')
        configured("database", "create")
        assert configured("database", "upgrade").out == "The tables are of version 1 already.\n"
        steps = [*schema_steps(), NEXT_STEP]
        monkeypatch.setattr(postgres_database, "schema_steps", lambda: steps)
        assert configured("database", "show").out == (
            "The tables are of version 1; this program makes 2.\n"
        )
        assert configured("database", "upgrade").out == (
            "The tables were of version 1, and are of version 2 now.\n"
        )
        with connect(database) as connection:
            assert schema_version(connection) == 2
            assert connection.execute("SELECT number FROM smpd.more").fetchall() == [(1,)]

    def test_a_step_that_fails_changes_nothing(
        self, configured: Smpctl, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configured("database", "create")
        steps = [*schema_steps(), NEXT_STEP, "CREATE TABLE more (x integer)"]
        monkeypatch.setattr(postgres_database, "schema_steps", lambda: steps)
        refused = configured("database", "upgrade")
        assert_refused(refused, 1, 'cannot make the tables: relation "more" already exists')
        with connect(database) as connection:
            assert schema_version(connection) == 1
            assert connection.execute("SELECT to_regclass('smpd.more')").fetchall() == [(None,)]

    def test_no_upgrade_under_a_running_relay(
        self, configured: Smpctl, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configured("database", "create")
        steps = [*schema_steps(), NEXT_STEP]
        monkeypatch.setattr(postgres_database, "schema_steps", lambda: steps)
        with connect(database) as connection:
            connection.execute("SELECT pg_advisory_lock(%s, 7)", (0x736D7064,))
            assert_refused(configured("database", "upgrade"), 1, "used by a running relay")
            assert schema_version(connection) == 1

    @pytest.mark.parametrize("action", ["create", "upgrade", "show"])
    def test_tables_of_a_newer_version(
        self, configured: Smpctl, database: str, action: str
    ) -> None:
        configured("database", "create")
        with connect(database) as connection:
            connection.execute("UPDATE smpd.schema_version SET version = 99")
        assert_refused(configured("database", action), 1, "written by a newer version")

    @pytest.mark.parametrize(
        "made",
        [
            "CREATE TABLE smpd.queue (name text)",
            "CREATE TABLE smpd.other (name text)",
            "CREATE VIEW smpd.other AS SELECT 1",
            "CREATE TABLE smpd.schema_version (name text)",
            "CREATE TABLE smpd.schema_version (version integer)",
        ],
    )
    def test_tables_of_something_else(self, configured: Smpctl, database: str, made: str) -> None:
        with connect(database) as connection:
            connection.execute("CREATE SCHEMA smpd")
            connection.execute(made)
            before = tables(connection)
            assert_refused(configured("database", "create"), 1)
            assert tables(connection) == before

    def test_an_empty_schema_that_is_there_is_taken(
        self, configured: Smpctl, database: str
    ) -> None:
        with connect(database) as connection:
            connection.execute("CREATE SCHEMA smpd")
        assert configured("database", "create").status == 0

    def test_two_at_the_same_time(self, database: str) -> None:
        results: list[tuple[int, int]] = []
        start = threading.Barrier(4)

        def create() -> None:
            with connect(database) as connection:
                start.wait()
                results.append(upgrade(connection))

        threads = [threading.Thread(target=create) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [(0, 1), (1, 1), (1, 1), (1, 1)]

    @pytest.mark.parametrize("action", ["create", "upgrade", "show"])
    @pytest.mark.parametrize("there", [False, True])
    def test_a_user_who_may_not(
        self,
        smpctl: Smpctl,
        database: str,
        postgres_server: PostgresServer,
        action: str,
        there: bool,
    ) -> None:
        name = urlsplit(database).path[1:]
        role = f"reader_{name}"
        if there:
            with connect(database) as connection:
                upgrade(connection)
        with psycopg.connect(postgres_server.dsn, autocommit=True) as administrator:
            administrator.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(role), SECRET)
            )
            try:
                smpctl.configure(make_conninfo(database, user=role, password=SECRET))
                parts = ("permission denied",) if there or action == "create" else ("no tables",)
                refused = smpctl("database", action)
                assert_refused(refused, 1, *parts)
                assert SECRET not in refused.err
            finally:
                administrator.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))

    @pytest.mark.parametrize("action", ["create", "upgrade", "show"])
    @pytest.mark.parametrize("case", ["wrong password", "no database", "server down", "a slash"])
    def test_a_database_that_cannot_be_used(
        self,
        smpctl: Smpctl,
        postgres_server: PostgresServer,
        database: str,
        case: str,
        action: str,
    ) -> None:
        where, part = unusable(postgres_server, database)[case]
        smpctl.configure(where)
        refused = smpctl("database", action)
        assert_refused(refused, 1, "cannot use the database: ", part)
        assert SECRET not in refused.err

    @pytest.mark.parametrize("action", ["create", "upgrade", "show"])
    def test_a_configuration_without_a_database(self, smpctl: Smpctl, action: str) -> None:
        smpctl.configuration.write_text("")
        assert_refused(smpctl("database", action), 1, "names no database")

    @pytest.mark.parametrize("action", ["create", "upgrade", "show"])
    def test_without_psycopg(
        self, smpctl: Smpctl, monkeypatch: pytest.MonkeyPatch, action: str
    ) -> None:
        smpctl.configure("dbname=x")
        without_psycopg(monkeypatch)
        assert_refused(smpctl("database", action), 1, "needs psycopg 3", "python3-psycopg")


def tables(connection: Any) -> list[Any]:
    """All tables, and how they are."""
    found: list[Any] = connection.execute(
        "SELECT table_name, column_name FROM information_schema.columns"
        " WHERE table_schema = 'smpd' ORDER BY 1, 2"
    ).fetchall()
    return found


class TestStart:
    """A store that cannot be opened says so in one sentence."""

    def refusal(self, smpctl: Smpctl) -> str:
        from twisted.internet import reactor

        from smpd.config import load

        with pytest.raises(StoreUnusable) as caught:
            open_store(load(smpctl.configuration).store, reactor).close()
        sentence = str(caught.value)
        assert "\n" not in sentence
        assert SECRET not in sentence
        return sentence

    def test_no_tables(self, configured: Smpctl) -> None:
        assert self.refusal(configured) == (
            'the database has no tables of this relay: "smpctl database create" makes them'
        )

    @pytest.mark.parametrize(("version", "part"), [(0, "older version"), (99, "newer version")])
    def test_tables_of_another_version(
        self, configured: Smpctl, database: str, version: int, part: str
    ) -> None:
        configured("database", "create")
        with connect(database) as connection:
            connection.execute("UPDATE smpd.schema_version SET version = %s", (version,))
        assert part in self.refusal(configured)

    @pytest.mark.parametrize("case", UNUSABLE)
    def test_a_database_that_cannot_be_used(
        self, smpctl: Smpctl, postgres_server: PostgresServer, database: str, case: str
    ) -> None:
        where, part = unusable(postgres_server, database)[case]
        smpctl.configure(where)
        assert part in self.refusal(smpctl)

    def test_without_psycopg(self, smpctl: Smpctl, monkeypatch: pytest.MonkeyPatch) -> None:
        smpctl.configure("dbname=x")
        without_psycopg(monkeypatch)
        assert "needs psycopg 3" in self.refusal(smpctl)

    def test_libpq_is_missing(self, smpctl: Smpctl, monkeypatch: pytest.MonkeyPatch) -> None:
        """psycopg tells of that in many lines."""
        smpctl.configure("dbname=x")
        without_psycopg(monkeypatch)

        class Finder:
            def find_spec(self, name: str, *arguments: object) -> None:
                if name == "psycopg":
                    raise ImportError("no pq wrapper available.\nAttempts made:\n- none")

        monkeypatch.delitem(sys.modules, "psycopg")
        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
        assert "psycopg 3 (no pq wrapper available): install" in self.refusal(smpctl)


TABLE = """\
                        FROM          TO
queues                     5           5
links                      2           2
messages                   9           9
notifiers                  3           3
associations               2           2
notifications              7           7
services                   2           2
"""


@pytest.fixture
def here() -> Iterator[SqlitePlace]:
    place = SqlitePlace()
    yield place
    place.remove()


@pytest.fixture
def there(postgres_server: PostgresServer) -> Iterator[PostgresPlace]:
    place = PostgresPlace()
    yield place
    place.remove()


class TestConvert:
    def test_there_and_back(
        self, smpctl: Smpctl, here: SqlitePlace, database: str, tmp_path: Path
    ) -> None:
        records = of_every_sort()
        expected = in_order(records)
        fill(here, records)
        assert smpctl("store", "convert", f"sqlite:{here.path}", database) == (0, TABLE, "")
        string = f"postgres:{make_conninfo('', **conninfo_to_dict(database))}"
        assert smpctl("store", "convert", string, f"sqlite:{tmp_path}/back") == (0, TABLE, "")
        back = SqliteSource(tmp_path / "back")
        assert in_order(back.records()) == expected
        back.close()

    def test_every_way_to_name_a_database(
        self, smpctl: Smpctl, here: SqlitePlace, there: PostgresPlace, tmp_path: Path
    ) -> None:
        fill(there, of_every_sort())
        url = there.database
        for number, name in enumerate(
            (url, f"postgres:{url}", url.replace("postgresql:", "postgres:"))
        ):
            done = smpctl("store", "convert", name, f"sqlite:{tmp_path}/{number}")
            assert done == (0, TABLE, "")

    def test_snapshots(self, smpctl: Smpctl, here: SqlitePlace) -> None:
        place = SnapshotPlace()
        fill(here, of_every_sort())
        done = smpctl("store", "convert", f"sqlite:{here.path}", f"snapshot:{place.path}")
        assert done == (0, TABLE, "")
        assert contents(place) == contents(here)
        place.remove()

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            ([], "FROM, TO"),
            (["sqlite:a"], "TO"),
            (["sqlite:a", "b"], "argument TO: allowed: sqlite:PATH"),
            (["sqlite:a", "sqlite:"], "argument TO: allowed"),
            (["mysql:password=hunter2", "sqlite:a"], "argument FROM: allowed"),
            (["sqlite:a", "postgres:user=x", "password=hunter2"], "put what has spaces in it"),
            (["postgres:password=hunter2", "postgres:password=hunter2"], "the same store"),
        ],
    )
    def test_wrong_usage(self, smpctl: Smpctl, arguments: list[str], part: str) -> None:
        refused = smpctl("store", "convert", *arguments)
        assert_refused(refused, 2, part)
        assert SECRET not in refused.err

    @pytest.mark.parametrize("case", UNUSABLE)
    def test_a_database_that_cannot_be_used(
        self,
        smpctl: Smpctl,
        here: SqlitePlace,
        postgres_server: PostgresServer,
        database: str,
        case: str,
    ) -> None:
        fill(here, of_every_sort())
        before = contents(here)
        where, part = unusable(postgres_server, database)[case]
        name = where if where.startswith("postgresql:") else f"postgres:{where}"
        for pair in ((f"sqlite:{here.path}", name), (name, f"sqlite:{here.path}x")):
            refused = smpctl("store", "convert", *pair)
            assert_refused(refused, 1, part)
            assert refused.out == ""
            assert SECRET not in refused.err
        assert contents(here) == before
        assert [path.name for path in here.parent.iterdir()] == ["store"]

    def test_what_is_not_empty_stays(
        self, smpctl: Smpctl, here: SqlitePlace, there: PostgresPlace
    ) -> None:
        fill(here, [new_queue()])
        fill(there, [new_queue()])
        before = contents(here), contents(there)
        names = [f"sqlite:{here.path}", f"postgres:{there.database}"]
        assert_refused(smpctl("store", "convert", *names), 1, "the database is not empty")
        assert_refused(smpctl("store", "convert", *names[::-1]), 1, "store is not empty")
        assert (contents(here), contents(there)) == before

    def test_a_store_in_use(self, smpctl: Smpctl, here: SqlitePlace, there: PostgresPlace) -> None:
        stores = DiskStores()
        stores.open(here.path)
        names = [f"sqlite:{here.path}", f"postgres:{there.database}"]
        assert_refused(smpctl("store", "convert", *names), 1, "used by another process")
        stores.clear()
        with connect(there.database) as connection:
            connection.execute("SELECT pg_advisory_lock(%s, 7)", (0x736D7064,))
            refused = smpctl("store", "convert", *names)
            assert_refused(refused, 1, "used by a running relay")

    def test_without_psycopg(
        self, smpctl: Smpctl, here: SqlitePlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        fill(here, [])
        without_psycopg(monkeypatch)
        names = [f"sqlite:{here.path}", "postgres:dbname=x"]
        for pair in (names, names[::-1]):
            assert_refused(smpctl("store", "convert", *pair), 1, "needs psycopg 3")
        # Others do without it.
        assert smpctl("store", "convert", names[0], f"sqlite:{tmp_path}/s").status == 0

    def test_counts_that_differ(
        self, smpctl: Smpctl, here: SqlitePlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        fill(here, of_every_sort())
        monkeypatch.setattr(SqliteSource, "counts", lambda source: Counts(queues=12_345))
        result = smpctl("store", "convert", f"sqlite:{here.path}", f"sqlite:{tmp_path}/s")
        assert_refused(result, 1, "the counts differ")
        assert result.out.splitlines()[:2] == [
            "                        FROM          TO",
            "queues                12,345           5",
        ]
        assert not (tmp_path / "s").exists()

    def test_an_interruption(
        self, smpctl: Smpctl, here: SqlitePlace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        fill(here, of_every_sort())
        before = contents(here)

        def interrupt(*arguments: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(store_command, "copy", interrupt)
        result = smpctl("store", "convert", f"sqlite:{here.path}", f"sqlite:{tmp_path}/s")
        assert_refused(result, 1, "interrupted: FROM is as it was, and nothing is in TO")
        assert not (tmp_path / "s").exists()
        assert contents(here) == before


class Clock:
    """Seconds that a test lets pass."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class TestProgress:
    def run(self, out: io.StringIO) -> str:
        clock = Clock()
        progress = Progress(Counts(queues=2000, messages=10), out, clock)
        for number in range(1, 21):
            clock.now += 1
            progress(Counts(queues=100 * number, messages=number // 2))
        progress.end()
        return out.getvalue()

    def test_a_line_every_few_seconds(self) -> None:
        lines = self.run(io.StringIO()).splitlines()
        assert len(lines) == 4
        assert lines[1] == "1,000 of 2,000 queues, 5 of 10 messages, 100 a second"

    def test_one_line_of_a_terminal(self) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        text = self.run(Terminal())
        assert text.count("\r") == 20
        assert text.count("\n") == 1
        assert text.endswith("\r2,000 of 2,000 queues, 10 of 10 messages, 100 a second\x1b[K\n")


def test_ctrl_c_after_which_the_database_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not what was asked for that failed."""

    def copy(*places: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise StoreUnusable("cannot write the database: no COPY in progress") from None

    monkeypatch.setattr(store_command, "_copy", copy)
    assert run_smpctl(["store", "convert", "sqlite:here", "snapshot:there"]) == 1
    assert capsys.readouterr().err.startswith("smpctl: interrupted: FROM is as it was")


@pytest.mark.slow
def test_as_a_process_that_is_interrupted(here: SqlitePlace, there: PostgresPlace) -> None:
    fill(here, [new_queue() for _ in range(100_000)])
    program = "from smpd.ctl import main; main()"
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program, "store", "convert", f"sqlite:{here.path}", there.database],
        stdout=subprocess.PIPE,
        stderr=terminal,
        cwd=ROOT,
    )
    os.close(terminal)
    said = os.read(master, 1000)
    assert b" of 100,000 queues" in said
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert out == b""
    said = b""
    with suppress(OSError):
        # There is no more.
        while True:
            said += os.read(master, 1000)
    os.close(master)
    assert b"smpctl: interrupted: " in said
    assert said.count(b"\n") == 2
    assert b"Traceback" not in said
    assert contents(there) == in_order([])
