"""The SQLite store keeps the contract of stores, and what it was told, in memory or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from smpd.queues import DAY, Message, Messages, Queue, Status
from smpd.stores.interface import Collision, Store
from smpd.stores.memory import MemoryStore
from tests.smpd.people import key, random
from tests.smpd.stores.contract import StoreContract
from tests.smpd.stores.disk_stores import TICK, BeforeEachCall, DiskStores, Loop
from tests.smpd.stores.machines import machines
from tests.smpd.stores.records import (
    NOW,
    at_once,
    link,
    message,
    new_id,
    new_queue,
    notification,
    notifier,
    service,
)
from txsimplex.smp.commands import LinkData, QueueMode
from txsimplex.smp.errors import BlockingInformation, BlockingReason, Notice

stores = DiskStores()


@pytest.fixture(autouse=True)
def _clear() -> Iterator[None]:
    yield
    stores.clear()


def new_store() -> Store:
    """A store that commits nothing unless it is told: its clock stands still."""
    return stores.open()


def new_committing_store() -> Store:
    """A store in which everything is on disk before the next call."""
    store = stores.open()
    return cast("Store", BeforeEachCall(store, store.flush))


def new_threaded_store() -> Store:
    """A store whose thread commits while calls are made."""
    loop = Loop()
    store = stores.open(loop=loop, threaded=True)
    return cast("Store", BeforeEachCall(store, lambda: loop.turn(TICK)))


class TestSqliteStore(StoreContract):
    """The contract, nothing being committed meanwhile."""

    new_store = new_store


class TestCommittingStore(StoreContract):
    """The contract, each change being committed at once."""

    new_store = new_committing_store


class TestThreadedStore(StoreContract):
    """The contract, changes being committed by the thread."""

    new_store = new_threaded_store


TestMessages, TestRecords = machines(new_store)
TestCommittedMessages, TestCommittedRecords = machines(new_committing_store)
TestThreadedMessages, TestThreadedRecords = machines(new_threaded_store)


def copy_of(queue: Queue) -> Queue:
    """A queue with the same records."""
    one = queue.notifier
    return replace(
        queue,
        messages=Messages(),
        notifier=None if one is None else replace(one),
        recipient_keys=list(queue.recipient_keys),
    )


def records(store: Store, recipient_id: bytes) -> list[object]:
    """All that a store knows of a queue and its messages."""
    queue = store.by_recipient(recipient_id)
    if queue is None:
        return []
    size = store.message_count(queue)
    messages = queue.messages
    assert len(messages.waiting) == size
    return [
        queue.recipient_keys,
        queue.secret,
        queue.sender_id,
        queue.mode,
        queue.sender_key,
        queue.link,
        queue.notifier,
        queue.status,
        queue.blocked,
        queue.used_on,
        queue.service_id,
        [replace_body(each) for each in messages.waiting],
        not messages.waiting or messages.can_write,
        store.by_sender(queue.sender_id) is queue,
        queue.link is None or store.by_link(queue.link.link_id) is queue,
        queue.notifier is None or store.by_notifier(queue.notifier.notifier_id) is queue,
    ]


def replace_body(one: Message) -> Message:
    """A plain message with the same fields."""
    return Message(one.msg_id, one.timestamp, one.notify, one.body)


class Kept(RuleBasedStateMachine):
    """The store on disk against the one in memory, through everything but a lost disk."""

    @initialize(cached_queues=st.integers(0, 3), threaded=st.booleans())
    def begin(self, cached_queues: int, threaded: bool) -> None:
        """Two empty stores with the same services."""
        self.model = MemoryStore()
        self.directory = stores.directory()
        self.cached_queues = cached_queues
        self.threaded = threaded
        self._open()
        self.ids: list[bytes] = []
        self.used: list[tuple[str, bytes]] = []
        self.services = [service(), service()]
        for one in self.services:
            for store in (self.model, self.store):
                store.add_service(one)

    def _open(self) -> None:
        self.loop = Loop()
        self.store = stores.open(
            self.directory, self.loop, threaded=self.threaded, cached_queues=self.cached_queues
        )

    def _both(self, number: int) -> list[tuple[Store, Queue]]:
        """The same queue in both stores, nothing if it is there no more."""
        if not self.ids:
            return []
        recipient_id = self.ids[number % len(self.ids)]
        found: list[tuple[Store, Queue]] = []
        for store in (self.model, self.store):
            queue = store.by_recipient(recipient_id)
            if queue is not None:
                found.append((store, queue))
        assert len(found) in (0, 2)
        return found

    numbers = st.integers(0, 7)

    @rule(
        mode=st.sampled_from([*QueueMode, None]),
        linked=st.booleans(),
        notified=st.integers(-2, 1),
        for_service=st.booleans(),
    )
    def add(self, mode: QueueMode | None, linked: bool, notified: int, for_service: bool) -> None:
        """A new queue."""
        service_id = None if notified < 0 else self.services[notified].service_id
        queue = new_queue(
            mode=mode,
            link=link() if linked else None,
            notifier=None if notified == -2 else notifier(service_id),
            service_id=self.services[0].service_id if for_service else None,
        )
        self.model.add(copy_of(queue))
        self.store.add(queue)
        self.ids.append(queue.recipient_id)
        self.used.append(("by_sender", queue.sender_id))

    @rule(number=numbers, what=st.sampled_from(["recipient", "sender", "link", "notifier"]))
    def add_with_ids_that_are_taken(self, number: int, what: str) -> None:
        """Neither store takes it, or both do."""
        taken = self._both(number)
        if not taken:
            return
        _, former = taken[0]
        queue = new_queue(
            recipient_id=former.recipient_id if what == "recipient" else None,
            sender_id=former.sender_id if what == "sender" else None,
            link=link(former.link.link_id) if what == "link" and former.link else None,
            notifier=notifier(notifier_id=former.notifier.notifier_id)
            if what == "notifier" and former.notifier
            else None,
        )
        outcomes = []
        for store, one in ((self.model, copy_of(queue)), (self.store, queue)):
            try:
                store.add(one)
                outcomes.append("added")
            except Collision:
                outcomes.append("collision")
        assert outcomes in (["added"] * 2, ["collision"] * 2)
        if outcomes[0] == "added":
            self.ids.append(queue.recipient_id)

    @rule(number=numbers)
    def change_keys(self, number: int) -> None:
        """Keys of both sides."""
        sender, keys = key().public, [key().public, key().public]
        for store, queue in self._both(number):
            store.secure(queue, sender)
            store.set_recipient_keys(queue, keys)

    @rule(number=numbers, status=st.sampled_from([Status.ACTIVE, Status.OFF, Status.BLOCKED]))
    def set_status(self, number: int, status: Status) -> None:
        """Suspended, blocked or active."""
        blocked = BlockingInformation(BlockingReason.SPAM, Notice(3600))
        for store, queue in self._both(number):
            store.set_status(queue, status, blocked if status is Status.BLOCKED else None)

    @rule(number=numbers, day=st.integers(0, 3))
    def use(self, number: int, day: int) -> None:
        """A day of use."""
        for store, queue in self._both(number):
            store.use(queue, day * DAY)

    @rule(number=numbers, link_of=numbers, new=st.booleans())
    def set_link(self, number: int, link_of: int, new: bool) -> None:
        """A new link, or that of some queue, perhaps the same."""
        link_id, data = new_id(), LinkData(random(8), random(3000))
        others = self._both(link_of)
        if not new and others and others[0][1].link is not None:
            link_id = others[0][1].link.link_id
        outcomes = []
        for store, queue in self._both(number):
            try:
                store.set_link(queue, link_id, data)
                outcomes.append(True)
            except Collision:
                outcomes.append(False)
        assert len(set(outcomes)) <= 1
        self.used.append(("by_link", link_id))

    @rule(first=numbers, second=numbers)
    def pass_link_and_notifier_on(self, first: int, second: int) -> None:
        """What one queue gives up, another one has at once."""
        for (store, one), (_, other) in zip(self._both(first), self._both(second), strict=False):
            if one is not other and one.link is not None:
                link_id, data = one.link.link_id, one.link.data
                store.delete_link(one)
                store.set_link(other, link_id, data)
            if one is not other and one.notifier is not None:
                former = replace(one.notifier)
                store.delete_notifier(one)
                store.set_notifier(other, former)

    @rule(number=numbers)
    def delete_link(self, number: int) -> None:
        """No link any more."""
        for store, queue in self._both(number):
            if queue.link is not None:
                self.used.append(("by_link", queue.link.link_id))
            store.delete_link(queue)

    @rule(number=numbers, of=st.integers(-1, 1))
    def set_notifier(self, number: int, of: int) -> None:
        """A notifier, perhaps in the place of another."""
        one = notifier(None if of < 0 else self.services[of].service_id)
        for store, queue in self._both(number):
            store.set_notifier(queue, replace(one))
        self.used.append(("by_notifier", one.notifier_id))

    @rule(number=numbers)
    def delete_notifier(self, number: int) -> None:
        """No notifier any more."""
        for store, queue in self._both(number):
            store.delete_notifier(queue)

    @rule(number=numbers, of=st.integers(-1, 1))
    def associate(self, number: int, of: int) -> None:
        """Another service."""
        for store, queue in self._both(number):
            store.associate(queue, None if of < 0 else self.services[of].service_id)

    @rule(number=numbers)
    def delete(self, number: int) -> None:
        """The queue and all that is its."""
        for store, queue in self._both(number):
            store.delete(queue)

    @rule(
        number=numbers,
        age=st.integers(0, 3),
        size=st.sampled_from([0, 1, 4095, 4096, 4097, 16064]),
        notify=st.booleans(),
    )
    def write(self, number: int, age: int, size: int, notify: bool) -> None:
        """A message, for queues with a quota of three."""
        one = message(NOW - age, random(max(size, 8))[:size], notify)
        written = [store.write(queue, one, 3) for store, queue in self._both(number)]
        assert not written or written[0] == written[1]

    @rule(number=numbers)
    def remove(self, number: int) -> None:
        """The first message is acknowledged."""
        removed = []
        for store, queue in self._both(number):
            first = store.head(queue)
            if first is not None:
                removed.append(first)
                assert store.remove(queue, first.msg_id) == first
        assert not removed or removed[0] == removed[1]

    @rule(number=numbers, age=st.integers(0, 3))
    def expire(self, number: int, age: int) -> None:
        """Old messages of one queue go."""
        expired = [store.expire(queue, NOW - age) for store, queue in self._both(number)]
        assert len(set(expired)) <= 1

    @rule(age=st.integers(0, 3))
    def expire_all(self, age: int) -> None:
        """Old messages of all queues go."""
        assert sum(at_once(self.store.expire_all(NOW - age, 2))) == sum(
            at_once(self.model.expire_all(NOW - age, 2))
        )

    @rule(day=st.integers(0, 4))
    def find_unused(self, day: int) -> None:
        """The same queues are unused."""
        found = [
            sorted(each for step in at_once(store.unused(day * DAY, 2)) for each in step)
            for store in (self.model, self.store)
        ]
        assert found[0] == found[1]

    @rule(number=numbers, age=st.integers(0, 3))
    def notify(self, number: int, age: int) -> None:
        """A notification waits."""
        one = notification(NOW - age)
        for store, queue in self._both(number):
            if queue.notifier is not None:
                store.add_notification(queue.notifier.notifier_id, one)

    @rule(number=numbers)
    def take(self, number: int) -> None:
        """Notifications are delivered."""
        taken = [
            store.take_notifications(queue.notifier.notifier_id)
            for store, queue in self._both(number)
            if queue.notifier is not None
        ]
        assert not taken or taken[0] == taken[1]

    @rule(age=st.integers(0, 3))
    def expire_notifications(self, age: int) -> None:
        """Old notifications go."""
        expired = [store.expire_notifications(NOW - age) for store in (self.model, self.store)]
        assert expired[0] == expired[1]

    @rule(ticks=st.integers(0, 3))
    def wait(self, ticks: int) -> None:
        """Commits are made, and queues are dropped from memory."""
        self.loop.turn(ticks * TICK)

    @rule()
    def wait_long(self) -> None:
        """What was removed is wiped."""
        self.loop.turn(1.0)

    @rule()
    def flush(self) -> None:
        """All is committed."""
        self.store.flush()
        assert self.store.committed == self.store.noted

    @rule()
    def reopen(self) -> None:
        """Closed in order and opened again."""
        stores.close(self.store)
        self._open()

    @invariant()
    def the_same_is_known(self) -> None:
        """Of every queue, by every id."""
        assert self.store.queue_count() == self.model.queue_count()
        for recipient_id in self.ids:
            assert records(self.store, recipient_id) == records(self.model, recipient_id)
        for find, entity_id in self.used[-8:]:
            found = [getattr(store, find)(entity_id) for store in (self.model, self.store)]
            assert (found[0] is None) == (found[1] is None)
        waiting = [sorted(store.notifiers_waiting()) for store in (self.model, self.store)]
        assert waiting[0] == waiting[1]
        for one in self.services:
            count = self.store.notifier_count(one.service_id)
            assert count == self.model.notifier_count(one.service_id)
        self.loop.turn()


usual = settings.default
assert usual is not None
Kept.TestCase.settings = settings(max_examples=usual.max_examples, stateful_step_count=30)
TestKept = Kept.TestCase
