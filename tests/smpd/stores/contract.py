"""What every store has to pass (docs/spec/smp-server.md §6, §7, §8; `smpd.stores.interface`).

A module of tests for one kind of store has a subclass of `StoreContract` that makes
stores, and the state machines that `machines` gives for the same stores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from smpd.queues import Link, Message, Notifier, Queue, Status
from smpd.stores.interface import (
    Collision,
    Notification,
    RoleMismatch,
    Service,
    Store,
)
from tests.smpd.people import ID_SIZE, key, random
from txsimplex.smp.commands import LinkData, QueueMode, Role
from txsimplex.smp.errors import BlockingInformation, BlockingReason, Notice

NOW = 1_700_000_000


def new_id() -> bytes:
    """An id that was not there before."""
    return random(ID_SIZE)


def message(timestamp: int = NOW, body: bytes | None = b"hello", notify: bool = False) -> Message:
    """A message with an id of its own."""
    return Message(new_id(), timestamp, notify, body)


def notification(timestamp: int = NOW) -> Notification:
    """A notification unlike any other."""
    return Notification(timestamp, random(24), random(144))


def notifier(service_id: bytes | None = None, notifier_id: bytes | None = None) -> Notifier:
    """A notifier with an id of its own unless one is given."""
    return Notifier(notifier_id or new_id(), key().public, random(32), service_id)


def link(link_id: bytes | None = None) -> Link:
    """A link with an id of its own unless one is given."""
    return Link(link_id or new_id(), LinkData(b"fixed", b"user"))


def new_queue(
    *,
    recipient_id: bytes | None = None,
    sender_id: bytes | None = None,
    link: Link | None = None,
    notifier: Notifier | None = None,
    mode: QueueMode | None = QueueMode.MESSAGING,
    service_id: bytes | None = None,
) -> Queue:
    """A queue that is in no store."""
    return Queue(
        recipient_id=recipient_id or new_id(),
        recipient_keys=[key().public],
        secret=random(32),
        sender_id=sender_id or new_id(),
        mode=mode,
        link=link,
        notifier=notifier,
        used_on=NOW // 86400 * 86400,
        service_id=service_id,
    )


def service(role: Role = Role.NOTIFIER, fingerprint: bytes | None = None) -> Service:
    """A service with an id of its own."""
    return Service(new_id(), role, (b"leaf", b"identity"), fingerprint or random(32), NOW)


def drained(store: Store, queue: Queue) -> list[Message]:
    """All messages of a queue, which is empty afterwards."""
    messages = []
    while (first := store.head(queue)) is not None:
        assert store.remove(queue, first.msg_id) == first
        messages.append(first)
    return messages


def link_of(queue: Queue) -> Link | None:
    """The link that a queue has now."""
    return queue.link


def notifier_of(queue: Queue) -> Notifier | None:
    """The notifier that a queue has now."""
    return queue.notifier


def service_of(queue: Queue) -> bytes | None:
    """The service of the notifier that a queue has now."""
    assert queue.notifier is not None
    return queue.notifier.service_id


class StoreContract:
    """Tests of one store. A subclass gives `new_store`."""

    new_store: ClassVar[Callable[[], Store]]

    @pytest.fixture
    def store(self) -> Store:
        """An empty store."""
        return type(self).new_store()

    @pytest.fixture
    def queue(self, store: Store) -> Queue:
        """A queue in it."""
        queue = new_queue()
        store.add(queue)
        return queue

    # -- finding

    def test_a_queue_is_found_by_each_of_its_ids(self, store: Store) -> None:
        queue = new_queue(link=link(), notifier=notifier())
        store.add(queue)
        assert queue.link is not None
        assert queue.notifier is not None
        assert store.by_recipient(queue.recipient_id) is queue
        assert store.by_sender(queue.sender_id) is queue
        assert store.by_notifier(queue.notifier.notifier_id) is queue
        assert store.by_link(queue.link.link_id) is queue

    def test_the_wrong_kind_of_id_finds_nothing(self, store: Store) -> None:
        """§1: as if the queue did not exist."""
        queue = new_queue(link=link(), notifier=notifier())
        store.add(queue)
        assert queue.link is not None
        assert queue.notifier is not None
        ids = {
            "by_recipient": queue.recipient_id,
            "by_sender": queue.sender_id,
            "by_notifier": queue.notifier.notifier_id,
            "by_link": queue.link.link_id,
        }
        for find in ids:
            for kind, found_by in ids.items():
                assert (getattr(store, find)(found_by) is queue) is (find == kind)

    def test_an_empty_store_finds_nothing(self, store: Store) -> None:
        for find in (store.by_recipient, store.by_sender, store.by_notifier, store.by_link):
            assert find(new_id()) is None
            assert find(b"") is None
        assert store.queue_count() == 0
        assert store.notifiers_waiting() == []

    def test_queues_are_counted(self, store: Store) -> None:
        queues = [new_queue() for _ in range(3)]
        for queue in queues:
            store.add(queue)
        assert store.queue_count() == 3
        store.delete(queues[1])
        assert store.queue_count() == 2

    # -- adding

    def test_every_field_is_kept(self, store: Store) -> None:
        service_id = store.add_service(service(Role.MESSAGING)).service_id
        wanted = new_queue(
            link=link(), notifier=notifier(), mode=QueueMode.CONTACT, service_id=service_id
        )
        keys, secret, made = list(wanted.recipient_keys), wanted.secret, wanted.notifier
        store.add(wanted)
        found = store.by_recipient(wanted.recipient_id)
        assert found is not None
        assert found.recipient_keys == keys
        assert found.secret == secret
        assert found.mode is QueueMode.CONTACT
        assert found.sender_key is None
        assert found.link == wanted.link
        assert found.notifier == made
        assert found.status is Status.ACTIVE
        assert found.blocked is None
        assert found.used_on == wanted.used_on
        assert found.service_id == service_id
        assert store.head(found) is None
        assert store.message_count(found) == 0

    @pytest.mark.parametrize("taken", ["recipient", "sender", "link", "notifier"])
    def test_add_refuses_a_taken_id_and_changes_nothing(self, store: Store, taken: str) -> None:
        first = new_queue(link=link(), notifier=notifier())
        store.add(first)
        assert first.link is not None
        assert first.notifier is not None
        service_id = store.add_service(service()).service_id
        second = new_queue(
            recipient_id=first.recipient_id if taken == "recipient" else None,
            sender_id=first.sender_id if taken == "sender" else None,
            link=link(first.link.link_id if taken == "link" else None),
            notifier=notifier(
                service_id, first.notifier.notifier_id if taken == "notifier" else None
            ),
        )
        with pytest.raises(Collision):
            store.add(second)
        assert store.queue_count() == 1
        assert store.notifier_count(service_id) == 0
        assert store.by_recipient(first.recipient_id) is first
        assert store.by_sender(first.sender_id) is first
        assert store.by_link(first.link.link_id) is first
        assert store.by_notifier(first.notifier.notifier_id) is first
        assert second.link is not None
        assert second.notifier is not None
        assert store.by_recipient(second.recipient_id) in (None, first)
        assert store.by_sender(second.sender_id) in (None, first)
        assert store.by_link(second.link.link_id) in (None, first)
        assert store.by_notifier(second.notifier.notifier_id) in (None, first)

    def test_ids_of_different_kinds_do_not_collide(self, store: Store, queue: Queue) -> None:
        other = new_queue(recipient_id=queue.sender_id, sender_id=queue.recipient_id)
        store.add(other)
        assert store.by_recipient(queue.sender_id) is other
        assert store.by_recipient(queue.recipient_id) is queue

    # -- changing

    def test_secure_sets_the_senders_key(self, store: Store, queue: Queue) -> None:
        sender = key().public
        store.secure(queue, sender)
        assert queue.sender_key == sender
        assert store.by_sender(queue.sender_id) is queue

    def test_recipient_keys_are_replaced(self, store: Store, queue: Queue) -> None:
        keys = [key().public, key().public]
        store.set_recipient_keys(queue, keys)
        assert queue.recipient_keys == keys

    def test_a_link_is_set_changed_and_deleted(self, store: Store, queue: Queue) -> None:
        one, other = new_id(), new_id()
        store.set_link(queue, one, LinkData(b"fixed", b"user"))
        assert link_of(queue) == Link(one, LinkData(b"fixed", b"user"))
        store.set_link(queue, one, LinkData(b"fixed", b"new"))
        assert link_of(queue) == Link(one, LinkData(b"fixed", b"new"))
        assert store.by_link(one) is queue
        store.set_link(queue, other, LinkData(b"", b""))
        assert store.by_link(one) is None
        assert store.by_link(other) is queue
        store.delete_link(queue)
        assert link_of(queue) is None
        assert store.by_link(other) is None
        store.delete_link(queue)
        assert link_of(queue) is None

    def test_a_link_of_another_queue_is_not_taken(self, store: Store, queue: Queue) -> None:
        other = new_queue(link=link())
        store.add(other)
        assert other.link is not None
        taken = other.link.link_id
        store.set_link(queue, own := new_id(), LinkData(b"a", b"b"))
        with pytest.raises(Collision):
            store.set_link(queue, taken, LinkData(b"x", b"y"))
        assert store.by_link(taken) is other
        assert other.link == Link(taken, LinkData(b"fixed", b"user"))
        assert store.by_link(own) is queue
        assert queue.link == Link(own, LinkData(b"a", b"b"))

    def test_a_deleted_link_is_free_again(self, store: Store, queue: Queue) -> None:
        other = new_queue(link=link())
        store.add(other)
        assert other.link is not None
        link_id = other.link.link_id
        store.delete_link(other)
        store.set_link(queue, link_id, LinkData(b"x", b"y"))
        assert store.by_link(link_id) is queue

    def test_a_notifier_is_set_replaced_and_deleted(self, store: Store, queue: Queue) -> None:
        first, second = notifier(), notifier()
        store.set_notifier(queue, first)
        assert notifier_of(queue) == first
        assert store.by_notifier(first.notifier_id) is queue
        store.add_notification(first.notifier_id, notification())
        store.set_notifier(queue, second)
        assert notifier_of(queue) == second
        assert store.by_notifier(first.notifier_id) is None
        assert store.by_notifier(second.notifier_id) is queue
        assert store.notifiers_waiting() == []
        store.add_notification(second.notifier_id, notification())
        store.delete_notifier(queue)
        assert notifier_of(queue) is None
        assert store.by_notifier(second.notifier_id) is None
        assert store.notifiers_waiting() == []
        store.delete_notifier(queue)
        assert notifier_of(queue) is None

    def test_a_notifier_id_of_another_queue_is_not_taken(self, store: Store, queue: Queue) -> None:
        other = new_queue(notifier=notifier())
        store.add(other)
        assert other.notifier is not None
        taken, own = other.notifier.notifier_id, notifier()
        store.set_notifier(queue, own)
        store.add_notification(own.notifier_id, kept := notification())
        with pytest.raises(Collision):
            store.set_notifier(queue, notifier(notifier_id=taken))
        assert store.by_notifier(taken) is other
        assert store.by_notifier(own.notifier_id) is queue
        assert queue.notifier == own
        assert store.take_notifications(own.notifier_id) == [kept]

    @pytest.mark.parametrize("status", [Status.ACTIVE, Status.OFF, Status.BLOCKED])
    def test_status(self, store: Store, queue: Queue, status: Status) -> None:
        blocked = BlockingInformation(BlockingReason.SPAM, Notice(60))
        store.set_status(queue, Status.BLOCKED, blocked)
        assert (queue.status, queue.blocked) == (Status.BLOCKED, blocked)
        other = BlockingInformation(BlockingReason.CONTENT) if status is Status.BLOCKED else None
        store.set_status(queue, status, other)
        assert (queue.status, queue.blocked) == (status, other)

    def test_the_day_of_use_is_noted(self, store: Store, queue: Queue) -> None:
        store.use(queue, NOW // 86400 * 86400 + 86400)
        assert queue.used_on == NOW // 86400 * 86400 + 86400

    def test_delete_removes_all_that_belongs_to_a_queue(self, store: Store) -> None:
        service_id = store.add_service(service()).service_id
        queue = new_queue(link=link(), notifier=notifier(service_id))
        store.add(queue)
        assert queue.link is not None
        assert queue.notifier is not None
        link_id, notifier_id = queue.link.link_id, queue.notifier.notifier_id
        store.write(queue, message(), 4)
        store.add_notification(notifier_id, notification())
        store.delete(queue)
        assert queue.status is Status.DELETED
        assert store.by_recipient(queue.recipient_id) is None
        assert store.by_sender(queue.sender_id) is None
        assert store.by_link(link_id) is None
        assert store.by_notifier(notifier_id) is None
        assert store.notifiers_waiting() == []
        assert store.take_notifications(notifier_id) == []
        assert store.notifier_count(service_id) == 0
        assert sum(store.expire_all(NOW + 1, 10)) == 0

    def test_delete_leaves_other_queues_alone(self, store: Store, queue: Queue) -> None:
        other = new_queue(link=link(), notifier=notifier())
        store.add(other)
        assert other.link is not None
        store.write(other, first := message(), 4)
        store.delete(queue)
        assert store.by_sender(other.sender_id) is other
        assert store.by_link(other.link.link_id) is other
        assert store.head(other) == first

    # -- messages

    def test_first_in_first_out(self, store: Store, queue: Queue) -> None:
        messages = [
            message(NOW, b"one"),
            message(NOW + 1, b"two", notify=True),
            message(NOW + 1, b""),
            message(NOW + 2, bytes(range(256)) * 62),
        ]
        for one in messages:
            assert store.write(queue, one, 128).accepted
        assert store.message_count(queue) == 4
        assert store.head(queue) == messages[0]
        assert drained(store, queue) == messages
        assert store.head(queue) is None
        assert store.message_count(queue) == 0

    def test_149_only_the_first_message_finds_an_empty_queue(
        self, store: Store, queue: Queue
    ) -> None:
        written = [store.write(queue, message(), 3) for _ in range(3)]
        assert [(one.accepted, one.was_empty) for one in written] == [
            (True, True),
            (True, False),
            (True, False),
        ]
        drained(store, queue)
        assert store.write(queue, message(), 3).was_empty

    def test_142_the_marker_of_the_quota(self, store: Store, queue: Queue) -> None:
        """§6: refused from the one that leaves the marker until all are gone."""
        accepted = [message() for _ in range(3)]
        for one in accepted:
            assert store.write(queue, one, 3).accepted
        refused = message(NOW + 5, b"too many", notify=True)
        assert not store.write(queue, refused, 3).accepted
        assert not store.write(queue, message(), 3).accepted
        assert store.message_count(queue) == 4
        for one in accepted:
            assert store.remove(queue, one.msg_id) == one
            assert not store.write(queue, message(), 3).accepted
        marker = store.head(queue)
        assert marker == Message(refused.msg_id, NOW + 5, False, None)
        assert marker is not None
        assert marker.is_quota
        assert store.message_count(queue) == 1
        assert store.remove(queue, refused.msg_id) == marker
        written = store.write(queue, last := message(), 3)
        assert written.accepted
        assert written.was_empty
        assert drained(store, queue) == [last]

    def test_the_quota_is_of_each_queue(self, store: Store, queue: Queue) -> None:
        other = new_queue()
        store.add(other)
        store.write(queue, message(), 1)
        assert not store.write(queue, message(), 1).accepted
        assert store.write(other, message(), 1).accepted

    def test_148_only_the_first_message_is_removed(self, store: Store, queue: Queue) -> None:
        first, second = message(), message()
        store.write(queue, first, 4)
        store.write(queue, second, 4)
        assert store.remove(queue, second.msg_id) is None
        assert store.remove(queue, new_id()) is None
        assert store.remove(queue, b"") is None
        assert store.message_count(queue) == 2
        assert store.remove(queue, first.msg_id) == first
        assert store.remove(queue, first.msg_id) is None
        assert store.remove(queue, second.msg_id) == second
        assert store.remove(queue, second.msg_id) is None

    def test_147_expiry_stops_at_the_first_that_is_young(self, store: Store, queue: Queue) -> None:
        messages = [message(NOW + age) for age in (0, 1, 5, 2)]
        for one in messages:
            store.write(queue, one, 8)
        assert store.expire(queue, NOW) == 0
        assert store.expire(queue, NOW + 2) == 2
        assert store.expire(queue, NOW + 3) == 0
        assert drained(store, queue) == messages[2:]

    def test_147_expiry_stops_at_the_marker(self, store: Store, queue: Queue) -> None:
        for _ in range(3):
            store.write(queue, message(), 2)
        assert store.expire(queue, NOW + 10) == 2
        assert store.expire(queue, NOW + 10) == 0
        assert not store.write(queue, message(), 2).accepted
        assert [one.is_quota for one in drained(store, queue)] == [True]
        assert store.write(queue, message(), 2).accepted

    def test_expiry_before_the_quota_is_reached_makes_room(
        self, store: Store, queue: Queue
    ) -> None:
        for _ in range(2):
            store.write(queue, message(), 2)
        assert store.expire(queue, NOW + 1) == 2
        assert store.write(queue, message(NOW + 1), 2) is not None
        assert store.message_count(queue) == 1

    def test_all_queues_expire_a_few_at_a_time(self, store: Store) -> None:
        queues = [new_queue() for _ in range(5)]
        for queue in queues:
            store.add(queue)
            store.write(queue, message(NOW), 8)
            store.write(queue, message(NOW), 8)
            store.write(queue, message(NOW + 9), 8)
        steps = store.expire_all(NOW + 1, 2)
        first = next(steps)
        assert first == sum(3 - store.message_count(queue) for queue in queues)
        assert sum(store.message_count(queue) < 3 for queue in queues) <= 2
        assert first + sum(steps) == 10
        assert [store.message_count(queue) for queue in queues] == [1] * 5

    def test_queues_come_and_go_while_all_expire(self, store: Store) -> None:
        queues = [new_queue() for _ in range(6)]
        for queue in queues:
            store.add(queue)
            store.write(queue, message(NOW), 8)
        expired = 0
        steps = store.expire_all(NOW + 1, 1)
        expired += next(steps)
        untouched = [queue for queue in queues if store.message_count(queue)]
        gone = untouched[:2]
        for queue in gone:
            store.delete(queue)
        store.add(late := new_queue())
        store.write(late, message(NOW + 9), 8)
        expired += sum(steps)
        assert expired == 4
        assert store.message_count(late) == 1
        assert all(store.message_count(queue) == 0 for queue in queues if queue not in gone)

    # -- notifications

    def test_notifications_are_kept_until_they_are_taken(self, store: Store) -> None:
        one, other = new_queue(notifier=notifier()), new_queue(notifier=notifier())
        store.add(one)
        store.add(other)
        assert one.notifier is not None
        assert other.notifier is not None
        kept = [notification(NOW), notification(NOW), notification(NOW + 1)]
        for each in kept:
            store.add_notification(one.notifier.notifier_id, each)
        store.add_notification(other.notifier.notifier_id, last := notification())
        assert sorted(store.notifiers_waiting()) == sorted(
            (one.notifier.notifier_id, other.notifier.notifier_id)
        )
        assert store.take_notifications(one.notifier.notifier_id) == kept
        assert store.notifiers_waiting() == [other.notifier.notifier_id]
        assert store.take_notifications(one.notifier.notifier_id) == []
        assert store.take_notifications(other.notifier.notifier_id) == [last]
        assert store.notifiers_waiting() == []

    def test_old_notifications_expire(self, store: Store) -> None:
        one, other = new_queue(notifier=notifier()), new_queue(notifier=notifier())
        store.add(one)
        store.add(other)
        assert one.notifier is not None
        assert other.notifier is not None
        store.add_notification(one.notifier.notifier_id, notification(NOW))
        store.add_notification(one.notifier.notifier_id, young := notification(NOW + 5))
        store.add_notification(other.notifier.notifier_id, notification(NOW + 4))
        assert store.expire_notifications(NOW) == 0
        assert store.expire_notifications(NOW + 5) == 2
        assert store.notifiers_waiting() == [one.notifier.notifier_id]
        assert store.take_notifications(one.notifier.notifier_id) == [young]

    # -- services

    def test_a_service_is_known_by_its_fingerprint(self, store: Store) -> None:
        first = service(Role.NOTIFIER)
        assert store.add_service(first) == first
        again = store.add_service(service(Role.NOTIFIER, first.fingerprint))
        assert again.service_id == first.service_id
        assert again == first
        other = store.add_service(service(Role.NOTIFIER))
        assert other.service_id != first.service_id

    def test_169_a_service_has_one_role(self, store: Store) -> None:
        first = store.add_service(service(Role.NOTIFIER))
        for role in (Role.MESSAGING, Role.PROXY):
            with pytest.raises(RoleMismatch):
                store.add_service(service(role, first.fingerprint))
        assert store.add_service(service(Role.NOTIFIER, first.fingerprint)) == first

    def test_notifiers_of_a_service_are_counted(self, store: Store) -> None:
        one = store.add_service(service()).service_id
        other = store.add_service(service()).service_id
        queues = [new_queue(notifier=notifier()) for _ in range(3)]
        for queue in queues:
            store.add(queue)
            store.associate(queue, one)
        assert (store.notifier_count(one), store.notifier_count(other)) == (3, 0)
        store.associate(queues[0], one)
        assert store.notifier_count(one) == 3
        store.associate(queues[0], other)
        assert service_of(queues[0]) == other
        assert (store.notifier_count(one), store.notifier_count(other)) == (2, 1)
        store.associate(queues[0], None)
        assert service_of(queues[0]) is None
        assert (store.notifier_count(one), store.notifier_count(other)) == (2, 0)
        store.set_notifier(queues[1], notifier())
        assert store.notifier_count(one) == 1
        store.delete_notifier(queues[2])
        assert store.notifier_count(one) == 0
        assert store.notifier_count(new_id()) == 0

    def test_a_new_notifier_may_come_with_its_service(self, store: Store) -> None:
        service_id = store.add_service(service()).service_id
        queue = new_queue(notifier=notifier(service_id))
        store.add(queue)
        assert store.notifier_count(service_id) == 1
        store.set_notifier(queue, notifier(service_id))
        assert store.notifier_count(service_id) == 1
        store.delete(queue)
        assert store.notifier_count(service_id) == 0

    def test_close_ends_it(self, store: Store, queue: Queue) -> None:
        store.write(queue, message(), 4)
        store.close()
        assert queue.status is Status.ACTIVE


# -- state machines


class QueueOfMessages(RuleBasedStateMachine):
    """Messages of one queue against the pseudo code of smp-server.md §6."""

    new_store: ClassVar[Callable[[], Store]]

    @initialize(quota=st.integers(0, 5))
    def begin(self, quota: int) -> None:
        """A store with one queue."""
        self.store = type(self).new_store()
        self.queue = new_queue()
        self.store.add(self.queue)
        self.quota = quota
        self.model: list[Message] = []
        self.can_write = True
        self.now = NOW

    @rule(body=st.binary(max_size=8), notify=st.booleans())
    def write(self, body: bytes, notify: bool) -> None:
        """A sender's message."""
        one = message(self.now, body, notify)
        was_empty = not self.model
        accepted = False
        if self.can_write or was_empty:
            self.can_write = accepted = len(self.model) < self.quota
            marker = Message(one.msg_id, one.timestamp, False, None)
            self.model.append(one if accepted else marker)
        written = self.store.write(self.queue, one, self.quota)
        assert (written.accepted, written.was_empty) == (accepted, was_empty)

    @precondition(lambda self: self.model)
    @rule()
    def remove_the_first(self) -> None:
        """The recipient acknowledges."""
        first = self.model.pop(0)
        assert self.store.remove(self.queue, first.msg_id) == first

    @rule(data=st.data())
    def remove_another(self, data: st.DataObject) -> None:
        """An id that is not the first one's removes nothing."""
        others = [one.msg_id for one in self.model[1:]]
        msg_id = data.draw(st.sampled_from([*others, b"", b"\0" * ID_SIZE]))
        assert self.store.remove(self.queue, msg_id) is None

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.now += seconds

    @rule(ttl=st.integers(-1, 4), all_queues=st.booleans())
    def expire(self, ttl: int, all_queues: bool) -> None:
        """Old messages go, up to the first young one or marker."""
        before = self.now - ttl
        expired = 0
        while self.model and not self.model[0].is_quota and self.model[0].timestamp < before:
            del self.model[0]
            expired += 1
        if all_queues:
            assert sum(self.store.expire_all(before, 10)) == expired
        else:
            assert self.store.expire(self.queue, before) == expired

    @invariant()
    def the_same_first_and_size(self) -> None:
        """What a recipient sees."""
        assert self.store.head(self.queue) == (self.model[0] if self.model else None)
        assert self.store.message_count(self.queue) == len(self.model)


@dataclass
class _Records:
    """What a store should know."""

    queues: list[Queue] = field(default_factory=list)
    links: dict[bytes, Queue] = field(default_factory=dict)
    notifiers: dict[bytes, Queue] = field(default_factory=dict)
    services: dict[bytes, bytes | None] = field(default_factory=dict)
    """The service of each notifier."""
    waiting: dict[bytes, list[Notification]] = field(default_factory=dict)


class Records(RuleBasedStateMachine):
    """Queues with links, notifiers, services and notifications against dictionaries."""

    new_store: ClassVar[Callable[[], Store]]
    queues: Bundle[Queue] = Bundle("queues")

    @initialize()
    def begin(self) -> None:
        """An empty store; a few ids that are used again and again."""
        self.store = type(self).new_store()
        self.known = _Records()
        self.link_ids = [new_id() for _ in range(3)]
        self.notifier_ids = [new_id() for _ in range(3)]
        self.service_ids = [self.store.add_service(service()).service_id for _ in range(2)]
        self.gone: list[Queue] = []

    def _here(self, queue: Queue) -> bool:
        return queue in self.known.queues

    def _forget_link(self, queue: Queue) -> None:
        self.known.links = {i: q for i, q in self.known.links.items() if q is not queue}

    def _forget_notifier(self, queue: Queue) -> None:
        for notifier_id in [i for i, q in self.known.notifiers.items() if q is queue]:
            del self.known.notifiers[notifier_id]
            self.known.services.pop(notifier_id, None)
            self.known.waiting.pop(notifier_id, None)

    @rule(target=queues, with_link=st.integers(-1, 2), with_notifier=st.integers(-1, 2))
    def add(self, with_link: int, with_notifier: int) -> Queue:
        """A new queue, perhaps with ids that are taken."""
        wanted_link = None if with_link < 0 else link(self.link_ids[with_link])
        wanted_notifier = (
            None if with_notifier < 0 else notifier(notifier_id=self.notifier_ids[with_notifier])
        )
        queue = new_queue(link=wanted_link, notifier=wanted_notifier)
        if (wanted_link is not None and wanted_link.link_id in self.known.links) or (
            wanted_notifier is not None and wanted_notifier.notifier_id in self.known.notifiers
        ):
            with pytest.raises(Collision):
                self.store.add(queue)
            return queue
        self.store.add(queue)
        self.known.queues.append(queue)
        if wanted_link is not None:
            self.known.links[wanted_link.link_id] = queue
        if wanted_notifier is not None:
            self.known.notifiers[wanted_notifier.notifier_id] = queue
            self.known.services[wanted_notifier.notifier_id] = None
        return queue

    @rule(queue=queues, number=st.integers(0, 2))
    def set_link(self, queue: Queue, number: int) -> None:
        """A link, perhaps of another queue."""
        if not self._here(queue):
            return
        link_id, data = self.link_ids[number], LinkData(random(8), random(8))
        if self.known.links.get(link_id, queue) is not queue:
            with pytest.raises(Collision):
                self.store.set_link(queue, link_id, data)
            return
        self.store.set_link(queue, link_id, data)
        self._forget_link(queue)
        self.known.links[link_id] = queue
        assert queue.link == Link(link_id, data)

    @rule(queue=queues)
    def delete_link(self, queue: Queue) -> None:
        """No link any more."""
        if self._here(queue):
            self.store.delete_link(queue)
            self._forget_link(queue)

    @rule(queue=queues, number=st.integers(0, 2))
    def set_notifier(self, queue: Queue, number: int) -> None:
        """A notifier, perhaps with an id that is taken."""
        if not self._here(queue):
            return
        notifier_id = self.notifier_ids[number]
        if notifier_id in self.known.notifiers:
            with pytest.raises(Collision):
                self.store.set_notifier(queue, notifier(notifier_id=notifier_id))
            return
        self.store.set_notifier(queue, notifier(notifier_id=notifier_id))
        self._forget_notifier(queue)
        self.known.notifiers[notifier_id] = queue
        self.known.services[notifier_id] = None

    @rule(queue=queues)
    def delete_notifier(self, queue: Queue) -> None:
        """No notifier any more."""
        if self._here(queue):
            self.store.delete_notifier(queue)
            self._forget_notifier(queue)

    @rule(queue=queues, number=st.integers(-1, 1))
    def associate(self, queue: Queue, number: int) -> None:
        """The notifier changes its service."""
        if not self._here(queue) or queue.notifier is None:
            return
        service_id = None if number < 0 else self.service_ids[number]
        self.store.associate(queue, service_id)
        self.known.services[queue.notifier.notifier_id] = service_id

    @rule(queue=queues, age=st.integers(0, 3))
    def notify(self, queue: Queue, age: int) -> None:
        """A notification waits."""
        if self._here(queue) and queue.notifier is not None:
            one = notification(NOW - age)
            self.store.add_notification(queue.notifier.notifier_id, one)
            self.known.waiting.setdefault(queue.notifier.notifier_id, []).append(one)

    @rule(number=st.integers(0, 2))
    def take(self, number: int) -> None:
        """Notifications are delivered."""
        notifier_id = self.notifier_ids[number]
        taken = self.store.take_notifications(notifier_id)
        assert taken == self.known.waiting.pop(notifier_id, [])

    @rule(age=st.integers(0, 3))
    def expire_notifications(self, age: int) -> None:
        """Old notifications go."""
        expired = 0
        for notifier_id, waiting in list(self.known.waiting.items()):
            young = [one for one in waiting if one.timestamp >= NOW - age]
            expired += len(waiting) - len(young)
            if young:
                self.known.waiting[notifier_id] = young
            else:
                del self.known.waiting[notifier_id]
        assert self.store.expire_notifications(NOW - age) == expired

    @rule(queue=queues)
    def delete(self, queue: Queue) -> None:
        """The queue and all that is its."""
        if self._here(queue):
            self.store.delete(queue)
            self.known.queues.remove(queue)
            self.gone.append(queue)
            self._forget_link(queue)
            self._forget_notifier(queue)

    @invariant()
    def everything_is_found(self) -> None:
        """The same answers as the model."""
        store, known = self.store, self.known
        assert store.queue_count() == len(known.queues)
        for queue in known.queues:
            assert store.by_recipient(queue.recipient_id) is queue
            assert store.by_sender(queue.sender_id) is queue
        for queue in self.gone:
            assert store.by_recipient(queue.recipient_id) is None
            assert store.by_sender(queue.sender_id) is None
            assert queue.status is Status.DELETED
        for link_id in self.link_ids:
            assert store.by_link(link_id) is known.links.get(link_id)
        for notifier_id in self.notifier_ids:
            assert store.by_notifier(notifier_id) is known.notifiers.get(notifier_id)
        assert set(store.notifiers_waiting()) == set(known.waiting)
        for service_id in self.service_ids:
            count = list(known.services.values()).count(service_id)
            assert store.notifier_count(service_id) == count


def machines(new_store: Callable[[], Store]) -> tuple[type, type]:
    """The test cases of the state machines for stores that `new_store` makes."""
    made = []
    for machine in (QueueOfMessages, Records):
        kind: type[RuleBasedStateMachine] = type(
            f"{machine.__name__}In", (machine,), {"new_store": staticmethod(new_store)}
        )
        kind.TestCase.settings = settings(
            max_examples=settings.default.max_examples // 2, stateful_step_count=25
        )
        made.append(kind.TestCase)
    return made[0], made[1]
