"""Disks that are full, read-only or broken, files of others: nothing is lost, one line tells."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import provider

from smpd.queues import DAY, Message, Queue, Status
from smpd.stores.interface import Store, StoreError
from smpd.stores.sqlite import StoreUnusable
from tests.smpd.people import key, random
from tests.smpd.stores.disk_stores import DiskStores, Loop
from tests.smpd.stores.records import (
    NOW,
    link,
    message,
    new_id,
    new_queue,
    notification,
    notifier,
    service,
)
from txsimplex.smp.commands import LinkData

BODY = 16064


@pytest.fixture
def stores() -> Iterator[DiskStores]:
    """Stores that are closed after the test."""
    stores = DiskStores()
    yield stores
    stores.clear()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the store has logged."""
    lines: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if str(event.get("log_namespace", "")).startswith("smpd.stores"):
            lines.append(str(event["log_format"]).format(**event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def failure_of(store: Store) -> str | None:
    """Why the store cannot write now."""
    return store.failure


def bodies(store: Store, queue: Queue) -> list[bytes | None]:
    """The bodies of all messages of a queue, which is looked up again."""
    found = store.by_recipient(queue.recipient_id)
    assert found is not None
    store.message_count(found)
    return [each.body for each in found.messages.waiting]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may be longer: a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("threaded", [False, True])
def test_a_full_disk_and_its_end(stores: DiskStores, lines: list[str], threaded: bool) -> None:
    directory, loop = stores.directory(), Loop()
    store = stores.open(directory, loop, threaded=threaded)
    told: list[str | None] = []
    store.on_commit = lambda: told.append(store.failure)
    store.add(queue := new_queue())
    store.write(queue, first := message(body=random(BODY)), 128)
    store.flush()
    safe = store.committed
    with largest_file(20_000):
        store.write(queue, second := message(body=random(BODY)), 128)
        store.set_status(queue, Status.OFF)
        loop.wait(lambda: store.failure is not None)
        # The system says that the file is too large, which SQLite takes for an error of the disk.
        assert failure_of(store) in ("the disk is full", "the disk reports errors")
        assert store.committed == safe
        with pytest.raises(StoreError, match=r"^the disk "):
            store.write(queue, message(), 128)
        assert store.head(queue) == first
        assert store.message_count(queue) == 2
        loop.clock.pump([0.5] * 5)
        assert len(lines) == 1
        assert lines[0].startswith("the store cannot write: the disk ")
    loop.wait(lambda: store.committed == store.noted)
    assert failure_of(store) is None
    assert lines[1:] == ["the store can write again; nothing was lost"]
    assert told[-1] is None
    assert sum(each is not None for each in told) == 1
    store.write(queue, third := message(body=random(BODY)), 128)
    stores.close(store)
    again = stores.open(directory)
    assert bodies(again, queue) == [first.body, second.body, third.body]
    found = again.by_recipient(queue.recipient_id)
    assert found is not None
    assert found.status is Status.OFF


def test_a_disk_that_is_full_for_the_database_only(stores: DiskStores) -> None:
    """The bodies find room, the rows do not: the bodies keep theirs for the next attempt."""
    directory, loop = stores.directory(), Loop()
    store = stores.open(directory, loop)
    store.add(queue := new_queue())
    store.write(queue, first := message(body=b"first"), 128)
    store.flush()
    log = directory / "relay.sqlite-wal"
    with largest_file(log.stat().st_size):
        store.write(queue, second := message(body=b"second"), 128)
        loop.pass_interval()
        assert failure_of(store) is not None
        loop.turn(1.0)
    loop.turn(1.0)
    assert failure_of(store) is None
    assert (directory / "messages" / "00000001").stat().st_size == 2 * 4096
    stores.close(store)
    assert bodies(stores.open(directory), queue) == [first.body, second.body]


def changes(store: Store, queue: Queue) -> dict[str, Callable[[], Any]]:
    """Every way to change something."""
    assert queue.notifier is not None
    notifier_id = queue.notifier.notifier_id
    first = store.head(queue)
    assert first is not None
    return {
        "add": lambda: store.add(new_queue()),
        "secure": lambda: store.secure(queue, key().public),
        "set_recipient_keys": lambda: store.set_recipient_keys(queue, [key().public]),
        "set_link": lambda: store.set_link(queue, new_id(), LinkData(b"", b"")),
        "delete_link": lambda: store.delete_link(queue),
        "set_notifier": lambda: store.set_notifier(queue, notifier()),
        "delete_notifier": lambda: store.delete_notifier(queue),
        "set_status": lambda: store.set_status(queue, Status.OFF),
        "use": lambda: store.use(queue, DAY),
        "delete": lambda: store.delete(queue),
        "write": lambda: store.write(queue, message(), 128),
        "remove": lambda: store.remove(queue, first.msg_id),
        "expire": lambda: store.expire(queue, NOW + 1),
        "expire_all": lambda: list(store.expire_all(NOW + 1, 10)),
        "add_notification": lambda: store.add_notification(notifier_id, notification()),
        "take_notifications": lambda: store.take_notifications(notifier_id),
        "expire_notifications": lambda: store.expire_notifications(NOW + 1),
        "add_service": lambda: store.add_service(service()),
        "associate": lambda: store.associate(queue, None),
    }


def state(store: Store, queue: Queue) -> list[object]:
    """What must not change."""
    found = store.by_recipient(queue.recipient_id)
    assert found is queue
    assert queue.link is not None
    assert queue.notifier is not None
    service_id = queue.notifier.service_id
    assert service_id is not None
    return [
        store.queue_count(),
        queue.recipient_keys,
        queue.sender_key,
        queue.status,
        queue.used_on,
        queue.link.link_id,
        store.by_link(queue.link.link_id) is queue,
        queue.notifier.notifier_id,
        store.by_notifier(queue.notifier.notifier_id) is queue,
        store.notifier_count(service_id),
        store.notifiers_waiting(),
        [each.msg_id for each in queue.messages.waiting],
        store.noted,
        store.committed,
    ]


def test_nothing_changes_while_nothing_can_be_written(
    stores: DiskStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = Loop()
    store = stores.open(loop=loop)
    service_id = store.add_service(service()).service_id
    queue = new_queue(link=link(), notifier=notifier(service_id))
    store.add(queue)
    assert queue.notifier is not None
    store.add_notification(queue.notifier.notifier_id, notification())
    store.write(queue, message(), 128)
    store.flush()
    with monkeypatch.context() as patch:
        patch.setattr(store._files.bodies, "append", _fails(errno.EIO))
        store.write(queue, message(), 128)
        loop.pass_interval()
        assert failure_of(store) == "the disk reports errors"
        before = state(store, queue)
        ways = changes(store, queue)
        assert {*ways, "unused"} == {
            name
            for name in Store.__abstractmethods__
            if not name.startswith("by_") and name not in READING
        }
        for name, change in ways.items():
            with pytest.raises(StoreError, match="disk reports errors"):
                change()
            assert state(store, queue) == before, name
    loop.turn(1.0)
    assert store.committed == store.noted


READING = {"queue_count", "head", "message_count", "notifiers_waiting", "notifier_count"}


def _fails(code: int) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


class _Faulty:
    """A connection that fails at its `at`th statement, once, before or after doing it."""

    def __init__(self, connection: sqlite3.Connection, at: int, after: bool) -> None:
        self._connection = connection
        self._left = at
        self._after = after
        self.failed = False

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, statement: str, *values: Any) -> Any:
        self._left -= 1
        now = self._left == 0 and not statement.startswith("ROLLBACK")
        if now:
            self.failed = True
        if now and not self._after:
            raise sqlite3.OperationalError("disk I/O error")
        done = self._connection.execute(statement, *values)
        if now:
            raise sqlite3.OperationalError("disk I/O error")
        return done


@pytest.mark.parametrize("after", [False, True])
def test_a_failure_at_any_statement_loses_nothing(stores: DiskStores, after: bool) -> None:
    """Even one that was carried out and said that it was not."""
    at, failed = 0, True
    while failed:
        at += 1
        directory, loop = stores.directory(), Loop()
        store = stores.open(directory, loop)
        fixture = _populated(store)
        store.flush()
        loop.turn(1.0)
        kept = store._writer._connection
        faulty = _Faulty(kept, at, after)
        store._writer._connection = faulty  # type: ignore[assignment]
        expected = _changed(store, fixture)
        loop.pass_interval()
        failed = faulty.failed
        assert (store.failure is not None) is failed
        loop.turn(1.0)
        assert failure_of(store) is None
        assert store.committed == store.noted
        store._writer._connection = kept
        stores.close(store)
        _check(stores.open(directory), expected)
    assert at > 10


def _populated(store: Store) -> list[Queue]:
    queues = [new_queue(link=link(), notifier=notifier()) for _ in range(4)]
    for queue in queues:
        store.add(queue)
        for _ in range(2):
            store.write(queue, message(body=random(100)), 128)
    return queues


def _changed(store: Store, queues: list[Queue]) -> dict[bytes, list[Message]]:
    first, second, third, fourth = queues
    assert first.link is not None
    link_id = first.link.link_id
    store.delete_link(first)
    store.set_link(second, link_id, LinkData(b"1", b"2"))
    store.delete(third)
    head = store.head(fourth)
    assert head is not None
    store.remove(fourth, head.msg_id)
    store.add(new := new_queue(notifier=notifier()))
    store.write(new, message(body=b"new"), 128)
    store.write(first, message(body=b"more"), 3)
    store.write(first, message(body=b"too much"), 3)
    return {
        queue.recipient_id: [
            Message(each.msg_id, each.timestamp, each.notify, each.body)
            for each in queue.messages.waiting
        ]
        for queue in (first, second, fourth, new)
    }


def _check(store: Store, expected: dict[bytes, list[Message]]) -> None:
    assert store.queue_count() == len(expected)
    for recipient_id, messages in expected.items():
        queue = store.by_recipient(recipient_id)
        assert queue is not None
        assert store.message_count(queue) == len(messages)
        assert queue.messages.waiting == messages


@pytest.mark.parametrize("step", ["append", "sync"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EROFS, "the disk is read-only"),
        (errno.EIO, "the disk reports errors"),
    ],
)
def test_bodies_that_cannot_be_written(
    stores: DiskStores, monkeypatch: pytest.MonkeyPatch, step: str, code: int, reason: str
) -> None:
    directory, loop = stores.directory(), Loop()
    store = stores.open(directory, loop)
    expected = _changed(store, _populated(store))
    with monkeypatch.context() as patch:
        patch.setattr(store._files.bodies, step, _fails(code))
        loop.pass_interval()
        assert failure_of(store) == reason
        loop.turn(1.0)
        assert failure_of(store) == reason
    loop.turn(1.0)
    assert failure_of(store) is None
    stores.close(store)
    _check(stores.open(directory), expected)


def test_closing_with_a_full_disk_ends_and_keeps_what_is_safe(
    stores: DiskStores, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("smpd.stores.sqlite._CLOSE_TIME", 0.3)
    directory = stores.directory()
    store = stores.open(directory)
    store.add(queue := new_queue())
    store.write(queue, first := message(), 128)
    store.flush()
    store.write(queue, message(), 128)
    with largest_file(1024):
        stores.close(store)
    assert lines[-1] == "the store is closed without the last changes: the disk is full"
    assert bodies(stores.open(directory), queue) == [first.body]


def test_a_body_that_cannot_be_read(stores: DiskStores) -> None:
    directory = stores.directory()
    store = stores.open(directory)
    store.add(queue := new_queue())
    store.write(queue, message(), 128)
    store.flush()
    shutil.move(directory / "messages", directory / "elsewhere")
    with pytest.raises(StoreError, match=r"^the disk reports errors$"):
        store.head(queue)
    assert store.message_count(queue) == 1
    shutil.move(directory / "elsewhere", directory / "messages")
    assert store.head(queue) is not None


def test_a_row_that_was_not_written_by_the_store(stores: DiskStores) -> None:
    directory = stores.directory()
    store = stores.open(directory)
    store.add(queue := new_queue())
    stores.close(store)
    database = sqlite3.connect(directory / "relay.sqlite")
    database.execute("UPDATE queue SET recipient_keys = X'0102'")
    database.commit()
    database.close()
    store = stores.open(directory)
    with pytest.raises(StoreError, match=r"^the database is damaged$"):
        store.by_recipient(queue.recipient_id)


# -- at the start


def refusal(stores: DiskStores, directory: Path) -> str:
    """Why a store is not opened: one sentence."""
    with pytest.raises(StoreUnusable) as caught:
        stores.open(directory)
    text = str(caught.value)
    assert "\n" not in text
    assert str(directory) in text
    return text


def test_one_process_at_a_time(stores: DiskStores) -> None:
    directory = stores.directory()
    store = stores.open(directory)
    assert "used by another process" in refusal(stores, directory)
    stores.close(store)
    stores.open(directory)


def test_the_lock_of_another_process(stores: DiskStores) -> None:
    directory = stores.directory()
    store = stores.open(directory)
    script = (
        "import fcntl, sys\n"
        "try: fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: print('locked')\n"
    )
    command = [sys.executable, "-c", script, str(directory / "lock")]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"locked\n"
    stores.close(store)
    assert subprocess.run(command, capture_output=True, check=True).stdout == b""
    with (directory / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "used by another process" in refusal(stores, directory)


@pytest.mark.parametrize(
    "content", [b"no database at all", random(5000), b"SQLite format 3\0" * 99]
)
def test_a_file_that_is_no_database(stores: DiskStores, content: bytes) -> None:
    directory = stores.directory()
    (directory / "relay.sqlite").write_bytes(content)
    assert "relay.sqlite" in refusal(stores, directory)
    assert "damaged" in refusal(stores, directory)
    assert (directory / "relay.sqlite").read_bytes() == content


def test_a_database_of_something_else(stores: DiskStores) -> None:
    directory = stores.directory()
    database = sqlite3.connect(directory / "relay.sqlite")
    database.execute("CREATE TABLE recipe (title TEXT)")
    database.close()
    assert "something else" in refusal(stores, directory)


def test_a_database_that_was_cut_off(stores: DiskStores) -> None:
    directory = stores.directory()
    store = stores.open(directory)
    for _ in range(50):
        store.add(new_queue())
    stores.close(store)
    os.truncate(directory / "relay.sqlite", 1024)
    assert "damaged" in refusal(stores, directory)


def test_bodies_that_are_missing(stores: DiskStores) -> None:
    directory = stores.directory()
    store = stores.open(directory)
    store.add(queue := new_queue())
    store.write(queue, message(), 4)
    stores.close(store)
    (directory / "messages" / "00000001").unlink()
    assert "messages/00000001: No such file" in refusal(stores, directory)


def test_a_newer_version(stores: DiskStores) -> None:
    directory = stores.directory()
    stores.close(stores.open(directory))
    database = sqlite3.connect(directory / "relay.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    assert "newer version" in refusal(stores, directory)


def test_a_directory_that_is_a_file(stores: DiskStores) -> None:
    path = stores.directory() / "store"
    path.write_text("")
    assert "File exists" in refusal(stores, path)


def test_files_are_for_the_owner_only(stores: DiskStores) -> None:
    directory = stores.directory() / "below" / "store"
    store = stores.open(directory)
    store.add(queue := new_queue())
    store.write(queue, message(), 4)
    store.flush()
    assert directory.stat().st_mode & 0o777 == 0o700
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*")}
    assert {"relay.sqlite", "relay.sqlite-wal", "lock", "messages/00000001"} <= found.keys()
    for path in found.values():
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


# -- a real disk that is full or read-only


class SmallDisk:
    """A file system of one megabyte in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, *options: str) -> bool:
        """Whether this process may mount."""
        command = ["mount", *options, str(self.path)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mounted, where root runs the tests."""
    disk = SmallDisk(tmp_path)
    if os.geteuid() or not disk.mount("-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        pytest.skip("may not mount a file system")
    yield disk
    subprocess.run(["umount", str(tmp_path)], check=True)


def fill(path: Path) -> None:
    """Takes all room that is left."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


def test_a_disk_that_runs_full_and_has_room_again(
    stores: DiskStores, small_disk: SmallDisk, lines: list[str]
) -> None:
    directory, loop = small_disk.path / "store", Loop()
    store = stores.open(directory, loop, threaded=True)
    store.add(queue := new_queue())
    sent: list[bytes | None] = []
    while store.failure is None:
        sent.append(random(BODY))
        assert store.write(queue, message(body=sent[-1]), 1000).accepted
        loop.wait(lambda: store.committed == store.noted or store.failure is not None)
    assert 20 < len(sent) < 65
    assert failure_of(store) == "the disk is full"
    with pytest.raises(StoreError, match=r"^the disk is full$"):
        store.write(queue, message(), 1000)
    assert len(lines) == 1
    # The recipient cannot be served: his ACK could not be kept. Somebody makes room.
    assert small_disk.mount("-o", "remount,size=4m")
    loop.wait(lambda: store.failure is None)
    store.write(queue, message(body=sent[-1]), 1000)
    stores.close(store)
    store = stores.open(directory)
    assert bodies(store, queue) == [*sent, sent[-1]]
    stores.close(store)


def test_a_disk_that_is_full_at_the_start(stores: DiskStores, small_disk: SmallDisk) -> None:
    fill(small_disk.path / "other")
    text = refusal(stores, small_disk.path / "store")
    assert "No space left" in text or "the disk is full" in text
    (small_disk.path / "other").unlink()
    stores.close(stores.open(small_disk.path / "store"))


def test_a_disk_that_is_read_only_at_the_start(stores: DiskStores, small_disk: SmallDisk) -> None:
    directory = small_disk.path / "store"
    stores.close(stores.open(directory))
    assert small_disk.mount("-o", "remount,ro")
    assert "Read-only file system" in refusal(stores, directory)
    assert small_disk.mount("-o", "remount,rw")
    stores.close(stores.open(directory))
