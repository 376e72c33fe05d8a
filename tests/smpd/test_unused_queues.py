"""Queues that nobody uses are removed, where the operator wants that."""

from __future__ import annotations

from smpd.queues import DAY
from smpd.relay import Relay
from tests.smpd.people import (
    Clock,
    Person,
    Recipient,
    Subscriber,
    new_notifier,
    new_queue,
    new_relay,
)
from txsimplex.smp import commands as c, errors, messages as m

MONTH = 30 * DAY


def expire(relay: Relay) -> None:
    """A round, in steps of one queue."""
    for _ in relay.expire_queues(1):
        pass


def abandoned(relay: Relay) -> Recipient:
    """A queue with a message, whose recipient has left."""
    recipient = new_queue(Person(relay))
    assert recipient.send(Person(relay)) == m.Ok()
    recipient.person.leave()
    return recipient


def exists(recipient: Recipient) -> bool:
    return recipient.person.relay.store.by_recipient(recipient.recipient_id) is not None


def test_they_are_kept_for_ever_if_nothing_else_is_said() -> None:
    clock = Clock()
    relay = new_relay(clock=clock)
    recipient = abandoned(relay)
    clock.now += 10_000 * DAY
    expire(relay)
    assert exists(recipient)


def test_they_go_with_all_that_is_in_them() -> None:
    clock = Clock()
    relay = new_relay(clock=clock, unused_ttl=MONTH)
    recipient = abandoned(relay)
    clock.now += MONTH - DAY
    expire(relay)
    assert exists(recipient)
    clock.now += 2 * DAY
    expire(relay)
    assert not exists(recipient)
    assert relay.store.by_sender(recipient.sender_id) is None
    assert relay.counters.queues_expired == 1
    assert recipient.send(Person(relay)) == errors.AUTH
    expire(relay)
    assert relay.counters.queues_expired == 1


def test_any_command_is_a_use() -> None:
    clock = Clock()
    relay = new_relay(clock=clock, unused_ttl=MONTH)
    sent_to, asked_for, forgotten = (abandoned(relay) for _ in range(3))
    clock.now += MONTH - DAY
    assert sent_to.send(Person(relay)) == m.Ok()
    assert isinstance(asked_for.ask(c.Que(), Person(relay)), m.Info)
    clock.now += 2 * DAY
    expire(relay)
    assert [exists(each) for each in (sent_to, asked_for, forgotten)] == [True, True, False]


def test_a_queue_with_a_subscriber_is_in_use() -> None:
    clock = Clock()
    relay = new_relay(clock=clock, unused_ttl=MONTH)
    recipient = new_queue(Person(relay))
    clock.now += 2 * MONTH
    expire(relay)
    assert exists(recipient)
    recipient.person.leave()
    expire(relay)
    assert not exists(recipient)


def test_the_subscriber_of_its_notifier_is_told() -> None:
    clock = Clock()
    relay = new_relay(clock=clock, unused_ttl=MONTH)
    recipient, notified = new_queue(Person(relay)), Person(relay)
    notifier: Subscriber = new_notifier(recipient)
    assert notifier.nsub(notified) == m.Sok()
    recipient.person.leave()
    clock.now += 2 * MONTH
    expire(relay)
    relay.send_events()
    assert notified.all_events() == [(notifier.notifier_id, m.Deld())]
