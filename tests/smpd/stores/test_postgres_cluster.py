"""Several PostgreSQL stores on one database are as one (docs/spec/smp-server.md §1, §5, §6)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule

from smpd.queues import Message, Notifier, Queue, Status
from smpd.stores.group_commit import WriterThread
from smpd.stores.interface import Collision, Notification, Wanted, What
from smpd.stores.postgres_store import PostgresStore
from tests.smpd.people import key
from tests.smpd.stores.disk_stores import Loop
from tests.smpd.stores.postgres_stores import PostgresStores
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
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import LinkData

T = TypeVar("T")

stores = PostgresStores()
QUOTA = 4
CACHED = (0, 1, 20_000)
"""Queues that the stores keep in memory, each its own number."""


class Site:
    """A store, and what is done at it: each thing in a transaction of its own."""

    def __init__(self, database: str, cached_queues: int) -> None:
        self.loop = Loop()
        self.store: PostgresStore = stores.open(
            database, self.loop, connections=1, cached_queues=cached_queues
        )

    def do(self, wanted: Sequence[Wanted], work: Callable[[], T]) -> T:
        """What `work` gives when it is admitted."""
        results: list[T] = []
        failures: list[Exception] = []

        def attempt() -> None:
            try:
                results.append(work())
            except Exception as failure:  # noqa: BLE001
                failures.append(failure)

        self.store.admit(wanted, attempt, self)
        self.store.flush()
        self.loop.turn()
        if failures:
            raise failures[0]
        return results[0]

    def with_queue(
        self, recipient_id: bytes, work: Callable[[Queue], T], *more: Wanted, bodies: int = 2
    ) -> T:
        """What `work` gives for a queue, which must be there."""

        def find() -> T:
            queue = self.store.by_recipient(recipient_id)
            assert queue is not None
            return work(queue)

        return self.do([Wanted(What.RECIPIENT, recipient_id, bodies), *more], find)

    def found(self, what: What, entity_id: bytes) -> bytes | None:
        """The recipient id of the queue with an id."""
        find = {
            What.RECIPIENT: self.store.by_recipient,
            What.SENDER: self.store.by_sender,
            What.NOTIFIER: self.store.by_notifier,
            What.LINK: self.store.by_link,
        }[what]

        def look() -> bytes | None:
            queue = find(entity_id)
            return None if queue is None else queue.recipient_id

        return self.do([Wanted(what, entity_id)], look)


_sites: list[Site] = []


@pytest.fixture(autouse=True, scope="module")
def _all_sites(postgres_server: object) -> Iterator[None]:
    database = stores.emptied()
    _sites[:] = [Site(database, cached) for cached in CACHED]
    yield
    stores.close_all()
    _sites.clear()


@dataclass
class Known:
    """What every store should say of a queue."""

    recipient_id: bytes
    sender_id: bytes
    recipient_keys: list[PublicKey]
    sender_key: PublicKey | None = None
    link_id: bytes | None = None
    data: LinkData | None = None
    notifier: Notifier | None = None
    service_id: bytes | None = None
    status: Status = Status.ACTIVE
    used_on: int = 0
    subscriber: int | None = None
    notifier_subscriber: int | None = None
    messages: list[Message] = field(default_factory=list)
    can_write: bool = True
    notifications: list[Notification] = field(default_factory=list)
    deleted: bool = False


where = st.integers(0, len(CACHED) - 1)


class Cluster(RuleBasedStateMachine):
    """Each step at any of three stores, and all of it looked at from another one."""

    queues: Bundle[Known] = Bundle("queues")

    @initialize()
    def begin(self) -> None:
        """A few ids that are used again and again."""
        self.known: list[Known] = []
        self.link_ids = [new_id() for _ in range(2)]
        self.notifier_ids = [new_id() for _ in range(2)]
        services = [service() for _ in range(2)]
        self.service_ids = [
            _sites[0]
            .do(
                [Wanted(What.CERTIFICATE, each.fingerprint)],
                lambda each=each: _sites[0].store.add_service(each),  # type: ignore[misc]
            )
            .service_id
            for each in services
        ]

    def _link_owner(self, link_id: bytes) -> Known | None:
        return next((each for each in self.known if each.link_id == link_id), None)

    def _notifier_owner(self, notifier_id: bytes) -> Known | None:
        return next(
            (
                each
                for each in self.known
                if each.notifier is not None and each.notifier.notifier_id == notifier_id
            ),
            None,
        )

    @rule(
        target=queues,
        at=where,
        then=where,
        with_link=st.integers(-1, 1),
        with_notifier=st.integers(-1, 1),
    )
    def add(self, at: int, then: int, with_link: int, with_notifier: int) -> Known:
        """A new queue, perhaps with ids that are taken."""
        site = _sites[at]
        new = new_queue(
            link=None if with_link < 0 else link(self.link_ids[with_link]),
            notifier=None
            if with_notifier < 0
            else notifier(notifier_id=self.notifier_ids[with_notifier]),
        )
        known = Known(
            new.recipient_id, new.sender_id, new.recipient_keys, used_on=new.used_on, deleted=True
        )
        wanted = [Wanted(What.NEW_SENDER, new.sender_id)]
        taken = False
        if new.link is not None:
            wanted.append(Wanted(What.NEW_LINK, new.link.link_id))
            taken = self._link_owner(new.link.link_id) is not None
            known.link_id, known.data = new.link.link_id, new.link.data
        if new.notifier is not None:
            wanted.append(Wanted(What.NOTIFIER, new.notifier.notifier_id))
            taken = taken or self._notifier_owner(new.notifier.notifier_id) is not None
            known.notifier = new.notifier
        if taken:
            with pytest.raises(Collision):
                site.do(wanted, lambda: site.store.add(new))
            known.link_id = known.notifier = None
        else:
            site.do(wanted, lambda: site.store.add(new))
            known.deleted = False
            self.known.append(known)
        self.look(then, known)
        return known

    @rule(
        queue=queues,
        at=where,
        then=where,
        what=st.sampled_from(["key", "keys", "off", "active", "use", "unlink", "unnotify"]),
    )
    def change(self, queue: Known, at: int, then: int, what: str) -> None:
        """One of the things that need nothing else."""
        if queue.deleted:
            return
        site, store = _sites[at], _sites[at].store
        new = key().public

        def work(one: Queue) -> None:
            if what == "key":
                store.secure(one, new)
                queue.sender_key = new
            elif what == "keys":
                store.set_recipient_keys(one, [new])
                queue.recipient_keys = [new]
            elif what in ("off", "active"):
                queue.status = Status.OFF if what == "off" else Status.ACTIVE
                store.set_status(one, queue.status)
            elif what == "use":
                queue.used_on += 86400
                store.use(one, queue.used_on)
            elif what == "unlink":
                store.delete_link(one)
                queue.link_id = queue.data = None
            else:
                store.delete_notifier(one)
                self._forget_notifier(queue)

        site.with_queue(queue.recipient_id, work)
        self.look(then, queue)

    def _forget_notifier(self, queue: Known) -> None:
        queue.notifier = queue.service_id = queue.notifier_subscriber = None
        queue.notifications.clear()

    @rule(queue=queues, at=where, then=where, number=st.integers(0, 1))
    def set_link(self, queue: Known, at: int, then: int, number: int) -> None:
        """A link that may be another queue's."""
        if queue.deleted:
            return
        site, link_id, data = _sites[at], self.link_ids[number], LinkData(new_id(), new_id())

        def set_it() -> None:
            site.with_queue(
                queue.recipient_id,
                lambda one: site.store.set_link(one, link_id, data),
                Wanted(What.NEW_LINK, link_id),
            )

        if self._link_owner(link_id) in (None, queue):
            set_it()
            queue.link_id, queue.data = link_id, data
        else:
            with pytest.raises(Collision):
                set_it()
        self.look(then, queue)

    @rule(queue=queues, at=where, then=where, number=st.integers(0, 1))
    def set_notifier(self, queue: Known, at: int, then: int, number: int) -> None:
        """A notifier whose id may be another queue's."""
        if queue.deleted:
            return
        site, new = _sites[at], notifier(notifier_id=self.notifier_ids[number])

        def set_it() -> None:
            site.with_queue(
                queue.recipient_id,
                lambda one: site.store.set_notifier(one, new),
                Wanted(What.NOTIFIER, new.notifier_id),
            )

        if self._notifier_owner(new.notifier_id) is None:
            set_it()
            self._forget_notifier(queue)
            queue.notifier = new
        else:
            with pytest.raises(Collision):
                set_it()
        self.look(then, queue)

    @rule(queue=queues, at=where, then=where, number=st.integers(-1, 1))
    def associate(self, queue: Known, at: int, then: int, number: int) -> None:
        """The notifier changes its service."""
        if queue.deleted or queue.notifier is None:
            return
        site = _sites[at]
        queue.service_id = None if number < 0 else self.service_ids[number]
        site.with_queue(
            queue.recipient_id,
            lambda one: site.store.associate(one, queue.service_id),
            Wanted(What.NOTIFIER, queue.notifier.notifier_id),
        )
        if queue.service_id is not None:
            queue.notifier_subscriber = None
        for service_id in self.service_ids:
            count = sum(each.service_id == service_id for each in self.known)
            wanted = [Wanted(What.SERVICE, service_id)]
            other = _sites[then].store
            assert (
                _sites[then].do(wanted, lambda: other.notifier_count(service_id))  # noqa: B023
                == count
            )

    @rule(queue=queues, at=where, then=where)
    def claim(self, queue: Known, at: int, then: int) -> None:
        """The queue's subscriber is at one store, and at no other one any more."""
        if queue.deleted:
            return
        site = _sites[at]
        site.with_queue(queue.recipient_id, site.store.claim_queue)
        queue.subscriber = at
        if queue.notifier is not None:
            site.with_queue(queue.recipient_id, site.store.claim_notifier)
            queue.notifier_subscriber = at
        self.look(then, queue)

    @rule(queue=queues, at=where, then=where)
    def delete(self, queue: Known, at: int, then: int) -> None:
        """The queue and all that is its."""
        if queue.deleted:
            return
        site = _sites[at]
        site.with_queue(queue.recipient_id, site.store.delete)
        queue.deleted = True
        self.known.remove(queue)
        self.look(then, queue)

    # -- messages

    @rule(queue=queues, at=where, then=where, times=st.integers(1, 3), age=st.integers(0, 3))
    def write(self, queue: Known, at: int, then: int, times: int, age: int) -> None:
        """Senders."""
        if queue.deleted:
            return
        site = _sites[at]
        for _ in range(times):
            one = message(NOW - age, new_id())
            was_empty, accepted = not queue.messages, False
            if queue.can_write or was_empty:
                queue.can_write = accepted = len(queue.messages) < QUOTA
                marker = Message(one.msg_id, one.timestamp, False, None)
                queue.messages.append(one if accepted else marker)
            written = site.do(
                [Wanted(What.SENDER, queue.sender_id)],
                lambda: site.store.write(
                    site.store.by_sender(queue.sender_id),  # type: ignore[arg-type]
                    one,  # noqa: B023
                    QUOTA,
                ),
            )
            assert (written.accepted, written.was_empty) == (accepted, was_empty)
        self.look(then, queue)

    @rule(queue=queues, at=where, then=where, right=st.booleans())
    def remove(self, queue: Known, at: int, then: int, right: bool) -> None:
        """The recipient acknowledges the first one, or another."""
        if queue.deleted or not queue.messages:
            return
        site = _sites[at]
        msg_id = queue.messages[0].msg_id if right else queue.messages[-1].msg_id
        removed, head = site.with_queue(
            queue.recipient_id,
            lambda one: (site.store.remove(one, msg_id), site.store.head(one)),
        )
        if queue.messages[0].msg_id == msg_id:
            assert removed == queue.messages.pop(0)
        else:
            assert removed is None
        assert head == (queue.messages[0] if queue.messages else None)
        self.look(then, queue)

    @rule(queue=queues, at=where, then=where, age=st.integers(-1, 2), reads=st.booleans())
    def expire(self, queue: Known, at: int, then: int, age: int, reads: bool) -> None:
        """Old messages go when something is sent, and the recipient may ask at the same time."""
        if queue.deleted:
            return
        site, before = _sites[at], NOW - age
        expired = 0
        waiting = queue.messages
        while waiting and not waiting[0].is_quota and waiting[0].timestamp < before:
            del waiting[0]
            expired += 1
        wanted = [Wanted(What.SENDER, queue.sender_id, 0, before)]
        if reads:
            wanted.append(Wanted(What.RECIPIENT, queue.recipient_id, 1))

        def work() -> int:
            one = site.store.by_sender(queue.sender_id)
            assert one is not None
            count = site.store.expire(one, before)
            if reads:
                assert site.store.head(one) == (waiting[0] if waiting else None)
            return count

        assert site.do(wanted, work) == expired
        self.look(then, queue)

    @rule(queue=queues, at=where)
    def notify(self, queue: Known, at: int) -> None:
        """A notification waits."""
        if queue.deleted or queue.notifier is None:
            return
        site, one, notifier_id = _sites[at], notification(), queue.notifier.notifier_id
        site.do(
            [Wanted(What.NOTIFIER, notifier_id)],
            lambda: site.store.add_notification(notifier_id, one),
        )
        queue.notifications.append(one)

    @rule(at=where, number=st.integers(0, 1))
    def take(self, at: int, number: int) -> None:
        """Notifications are delivered."""
        site, notifier_id = _sites[at], self.notifier_ids[number]
        owner = self._notifier_owner(notifier_id)
        taken = site.do(
            [Wanted(What.NOTIFIER, notifier_id)],
            lambda: site.store.take_notifications(notifier_id),
        )
        assert taken == ([] if owner is None else owner.notifications)
        if owner is not None:
            owner.notifications = []

    # -- what is seen

    @rule(queue=queues, at=where)
    def look(self, at: int, queue: Known) -> None:
        """A store knows of the queue what it should."""
        site = _sites[at]
        expected = None if queue.deleted else queue.recipient_id
        assert site.found(What.SENDER, queue.sender_id) == expected
        assert site.found(What.RECIPIENT, queue.recipient_id) == expected
        for link_id in self.link_ids:
            owner = self._link_owner(link_id)
            found = site.found(What.LINK, link_id)
            assert found == (None if owner is None else owner.recipient_id)
        for notifier_id in self.notifier_ids:
            owner = self._notifier_owner(notifier_id)
            found = site.found(What.NOTIFIER, notifier_id)
            assert found == (None if owner is None else owner.recipient_id)
        if not queue.deleted:
            site.with_queue(queue.recipient_id, lambda one: self._compare(at, one, queue))

    def _compare(self, at: int, one: Queue, queue: Known) -> None:
        store = _sites[at].store
        assert one.recipient_keys == queue.recipient_keys
        assert one.sender_key == queue.sender_key
        assert (one.status, one.used_on) == (queue.status, queue.used_on)
        assert (None if one.link is None else one.link.link_id) == queue.link_id
        assert (None if one.link is None else one.link.data) == queue.data
        if queue.notifier is None:
            assert one.notifier is None
        else:
            assert one.notifier is not None
            assert one.notifier.key == queue.notifier.key
            assert one.notifier.secret == queue.notifier.secret
            assert one.notifier.service_id == queue.service_id
            assert store.is_our_notifier(one) is (queue.notifier_subscriber == at)
        assert store.is_ours(one) is (queue.subscriber == at)
        assert store.message_count(one) == len(queue.messages)
        assert store.head(one) == (queue.messages[0] if queue.messages else None)


TestCluster = Cluster.TestCase
_usual = settings.default
assert _usual is not None
TestCluster.settings = settings(max_examples=_usual.max_examples // 4, stateful_step_count=25)


# -- at the same time


class Busy:
    """A store with threads, on the database of all."""

    def __init__(self, **options: Any) -> None:
        self.loop = Loop()
        self.store = stores.open(
            stores.database, self.loop, worker=WriterThread, **{"connections": 3, **options}
        )
        self.failures: list[BaseException] = []
        self.under_way = 0

    def begin(self, wanted: Sequence[Wanted], work: Callable[[], None], line: object) -> None:
        """Has something done some time."""
        self.under_way += 1

        def attempt() -> None:
            self.under_way -= 1
            try:
                work()
            except BaseException as failure:  # noqa: BLE001
                self.failures.append(failure)

        self.store.admit(wanted, attempt, line)


def work_off(*busy: Busy) -> None:
    """Lets stores do what they have to, at the same time."""
    deadline = time.monotonic() + 60.0
    while any(each.under_way or each.store.committed != each.store.noted for each in busy):
        for each in busy:
            each.loop.turn(0.001)
            assert not each.failures, each.failures[0]
        time.sleep(0.0002)
        assert time.monotonic() < deadline


def queues_of(count: int) -> list[Queue]:
    """New queues."""
    made = [new_queue() for _ in range(count)]
    site = _sites[0]
    for each in made:
        site.do(
            [Wanted(What.NEW_SENDER, each.sender_id)],
            lambda each=each: site.store.add(each),  # type: ignore[misc]
        )
    return made


@pytest.mark.parametrize("cached_queues", [0, 1, 5])
def test_queues_that_go_from_memory_while_others_are_loaded(cached_queues: int) -> None:
    """What was in memory when it was asked for, and is not any more, is read again."""
    queues = queues_of(12)
    busy = Busy(cached_queues=cached_queues, commit_interval=0.0)
    seen: list[bytes] = []

    def look(queue: Queue, by_sender: bool) -> None:
        store = busy.store
        if by_sender:
            found = store.by_sender(queue.sender_id)
        else:
            found = store.by_recipient(queue.recipient_id)
        assert found is not None
        store.head(found)
        if not store.message_count(found):
            store.write(found, message(), QUOTA)
        seen.append(queue.recipient_id)

    for step in range(600):
        queue, by_sender = queues[step * 7 % 12], bool(step % 3)
        wanted = [Wanted(What.RECIPIENT, queue.recipient_id, 1)]
        if by_sender:
            wanted = [Wanted(What.SENDER, queue.sender_id), *wanted]
        busy.begin(wanted, partial(look, queue, by_sender), object())
        if step % 5 == 0:
            busy.loop.turn(0.001)
    work_off(busy)
    assert len(seen) == 600
    stores.close(busy.store)


def test_messages_keep_their_order_and_their_number() -> None:
    """Two relays send to the same queues, and both acknowledge: as one relay would do it."""
    queues = queues_of(4)
    both = [Busy(cached_queues=cached) for cached in (1, 20_000)]
    accepted: dict[bytes, list[bytes]] = {each.recipient_id: [] for each in queues}
    removed: dict[bytes, list[bytes]] = {each.recipient_id: [] for each in queues}

    def send(busy: Busy, queue: Queue) -> None:
        found = busy.store.by_sender(queue.sender_id)
        assert found is not None
        one = message(NOW, new_id())
        if busy.store.write(found, one, QUOTA).accepted:
            accepted[queue.recipient_id].append(one.msg_id)

    def acknowledge(busy: Busy, queue: Queue) -> None:
        found = busy.store.by_recipient(queue.recipient_id)
        assert found is not None
        first = busy.store.head(found)
        assert busy.store.message_count(found) <= QUOTA + 1
        if first is not None:
            assert busy.store.remove(found, first.msg_id) == first
            if not first.is_quota:
                removed[queue.recipient_id].append(first.msg_id)

    for step in range(400):
        for number, busy in enumerate(both):
            queue = queues[(step + number) % 4]
            if (step // 4 + number) % 2:
                busy.begin([Wanted(What.SENDER, queue.sender_id)], partial(send, busy, queue), step)
            else:
                wanted = [Wanted(What.RECIPIENT, queue.recipient_id, 2)]
                busy.begin(wanted, partial(acknowledge, busy, queue), step)
            busy.loop.turn(0.0005)
    work_off(*both)
    while any(len(removed[each]) < len(accepted[each]) for each in accepted):
        for queue in queues:
            wanted = [Wanted(What.RECIPIENT, queue.recipient_id, 2)]
            both[0].begin(wanted, partial(acknowledge, both[0], queue), queue)
        work_off(*both)
    assert removed == accepted
    assert sum(map(len, accepted.values())) > 50
    for busy in both:
        stores.close(busy.store)


@pytest.mark.parametrize("what", [What.NEW_LINK, What.NEW_SENDER])
def test_an_id_is_given_once(what: What) -> None:
    """By two relays at the same moment, with a link or a sender id that clients have chosen."""
    both = [Busy() for _ in range(2)]
    given: list[int] = []
    ids = [new_id() for _ in range(30)]

    def add(number: int, busy: Busy, entity_id: bytes) -> None:
        if what is What.NEW_LINK:
            new = new_queue(link=link(entity_id))
        else:
            new = new_queue(sender_id=entity_id)
        try:
            busy.store.add(new)
        except Collision:
            return
        given.append(number)

    for number, entity_id in enumerate(ids):
        for busy in both:
            work = partial(add, number, busy, entity_id)
            busy.begin([Wanted(what, entity_id)], work, number)
        if number % 3 == 0:
            for busy in both:
                busy.loop.turn(0.0)
    work_off(*both)
    assert sorted(given) == list(range(30))
    for busy in both:
        assert busy.store.spoiled(busy.store.noted) is None
        stores.close(busy.store)


def test_a_service_is_made_once() -> None:
    """Its two connections may come to two relays at the same moment."""
    both = [Busy() for _ in range(2)]
    for _ in range(10):
        known: list[bytes] = []
        fingerprint = new_id()

        def meet(busy: Busy, fingerprint: bytes, known: list[bytes]) -> None:
            made = busy.store.add_service(service(fingerprint=fingerprint))
            known.append(made.service_id)

        for busy in both:
            wanted = [Wanted(What.CERTIFICATE, fingerprint)]
            busy.begin(wanted, partial(meet, busy, fingerprint, known), object())
        work_off(*both)
        assert len(known) == 2
        assert len(set(known)) == 1
    for busy in both:
        stores.close(busy.store)


def test_the_same_thing_twice_waits_for_the_first() -> None:
    """KEY once more in the same transaction has changed nothing: it is not safe either."""
    (queue,) = queues_of(1)
    site, needs = _sites[2], []
    new = key().public

    def secure() -> None:
        found = site.store.by_recipient(queue.recipient_id)
        assert found is not None
        if found.sender_key is None:
            site.store.secure(found, new)
        needs.append((site.store.unsafe(found), site.store.noted))

    for _ in range(2):
        site.store.admit([Wanted(What.RECIPIENT, queue.recipient_id)], secure, object())
    site.store.flush()
    site.loop.turn()
    assert [need == noted for need, noted in needs] == [True, True]
    site.store.admit([Wanted(What.RECIPIENT, queue.recipient_id)], secure, object())
    site.store.flush()
    site.loop.turn()
    assert needs[-1][0] == 0
