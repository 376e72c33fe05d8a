"""Snapshots: all of a store in one file, or a sentence that says why not."""

from __future__ import annotations

import io
import os
import resource
import stat
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from smpd.queues import Message, Queue, Status
from smpd.stores.interface import Collision, Notification, Service
from smpd.stores.memory import MemoryStore
from smpd.stores.snapshot import (
    SnapshotError,
    decode_snapshot,
    discard,
    encode_snapshot,
    load,
    save,
)
from tests.smpd.stores.arbitrary import messages, notifications, queues, services
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
from txsimplex.encoding import ParseError
from txsimplex.smp.commands import Role
from txsimplex.smp.errors import BlockingInformation, BlockingReason, Notice


def content_of(store: MemoryStore) -> list[object]:
    """All that a store has."""
    names = [one.name for one in fields(Queue) if one.name not in {"_box"}]
    return [
        [[getattr(queue, name) for name in names] for queue in store.queues()],
        [(notifier_id, list(waiting)) for notifier_id, waiting in store.notifications()],
        list(store.services()),
    ]


def encoded(store: MemoryStore) -> bytes:
    """The snapshot of a store."""
    return b"".join(encode_snapshot(store))


def decoded(data: bytes) -> MemoryStore:
    """The store of a snapshot."""
    return decode_snapshot(io.BytesIO(data).read)


def some_store() -> MemoryStore:
    """A store with a record of every kind."""
    store = MemoryStore()
    known = store.add_service(service(Role.NOTIFIER))
    full = new_queue(link=link(), notifier=notifier(known.service_id))
    store.add(full)
    for number in range(4):
        store.write(full, message(NOW + number, b"message %d" % number), 3)
    store.add(empty := new_queue(mode=None))
    store.set_status(empty, Status.BLOCKED, BlockingInformation(BlockingReason.SPAM, Notice(3600)))
    assert full.notifier is not None
    store.add_notification(full.notifier.notifier_id, notification())
    store.add_notification(full.notifier.notifier_id, notification(NOW + 1))
    return store


@st.composite
def stores(draw: st.DrawFn) -> MemoryStore:
    """Any store, made by its own methods."""
    store = MemoryStore()
    for one in draw(st.lists(services, max_size=3, unique_by=lambda one: one.fingerprint)):
        store.add_service(one)
    for queue in draw(st.lists(queues, max_size=4)):
        try:
            store.add(queue)
        except Collision:
            continue
        for written in draw(st.lists(messages, max_size=5)):
            store.write(queue, written, 3)
        if queue.notifier is not None:
            for one_more in draw(st.lists(notifications, max_size=3)):
                store.add_notification(queue.notifier.notifier_id, one_more)
    return store


# -- the bytes


@given(stores())
def test_what_is_written_is_read(store: MemoryStore) -> None:
    read = decoded(encoded(store))
    assert content_of(read) == content_of(store)


@given(stores())
def test_everything_is_found_again(store: MemoryStore) -> None:
    read = decoded(encoded(store))
    assert read.queue_count() == store.queue_count()
    for queue in store.queues():
        found = read.by_recipient(queue.recipient_id)
        assert found is not None
        assert read.by_sender(queue.sender_id) is found
        if queue.link is not None:
            assert read.by_link(queue.link.link_id) is found
        if queue.notifier is not None:
            assert read.by_notifier(queue.notifier.notifier_id) is found
            service_id = queue.notifier.service_id
            if service_id is not None:
                assert read.notifier_count(service_id) == store.notifier_count(service_id)


def test_an_empty_store() -> None:
    assert content_of(decoded(encoded(MemoryStore()))) == [[], [], []]


def test_an_empty_body_and_the_state_of_the_quota_survive() -> None:
    store = MemoryStore()
    store.add(queue := new_queue())
    written = [message(body=b""), message(body=b"two"), message(body=b"refused")]
    for one in written:
        store.write(queue, one, 2)
    read = decoded(encoded(store))
    found = read.by_recipient(queue.recipient_id)
    assert found is not None
    assert not read.write(found, message(), 2).accepted
    first, second, marker = found.messages.waiting
    assert first == Message(written[0].msg_id, NOW, False, b"")
    assert not first.is_quota
    assert second == written[1]
    assert marker == Message(written[2].msg_id, NOW, False, None)
    for one in (first, second, marker):
        assert read.remove(found, one.msg_id) == one
    assert read.write(found, message(), 2).accepted


@settings(max_examples=200)
@given(st.data())
def test_what_is_cut_off_is_refused(data: st.DataObject) -> None:
    whole = encoded(some_store())
    size = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ParseError, match=r"cut off|no snapshot"):
        decoded(whole[:size])


@settings(max_examples=200)
@given(st.data())
def test_what_was_changed_is_refused(data: st.DataObject) -> None:
    whole = bytearray(encoded(some_store()))
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ParseError):
        decoded(bytes(whole))


@given(st.binary(min_size=1, max_size=100))
def test_what_stands_behind_it_is_refused(more: bytes) -> None:
    with pytest.raises(ParseError, match="damaged"):
        decoded(encoded(some_store()) + more)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_parse_error(data: bytes) -> None:
    with pytest.raises(ParseError):
        decoded(data)
    with pytest.raises(ParseError):
        decoded(encoded(MemoryStore())[:20] + data)


def test_records_that_go_against_each_other_are_refused() -> None:
    """They would be with a right checksum, too."""
    queue = new_queue()

    class Twice(MemoryStore):
        def queues(self) -> object:  # type: ignore[override]
            return iter([queue, queue])

    with pytest.raises(ParseError, match="damaged"):
        decoded(encoded(Twice()))


def test_another_version_is_refused() -> None:
    data = encoded(some_store())
    with pytest.raises(ParseError, match="its version is 2, this relay reads 1"):
        decoded(data[:18] + b"\0\2" + data[20:])


def test_long_lengths_take_no_memory() -> None:
    def read(size: int) -> bytes:
        assert size < 1 << 26
        return data.read(size)

    data = io.BytesIO(encoded(MemoryStore())[:20] + b"M\xff\xff\xff\xff")
    with pytest.raises(ParseError, match="damaged"):
        decode_snapshot(read)


# -- the file


def test_a_store_goes_on_from_its_file(tmp_path: Path) -> None:
    path, store, again = tmp_path / "snapshot", some_store(), MemoryStore()
    save(store, path)
    assert load(path, again)
    assert content_of(again) == content_of(store)
    assert path.exists()
    discard(path)
    assert list(tmp_path.iterdir()) == []
    assert not load(path, MemoryStore())


def test_it_is_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    path.write_bytes(b"")
    path.chmod(0o644)
    (tmp_path / "snapshot.new").write_bytes(b"of a crash")
    save(some_store(), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_loaded_takes_the_place_of_all(tmp_path: Path) -> None:
    path, store = tmp_path / "snapshot", some_store()
    save(MemoryStore(), path)
    calls: list[None] = []
    store.on_commit = lambda: calls.append(None)
    assert load(path, store)
    assert content_of(store) == [[], [], []]
    store.on_commit()
    assert calls == [None]


def test_no_file_is_no_snapshot(tmp_path: Path) -> None:
    store = some_store()
    before = content_of(store)
    assert not load(tmp_path / "snapshot", store)
    assert content_of(store) == before
    discard(tmp_path / "snapshot")


def test_a_damaged_file_is_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    path, store = tmp_path / "snapshot", some_store()
    data = encoded(some_store())
    before = content_of(store)
    for damaged, reason in (
        (data[:-1], "it is cut off"),
        (data[:-1] + bytes([data[-1] ^ 1]), "it is damaged"),
        (data + b"!", "it is damaged"),
        (b"", "it is no snapshot"),
        (data[:18] + b"\0\7" + data[20:], "its version is 7, this relay reads 1"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(SnapshotError) as raised:
            load(path, store)
        assert str(raised.value) == f"{path} cannot be used: {reason}."
        assert content_of(store) == before
        assert path.read_bytes() == damaged


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError) as raised:
        load(tmp_path, MemoryStore())
    assert str(raised.value) == f"{tmp_path} cannot be read: Is a directory."
    with pytest.raises(SnapshotError) as raised:
        discard(tmp_path)
    assert str(raised.value) == f"{tmp_path} cannot be removed: Is a directory."


def test_a_place_where_none_can_be_written(tmp_path: Path) -> None:
    """Said at the start already, when nothing is lost yet."""
    path = tmp_path / "nowhere" / "snapshot"
    with pytest.raises(SnapshotError) as raised:
        load(path, MemoryStore())
    assert str(raised.value) == f"No snapshot can be written to {path.parent}."
    with pytest.raises(SnapshotError) as raised:
        save(MemoryStore(), path)
    assert str(raised.value) == f"{path} cannot be written: No such file or directory."


def test_a_full_disk_leaves_the_former_file(tmp_path: Path) -> None:
    path, store = tmp_path / "snapshot", some_store()
    save(MemoryStore(), path)
    former = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(SnapshotError) as raised:
            save(store, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(raised.value) == f"{path} cannot be written: File too large."
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == former


def test_it_is_synced_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "snapshot", []

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    save(some_store(), path)
    assert synced == [("snapshot.new", False), (tmp_path.name, True)]


def test_no_text_tells_what_is_inside(tmp_path: Path) -> None:
    """Errors end up in a log."""
    path, store = tmp_path / "snapshot", MemoryStore()
    store.add(queue := new_queue())
    store.write(queue, Message(new_id(), NOW, False, b"secret"), 3)
    store.add_notification(new_id(), Notification(NOW, b"nonce", b"meta"))
    store.add_service(Service(new_id(), Role.NOTIFIER, (b"chain",), b"fingerprint", NOW))
    data = encoded(store)
    for position in range(20, len(data), 7):
        changed = data[:position] + bytes([data[position] ^ 255]) + data[position + 1 :]
        path.write_bytes(changed)
        with pytest.raises(SnapshotError) as raised:
            load(path, MemoryStore())
        assert str(raised.value) in {
            f"{path} cannot be used: it is {how}." for how in ("damaged", "cut off")
        }
        assert raised.value.__cause__ is None
