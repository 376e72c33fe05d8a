"""Stores copied to others of every kind: all is there, and nothing half done is ever usable."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from bench.postgres_server import PostgresServer
from smpd.queues import Message, Queue
from smpd.stores import postgres_conversion, sqlite_conversion
from smpd.stores.conversion import (
    Counts,
    Record,
    Source,
    Target,
    Waiting,
    behind_their_queues,
    copy,
)
from smpd.stores.interface import StoreUnusable
from smpd.stores.memory import MemoryStore
from smpd.stores.postgres_conversion import PostgresSource, PostgresTarget
from smpd.stores.postgres_database import connect, schema_version
from smpd.stores.postgres_rounds import NUMBERS_AT_A_TIME
from smpd.stores.snapshot import load
from smpd.stores.snapshot_conversion import SnapshotSource, SnapshotTarget
from smpd.stores.sqlite_conversion import SqliteSource, SqliteTarget
from tests.smpd.people import random
from tests.smpd.stores import arbitrary
from tests.smpd.stores.conversions import (
    KINDS,
    InDirectory,
    Place,
    PostgresPlace,
    SqlitePlace,
    contents,
    convert,
    fill,
    in_order,
    of_every_sort,
    services_in,
)
from tests.smpd.stores.disk_stores import DiskStores, Loop
from tests.smpd.stores.postgres_stores import OneAtATime, PostgresStores
from tests.smpd.stores.records import message, new_id, new_queue, notification, service

QUOTA = 2
PAIRS = [(a, b) for a in KINDS for b in KINDS]


@pytest.fixture(autouse=True)
def _server(postgres_server: PostgresServer) -> None:
    """These tests need a database server."""


@pytest.fixture
def places() -> Iterator[Callable[[str], Any]]:
    """Makes places of a kind, which are removed after the test."""
    made: list[Place] = []

    def place(kind: str) -> Place:
        made.append(KINDS[kind]())
        return made[-1]

    yield place
    for each in made:
        each.remove()


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


# -- all is there


@pytest.mark.parametrize(("origin", "destination"), PAIRS)
def test_everything_is_copied_and_the_source_is_as_it_was(
    places: Callable[[str], Any], origin: str, destination: str
) -> None:
    one, other = places(origin), places(destination)
    fill(one, of_every_sort())
    before = contents(one)
    convert(one, other)
    assert contents(other) == before
    assert contents(one) == before


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_records(places: Callable[[str], Any], kind: str) -> None:
    place = places(kind)
    fill(place, of_every_sort())
    source = place.source()
    assert source.counts() == Counts(
        queues=5, links=2, messages=9, notifiers=3, associations=2, notifications=7, services=2
    )
    source.close()


@pytest.mark.parametrize(("origin", "destination"), PAIRS)
def test_an_empty_store_is_copied(
    places: Callable[[str], Any], origin: str, destination: str
) -> None:
    one, other = places(origin), places(destination)
    fill(one, [])
    convert(one, other)
    assert contents(other) == in_order([])


queue_lists = st.lists(
    st.tuples(arbitrary.queues, st.lists(arbitrary.messages, max_size=5)), max_size=4
)


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(arbitrary.services, max_size=3),
    queue_lists,
    st.lists(st.builds(Waiting, st.binary(max_size=24), arbitrary.notifications), max_size=4),
)
def test_any_records_come_back(
    some_services: list[Any],
    queues: list[tuple[Queue, list[Message]]],
    waiting: list[Waiting],
) -> None:
    records: list[Record] = []
    for number, one in enumerate(some_services):
        # Ids are unlike each other.
        one.service_id, one.fingerprint = new_id(), random(32) + bytes([number])
        records.append(one)
    for queue, some in queues:
        queue.recipient_id, queue.sender_id = new_id(), new_id()
        if queue.link is not None:
            queue.link.link_id = new_id()
        if queue.notifier is not None:
            queue.notifier.notifier_id = new_id()
        records += [queue, *some]
    records += waiting
    expected = in_order(records)
    for kind in KINDS.values():
        place = kind()
        fill(place, records)
        assert contents(place) == expected
        place.remove()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize(("rows", "size"), [(1, 1 << 20), (2, 1 << 20), (3, 100), (1000, 20)])
def test_it_makes_no_difference_how_much_is_written_together(
    places: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    rows: int,
    size: int,
) -> None:
    for module in (sqlite_conversion, postgres_conversion):
        monkeypatch.setattr(module, "_ROWS", rows)
        monkeypatch.setattr(module, "_BYTES", size)
    monkeypatch.setattr(postgres_conversion, "_FETCHED", 2)
    monkeypatch.setattr(postgres_conversion, "_BODIES_FETCHED", 1)
    place, records = places(kind), of_every_sort()
    expected = in_order(records)
    fill(place, records)
    assert contents(place) == expected


def test_messages_without_a_queue_are_left_out() -> None:
    queues = [new_queue() for _ in range(3)]
    for number, queue in zip((2, 4, 7), queues, strict=True):
        queue.number = number
    some = {number: message() for number in range(9)}
    found = list(behind_their_queues(queues, [(n, some[n]) for n in (0, 1, 2, 3, 3, 7, 8)]))
    assert found == [queues[0], some[2], queues[1], queues[2], some[7]]


def test_it_tells_how_far_it_is(places: Callable[[str], Any]) -> None:
    one, other = places("sqlite"), places("snapshot")
    fill(one, [new_queue() for _ in range(250)])
    told: list[int] = []
    source, target = one.source(), other.target()
    copy(source, target, lambda counts: told.append(counts.queues))
    source.close()
    target.close()
    assert told == [100, 200, 250]


# -- the rules go on


@pytest.mark.parametrize("origin", ["sqlite", "snapshot"])
def test_quotas_and_associations_in_postgresql(places: Callable[[str], Any], origin: str) -> None:
    """smp-server.md §6, §8"""
    one, other = places(origin), places("postgres")
    records = of_every_sort()
    fill(one, records)
    convert(one, other)
    stores, loop = PostgresStores(other.database), Loop()
    store = OneAtATime(stores.open(other.database, loop), loop, stores)
    try:
        queues = [record for record in records if isinstance(record, Queue)]
        check_quotas(store, queues)
        (notifying, _) = services_in(records)
        assert store.notifier_count(notifying.service_id) == 2
        assert store.add_service(notifying) == notifying
    finally:
        stores.close_all()


def test_quotas_and_associations_in_sqlite(places: Callable[[str], Any]) -> None:
    """smp-server.md §6, §8"""
    one, other = places("postgres"), places("sqlite")
    records = of_every_sort()
    fill(one, records)
    convert(one, other)
    stores = DiskStores()
    store = stores.open(other.path)
    try:
        check_quotas(store, [record for record in records if isinstance(record, Queue)])
        (notifying, _) = services_in(records)
        assert store.notifier_count(notifying.service_id) == 2
        assert store.add_service(notifying) == notifying
        assert store.queue_count() == 5
    finally:
        stores.clear()


def test_quotas_in_a_snapshot(places: Callable[[str], Any]) -> None:
    """smp-server.md §6"""
    one, other = places("postgres"), places("snapshot")
    records = of_every_sort()
    fill(one, records)
    convert(one, other)
    store = MemoryStore()
    assert load(other.path, store)
    check_quotas(store, [record for record in records if isinstance(record, Queue)])


def check_quotas(store: Any, queues: list[Queue]) -> None:
    """A queue with a marker takes nothing before all of it is gone; another goes on."""
    plain, full, *_, marked = (store.by_recipient(queue.recipient_id) for queue in queues)
    assert store.write(plain, message(), 6).accepted
    for queue, count in ((full, 3), (marked, 1)):
        assert store.message_count(queue) == count
        for _ in range(count):
            assert not store.write(queue, message(), QUOTA).accepted
            first = store.head(queue)
            assert store.remove(queue, first.msg_id) is not None
        written = store.write(queue, message(), QUOTA)
        assert written.accepted
        assert written.was_empty


def test_new_queues_get_other_numbers_than_those_copied(
    places: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = places("postgres")
    with psycopg.connect(place.database) as connection:
        ((taken,),) = connection.execute("SELECT nextval('smpd.queue_number')").fetchall()
    fill(place, [new_queue() for _ in range(3)])
    stores = PostgresStores()
    store = stores.open(place.database)
    added: list[Queue] = []

    def work() -> None:
        queue = new_queue()
        store.add(queue)
        added.append(queue)

    store.admit([], work, None)
    store.flush()
    stores.close_all()
    with psycopg.connect(place.database) as connection:
        rows = connection.execute("SELECT number FROM smpd.queue ORDER BY number").fetchall()
    numbers = [row[0] for row in rows]
    start = taken + NUMBERS_AT_A_TIME
    assert numbers == [start, start + 1, start + 2, start + NUMBERS_AT_A_TIME]
    assert added[0].number == numbers[-1]


def test_more_queues_than_numbers_come_at_a_time(
    places: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_conversion, "NUMBERS_AT_A_TIME", 2)
    place = places("postgres")
    queues: list[Record] = [new_queue() for _ in range(5)]
    fill(place, queues)
    with psycopg.connect(place.database) as connection:
        rows = connection.execute("SELECT number FROM smpd.queue ORDER BY number").fetchall()
        ((following,),) = connection.execute("SELECT nextval('smpd.queue_number')").fetchall()
    numbers = [row[0] - rows[0][0] for row in rows]
    assert numbers == [0, 1, 100_000, 100_001, 200_000]
    assert following > rows[-1][0]


def test_modes_of_files(places: Callable[[str], Any]) -> None:
    place = places("sqlite")
    former = os.umask(0)
    try:
        fill(place, of_every_sort())
    finally:
        os.umask(former)
    assert place.path.stat().st_mode & 0o7777 == 0o700
    found = {path.relative_to(place.path): path for path in place.path.rglob("*")}
    assert set(map(str, found)) == {"lock", "relay.sqlite", "messages", "messages/00000001"}
    for path in found.values():
        assert path.stat().st_mode & 0o7777 == (0o700 if path.is_dir() else 0o600)


def test_a_sqlite_store_is_synced_before_it_is_there(
    places: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = places("sqlite")
    done: list[str] = []
    rename, sync = Path.rename, os.fsync

    def synced(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def renamed(path: Path, other: Path) -> Path:
        done.append("renamed")
        return rename(path, other)

    target = place.target()
    for record in of_every_sort():
        target.write(record)
    target.counts()
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    target.finish()
    target.close()
    assert done == ["relay.sqlite", "store.converting", "renamed", place.parent.name]


# -- what is refused


def refusal(make: Callable[[], Source | Target]) -> str:
    """The sentence with which a source or target is refused."""
    with pytest.raises(StoreUnusable) as caught:
        make().close()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def something() -> list[list[Record]]:
    """What is not nothing."""
    return [[new_queue()], [service()], [Waiting(new_id(), notification())]]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_a_target_with_anything_in_it(places: Callable[[str], Any], kind: str, number: int) -> None:
    place = places(kind)
    fill(place, something()[number])
    before = contents(place)
    assert "not empty" in refusal(place.target) or kind == "snapshot"
    assert contents(place) == before


def test_an_empty_sqlite_store_is_replaced(places: Callable[[str], Any]) -> None:
    place, stores = places("sqlite"), DiskStores()
    stores.close(stores.open(place.path))
    records = of_every_sort()
    expected = in_order(records)
    fill(place, records)
    assert contents(place) == expected
    assert names(place.parent) == ["store"]


def test_other_things_in_the_directory(places: Callable[[str], Any]) -> None:
    place = places("sqlite")
    place.path.mkdir()
    (place.path / "letter").write_text("dear")
    assert "other things" in refusal(place.target)
    assert [path.name for path in place.path.iterdir()] == ["letter"]


def test_something_in_the_way_beside(places: Callable[[str], Any]) -> None:
    place = places("sqlite")
    beside = place.parent / "store.converting"
    beside.mkdir()
    (beside / "letter").write_text("dear")
    assert f"{beside} is in the way" in refusal(place.target)
    assert names(place.parent) == ["store.converting"]
    assert (beside / "letter").read_text() == "dear"


def test_a_mount_point(places: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    place = places("sqlite")
    place.path.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == place.path)
    assert "mount point" in refusal(place.target)


@pytest.mark.parametrize("name", ["none", "file", "file/below", "empty"])
def test_no_sqlite_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    assert (
        refusal(lambda: SqliteSource(tmp_path / name)) == f"there is no store in {tmp_path / name}"
    )
    assert names(tmp_path) == ["empty", "file"]
    assert names(tmp_path / "empty") == []


def test_a_target_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "Not a directory" in refusal(lambda: SqliteTarget(tmp_path / "file/store"))


def test_a_sqlite_store_in_use(places: Callable[[str], Any]) -> None:
    place, stores = places("sqlite"), DiskStores()
    stores.open(place.path)
    try:
        assert "is used by another process" in refusal(place.source)
        assert "is used by another process" in refusal(place.target)
    finally:
        stores.clear()


def test_no_sqlite_store_is_opened_while_it_is_converted(places: Callable[[str], Any]) -> None:
    one, other, stores = places("sqlite"), places("sqlite"), DiskStores()
    fill(one, [new_queue()])
    source, target = one.source(), other.target()
    try:
        for place in (one, other):
            with pytest.raises(StoreUnusable, match="used by another process"):
                stores.open(place.path)
    finally:
        target.close()
        source.close()
    assert not other.path.exists()


def test_no_snapshot(tmp_path: Path) -> None:
    assert refusal(lambda: SnapshotSource(tmp_path / "no")) == f"there is no snapshot {tmp_path}/no"
    (tmp_path / "there").write_text("x")
    assert "there already" in refusal(lambda: SnapshotTarget(tmp_path / "there"))


def test_a_database_in_use(places: Callable[[str], Any]) -> None:
    place, stores = places("postgres"), PostgresStores()
    loop = Loop()
    store = stores.open(place.database, loop)
    heard: list[None] = []
    store.listening = lambda: heard.append(None)  # type: ignore[method-assign]
    try:
        loop.wait(lambda: bool(heard))
        for make in (place.source, place.target):
            assert "used by a running relay" in refusal(make)
    finally:
        stores.close_all()


def test_no_relay_starts_while_its_database_is_converted(places: Callable[[str], Any]) -> None:
    one, other, stores = places("postgres"), places("postgres"), PostgresStores()
    source, target = one.source(), other.target()
    try:
        for place in (one, other):
            with pytest.raises(StoreUnusable, match="being converted"):
                stores.open(place.database)
            assert "being converted" in refusal(place.source)
    finally:
        target.close()
        source.close()
        stores.close_all()
    stores.open(one.database)
    stores.close_all()


def test_a_relay_that_has_started_meanwhile(places: Callable[[str], Any]) -> None:
    one, other = places("postgres"), places("sqlite")
    fill(one, of_every_sort())
    source, target = one.source(), other.target()
    try:
        with connect(one.database) as connection:
            connection.execute("SELECT pg_advisory_lock(%s, 1)", (0x736D7064,))
            with pytest.raises(StoreUnusable, match="running relay"):
                copy(source, target, lambda _: None)
    finally:
        target.close()
        source.close()
    assert not other.path.exists()


def test_tables_are_made_if_there_are_none(database: str) -> None:
    assert 'no tables of this relay: "smpctl' in refusal(lambda: PostgresSource(database))
    target = PostgresTarget(database)
    target.write(new_queue())
    assert target.counts().queues == 1
    target.finish()
    target.close()
    with connect(database) as connection:
        assert schema_version(connection) == 1
    source = PostgresSource(database)
    assert source.counts().queues == 1
    source.close()


def test_somebody_has_a_lock_on_the_tables(
    places: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = places("postgres")
    monkeypatch.setattr(postgres_conversion, "_LOCK_TIME", "50ms")
    with psycopg.connect(place.database) as connection:
        connection.execute("SELECT count(*) FROM smpd.queue")
        assert "cannot write the database: canceling statement" in refusal(place.target)


# -- what is interrupted


class Stop(Exception):
    """Something from outside."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("records", [0, 1, 7, 26])
def test_nothing_is_left_of_a_target_that_was_not_finished(
    places: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, kind: str, records: int
) -> None:
    monkeypatch.setattr(sqlite_conversion, "_ROWS", 2)
    monkeypatch.setattr(postgres_conversion, "_ROWS", 2)
    place = places(kind)
    target = place.target()
    some = of_every_sort()
    for record in some[:records]:
        target.write(record)
    target.close()
    assert_empty(place)
    expected = in_order(some)
    fill(place, some)
    assert contents(place) == expected


def assert_empty(place: Place) -> None:
    """There is nothing, or an empty store."""
    if isinstance(place, InDirectory):
        assert names(place.parent) == []
    else:
        assert contents(place) == in_order([])


def test_counts_that_differ(places: Callable[[str], Any]) -> None:
    """A message without a queue."""
    one, other = places("sqlite"), places("postgres")
    fill(one, of_every_sort())
    with sqlite3.connect(one.path / "relay.sqlite") as connection:
        connection.execute("DELETE FROM queue WHERE number = (SELECT min(number) FROM queue)")
    connection.close()
    source, target = one.source(), other.target()
    there, written = copy(source, target, lambda _: None)
    assert (there.messages, written.messages) == (9, 4)
    assert there.queues == written.queues == 4
    target.close()
    source.close()
    assert_empty(other)


@pytest.mark.parametrize(
    ("column", "value"),
    [("recipient_keys", b"x"), ("status", "nonsense"), ("sender_key", b""), ("mode", "X")],
)
@pytest.mark.parametrize(("kind", "destination"), [("sqlite", "postgres"), ("postgres", "sqlite")])
def test_a_damaged_source(
    places: Callable[[str], Any], kind: str, destination: str, column: str, value: object
) -> None:
    one, other = places(kind), places(destination)
    fill(one, of_every_sort())
    if kind == "sqlite":
        with sqlite3.connect(one.path / "relay.sqlite") as connection:
            connection.execute(f"UPDATE queue SET {column} = ?", (value,))
        connection.close()
    else:
        with psycopg.connect(one.database) as database:
            database.execute(f"UPDATE smpd.queue SET {column} = %s", (value,))
    source, target = one.source(), other.target()
    try:
        with pytest.raises(StoreUnusable, match=r"cannot read the .*damaged"):
            copy(source, target, lambda _: None)
    finally:
        target.close()
        source.close()
    assert_empty(other)


def test_a_body_that_is_missing(places: Callable[[str], Any]) -> None:
    one, other = places("sqlite"), places("snapshot")
    fill(one, of_every_sort())
    source, target = one.source(), other.target()
    (one.path / "messages/00000001").unlink()
    with pytest.raises(StoreUnusable, match=f"cannot read the store {one.path}: "):
        copy(source, target, lambda _: None)
    target.close()
    source.close()


@pytest.mark.parametrize("moment", ["append", "sync"])
def test_a_full_disk(
    places: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    one, other = places("postgres"), places("sqlite")
    fill(one, of_every_sort())
    before = contents(one)
    source, target = one.source(), other.target()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target._files.bodies, moment, full)
    with pytest.raises(
        StoreUnusable, match=f"cannot write the store {other.path}: the disk is full"
    ):
        copy(source, target, lambda _: None)
    target.close()
    source.close()
    assert_empty(other)
    assert contents(one) == before


def test_a_directory_that_cannot_be_renamed(
    places: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = places("sqlite")
    target = place.target()
    target.write(new_queue())
    target.counts()

    def fail(path: Path, other: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patches:
        patches.setattr(Path, "rename", fail)
        with pytest.raises(StoreUnusable, match="cannot finish the store"):
            target.finish()
    target.close()
    assert_empty(place)


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_database_that_is_lost(
    places: Callable[[str], Any], own_postgres_server: PostgresServer, role: str
) -> None:
    database = own_postgres_server.database()
    with connect(database):
        PostgresTarget(database).close()
    here = places("sqlite")
    some = of_every_sort()
    expected = in_order(some)
    source: Source
    target: Target
    if role == "source":
        lost = PostgresTarget(database)
        for record in some:
            lost.write(record)
        lost.counts()
        lost.finish()
        lost.close()
        source, target = PostgresSource(database), here.target()
    else:
        fill(here, some)
        source, target = here.source(), PostgresTarget(database)
    with suppress(StopIteration):
        target.write(next(source.records()))
    own_postgres_server.kill()
    with pytest.raises(StoreUnusable, match=r"^cannot (read|write) the database: ") as caught:
        copy(source, target, lambda _: None)
    assert "\n" not in str(caught.value)
    target.close()
    source.close()
    own_postgres_server.start()
    after = PostgresSource(database)
    assert in_order(after.records()) == (expected if role == "source" else in_order([]))
    after.close()
    if role == "source":
        assert_empty(here)
    else:
        assert contents(here) == expected


KILLED = """
import os, signal, sys
from smpd.stores.conversion import copy
from smpd.stores.postgres_conversion import PostgresSource, PostgresTarget
from smpd.stores.sqlite_conversion import SqliteSource, SqliteTarget
kinds = {"sqlite": (SqliteSource, SqliteTarget), "postgres": (PostgresSource, PostgresTarget)}
from pathlib import Path
from smpd.stores import postgres_conversion, sqlite_conversion
postgres_conversion._ROWS = sqlite_conversion._ROWS = 50
kind, there, other, place, number = sys.argv[1:]
path = lambda kind, place: Path(place) if kind == "sqlite" else place
source, target = kinds[kind][0](path(kind, there)), kinds[other][1](path(other, place))
left = int(number)
def progress(counts):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
copy(source, target, progress)
"""


def until_alone(place: PostgresPlace) -> None:
    """Waits until the server has noticed that a process which used the database is gone."""
    deadline = time.monotonic() + 20
    with psycopg.connect(place.database, autocommit=True) as connection:
        while connection.execute(
            "SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).rowcount:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 4, 5])
@pytest.mark.parametrize(("kind", "other"), [("sqlite", "postgres"), ("postgres", "sqlite")])
def test_a_conversion_that_is_killed(
    places: Callable[[str], Any], kind: str, other: str, number: int
) -> None:
    origin, destination = places(kind), places(other)
    records = [
        *of_every_sort()[:-7],
        *(record for _ in range(200) for record in (new_queue(), message())),
    ]
    expected = in_order(records)
    fill(origin, records)
    at = {"sqlite": "path", "postgres": "database"}
    command = [kind, str(getattr(origin, at[kind])), other, str(getattr(destination, at[other]))]
    run = subprocess.run(
        [sys.executable, "-c", KILLED, *command, str(number)], capture_output=True, check=False
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    until_alone(origin if kind == "postgres" else destination)
    assert contents(origin) == expected
    # What is there is an empty store, and another attempt succeeds.
    assert contents(destination) == in_order([])
    convert(origin, destination)
    assert contents(destination) == expected
    if isinstance(destination, SqlitePlace):
        assert names(destination.parent) == ["store"]
