"""What every store has to pass (docs/spec/smp-server.md §6, §7, §8; `smpd.stores.interface`).

A module of tests for one kind of store has a subclass of `StoreContract` that makes
stores, and the state machines that `machines.machines` gives for the same stores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest

from smpd.queues import DAY, Link, Message, Notifier, Queue, Status
from smpd.stores.interface import Collision, RoleMismatch, Store
from tests.smpd.people import key
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
from txsimplex.smp.commands import LinkData, QueueMode, Role
from txsimplex.smp.errors import BlockingInformation, BlockingReason, Notice


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
        assert sum(at_once(store.expire_all(NOW + 1, 10))) == 0

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
        steps = at_once(store.expire_all(NOW + 1, 2))
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
        steps = at_once(store.expire_all(NOW + 1, 1))
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

    # -- queues that nobody uses

    def test_unused_queues_in_steps(self, store: Store) -> None:
        queues = [new_queue() for _ in range(7)]
        for number, queue in enumerate(queues):
            store.add(queue)
            store.use(queue, DAY * (number % 2))
        steps = list(at_once(store.unused(DAY, 2)))
        assert all(len(step) <= 2 for step in steps)
        found = [recipient_id for step in steps for recipient_id in step]
        assert sorted(found) == sorted(queue.recipient_id for queue in queues[::2])
        assert [each for step in at_once(store.unused(0, 2)) for each in step] == []

    def test_unused_queues_may_be_deleted_between_steps(self, store: Store) -> None:
        queues = [new_queue() for _ in range(6)]
        for queue in queues:
            store.add(queue)
            store.use(queue, 0)
        found = set()
        for step in at_once(store.unused(DAY, 1)):
            for recipient_id in step:
                unused = store.by_recipient(recipient_id)
                assert unused is not None
                found.add(recipient_id)
                store.delete(unused)
            left = [queue for queue in queues if store.by_recipient(queue.recipient_id) is queue]
            if len(left) == 3:
                for queue in left[:2]:
                    store.delete(queue)
        assert 4 <= len(found) <= 6
        assert store.queue_count() == 0

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

    def test_a_removed_notifier_keeps_its_service(self, store: Store) -> None:
        """The relay tells the service afterwards."""
        service_id = store.add_service(service()).service_id
        removed = []
        for remove in (
            store.delete_notifier,
            store.delete,
            lambda queue: store.set_notifier(queue, notifier()),
        ):
            queue = new_queue(notifier=notifier())
            store.add(queue)
            store.associate(queue, service_id)
            store.secure(queue, sender := key().public)
            removed.append(queue.notifier)
            remove(queue)
            assert queue.sender_key == sender
        assert [one.service_id for one in removed if one is not None] == [service_id] * 3
        assert store.notifier_count(service_id) == 0

    # -- what is safe

    def test_the_mark_follows_the_changes(self, store: Store, queue: Queue) -> None:
        numbers = [store.noted]
        store.use(queue, DAY)
        numbers.append(store.noted)
        store.write(queue, message(), 4)
        numbers.append(store.noted)
        assert numbers == sorted(numbers)
        assert store.committed <= store.noted
        store.flush()
        assert store.committed == store.noted
        assert store.unsafe(queue) == 0
        assert store.failure is None

    def test_a_change_of_a_queue_is_unsafe_until_the_mark_has_passed_it(
        self, store: Store, queue: Queue
    ) -> None:
        other = new_queue()
        store.add(other)
        store.flush()
        store.secure(queue, key().public)
        assert store.unsafe(queue) <= store.noted
        assert store.unsafe(queue) == 0 or store.unsafe(queue) > store.committed
        assert store.unsafe(other) == 0

    def test_reading_changes_nothing(self, store: Store) -> None:
        queue = new_queue(link=link(), notifier=notifier())
        store.add(queue)
        store.write(queue, message(), 4)
        assert queue.notifier is not None
        before = store.noted
        store.by_sender(queue.sender_id)
        store.head(queue)
        store.message_count(queue)
        store.remove(queue, new_id())
        store.expire(queue, NOW)
        assert sum(at_once(store.expire_all(NOW, 10))) == 0
        assert [each for step in at_once(store.unused(0, 10)) for each in step] == []
        store.notifier_count(new_id())
        store.take_notifications(queue.notifier.notifier_id)
        store.refused(queue)
        store.refused(None)
        assert store.noted == before

    def test_close_ends_it(self, store: Store, queue: Queue) -> None:
        store.write(queue, message(), 4)
        store.close()
        assert queue.status is Status.ACTIVE
