"""NKEY, NDEL, NSUB and NMSG (docs/spec/smp-server.md §7; smp-conformance.md K)."""

from __future__ import annotations

import pytest

from tests.smpd.people import (
    Clock,
    Person,
    Recipient,
    ScriptedRandom,
    Subscriber,
    expect,
    key,
    new_notifier,
    new_queue,
    new_relay,
    random,
)
from tests.smpd.stores.records import notification
from txsimplex.keys import Algorithm
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.errors import Error


@pytest.fixture
def recipient() -> Recipient:
    """Subscribed to a new queue."""
    return new_queue(Person(new_relay()))


@pytest.fixture
def notified(recipient: Recipient) -> Person:
    """The connection of a notifier."""
    return Person(recipient.person.relay)


def round_for(person: Person) -> list[tuple[bytes, m.Message | Error]]:
    """What `person` gets in a round of notifications."""
    person.events.clear()
    person.relay.send_notifications()
    return person.all_events()


def test_150_nkey_again_makes_another_notifier(recipient: Recipient, notified: Person) -> None:
    first = Subscriber.new()
    nid = expect(recipient.ask(c.Nkey(*first.request)), m.Nid)
    assert len(nid.notifier_id) == 24
    assert len(nid.encode(18)) == 74
    again = expect(recipient.ask(c.Nkey(*first.request)), m.Nid)
    assert again.notifier_id != nid.notifier_id
    assert again.dh_key != nid.dh_key
    assert first.known_as(nid.notifier_id, nid.dh_key).nsub(notified) == errors.AUTH
    assert first.known_as(again.notifier_id, again.dh_key).nsub(notified) == m.Sok()
    assert notified.relay.counters.notifiers_created == 2
    assert recipient.information()["qiNtf"] is True


def test_152_159_a_notification() -> None:
    clock = Clock(1_700_000_000.9)
    relay = new_relay(clock=clock)
    recipient, notified = new_queue(Person(relay)), Person(relay)
    subscriber = new_notifier(recipient)
    assert subscriber.nsub(notified) == m.Sok()
    assert recipient.send(Person(relay), notify=True) == m.Ok()
    assert notified.events == []
    ((entity_id, message),) = round_for(notified)
    assert entity_id == subscriber.notifier_id
    assert isinstance(message, m.Nmsg)
    assert len(message.meta) == 144
    assert len(message.encode(18)) == 174
    assert subscriber.meta(message) == (recipient.event().msg_id, 1_700_000_000)
    assert round_for(notified) == []
    counters = relay.counters
    assert (counters.notifications_sent, counters.notifications_sent_batches) == (1, 1)
    assert counters.messages_sent_notify == 1


def test_153_without_the_flag_there_is_none(recipient: Recipient, notified: Person) -> None:
    assert new_notifier(recipient).nsub(notified) == m.Sok()
    recipient.send(recipient.person)
    assert round_for(notified) == []
    assert notified.relay.counters.messages_sent_notify == 0


def test_the_flag_without_a_notifier_is_counted(recipient: Recipient) -> None:
    """§4 SEND."""
    assert recipient.send(recipient.person, notify=True) == m.Ok()
    assert recipient.person.relay.counters.messages_sent_notify == 1
    assert recipient.person.relay.store.notifiers_waiting() == []


def test_154_a_second_connection_takes_over(recipient: Recipient, notified: Person) -> None:
    subscriber, second = new_notifier(recipient), Person(notified.relay)
    assert subscriber.nsub(notified) == m.Sok()
    assert subscriber.nsub(second) == m.Sok()
    notified.relay.send_events()
    assert notified.all_events() == [(subscriber.notifier_id, m.End())]
    recipient.send(recipient.person, notify=True)
    assert len(round_for(second)) == 1
    assert notified.events == []
    assert notified.relay.counters.notifier_subscriptions == 2


def test_a_notifier_can_be_taken_back(recipient: Recipient, notified: Person) -> None:
    subscriber, second = new_notifier(recipient), Person(notified.relay)
    for person in (notified, second, notified):
        assert subscriber.nsub(person) == m.Sok()
    notified.relay.send_events()
    assert notified.all_events() == []
    assert second.all_events() == [(subscriber.notifier_id, m.End())]
    recipient.send(recipient.person, notify=True)
    assert len(round_for(notified)) == 1


def test_nsub_again_changes_nothing(recipient: Recipient, notified: Person) -> None:
    subscriber = new_notifier(recipient)
    for _ in range(2):
        assert subscriber.nsub(notified) == m.Sok()
    notified.relay.send_events()
    assert notified.events == []
    counters = notified.relay.counters
    assert counters.notifier_subscriptions == 1
    assert counters.notifier_subscriptions_duplicate == 1


@pytest.mark.parametrize("version", [6, 15])
def test_nsub_at_older_versions(recipient: Recipient, version: int) -> None:
    subscriber = new_notifier(recipient)
    assert subscriber.nsub(Person(recipient.person.relay, version)) == m.Ok()


def test_nsub_needs_the_notifiers_key_and_id(recipient: Recipient, notified: Person) -> None:
    subscriber = new_notifier(recipient)
    for entity_id, private in (
        (subscriber.notifier_id, key()),
        (subscriber.notifier_id, recipient.private),
        (recipient.recipient_id, subscriber.private),
        (recipient.sender_id, subscriber.private),
        (random(24), subscriber.private),
        (random(24), key(Algorithm.X25519)),
    ):
        assert notified.ask(c.Nsub(), entity_id, private) == errors.AUTH
    assert notified.relay.counters.notifier_subscriptions_auth == 6
    assert notified.relay.counters.notifier_subscriptions == 0


def test_155_157_ndel(recipient: Recipient, notified: Person) -> None:
    subscriber = new_notifier(recipient)
    assert subscriber.nsub(notified) == m.Sok()
    recipient.send(recipient.person, notify=True)
    assert recipient.ask(c.Ndel()) == m.Ok()
    assert round_for(notified) == []
    notified.relay.send_events()
    assert notified.all_events() == [(subscriber.notifier_id, m.Deld())]
    recipient.send(recipient.person, notify=True)
    assert round_for(notified) == []
    assert subscriber.nsub(notified) == errors.AUTH
    assert recipient.information()["qiNtf"] is False

    again = new_notifier(recipient)
    assert again.notifier_id != subscriber.notifier_id
    assert again.nsub(notified) == m.Sok()
    recipient.send(recipient.person, notify=True)
    assert len(round_for(notified)) == 1
    assert notified.relay.counters.notifiers_deleted == 1


def test_156_ndel_without_a_notifier(recipient: Recipient) -> None:
    assert recipient.ask(c.Ndel()) == m.Ok()
    assert recipient.person.relay.counters.notifiers_deleted == 0


def test_nkey_ends_the_former_notifier(recipient: Recipient, notified: Person) -> None:
    """§4 NKEY: its subscriber is told, what waited for it is dropped."""
    old = new_notifier(recipient)
    assert old.nsub(notified) == m.Sok()
    recipient.send(recipient.person, notify=True)
    new = new_notifier(recipient)
    assert new.nsub(notified) == m.Sok()
    assert round_for(notified) == []
    notified.relay.send_events()
    assert notified.all_events() == [(old.notifier_id, m.Deld())]
    recipient.send(recipient.person, notify=True)
    ((entity_id, _),) = round_for(notified)
    assert entity_id == new.notifier_id


@pytest.mark.parametrize(("version", "event"), [(9, m.End()), (10, m.Deld())])
def test_deleted_as_older_versions_are_told(
    recipient: Recipient, version: int, event: m.Message
) -> None:
    person = Person(recipient.person.relay, version)
    subscriber = new_notifier(recipient)
    subscriber.nsub(person)
    recipient.ask(c.Ndel())
    person.relay.send_events()
    assert person.all_events() == [(subscriber.notifier_id, event)]


def test_a_taken_notifier_id_is_tried_three_times() -> None:
    """§4 NKEY."""
    script = ScriptedRandom()
    person = Person(new_relay(random=script))
    first, second = new_queue(person), new_queue(person)
    taken = new_notifier(first).notifier_id
    script.ids = [taken, taken]
    kept = new_notifier(second)
    assert kept.notifier_id != taken
    assert script.ids == []
    script.ids = [taken] * 3
    assert second.ask(c.Nkey(*Subscriber.new().request)) == errors.INTERNAL
    assert script.ids == []
    assert kept.nsub(person) == m.Sok()
    assert person.relay.counters.notifiers_created == 2
    person.relay.send_events()
    assert person.all_events() == []


# -- rounds


def test_notifications_wait_for_a_subscriber(recipient: Recipient, notified: Person) -> None:
    subscriber = new_notifier(recipient)
    for body in (b"one", b"two", b"three"):
        recipient.send(recipient.person, body, notify=True)
    notified.relay.send_notifications()
    assert subscriber.nsub(notified) == m.Sok()
    events = round_for(notified)
    queue = notified.relay.store.by_recipient(recipient.recipient_id)
    assert queue is not None
    in_order = [one.msg_id for one in queue.messages.waiting]
    assert [subscriber.meta(event)[0] for _, event in events] == in_order


def test_an_acknowledged_message_is_announced_still(recipient: Recipient, notified: Person) -> None:
    """§7.2."""
    assert new_notifier(recipient).nsub(notified) == m.Sok()
    recipient.send(recipient.person, notify=True)
    assert recipient.ask(c.Ack(recipient.event().msg_id)) == m.Ok()
    assert len(round_for(notified)) == 1


def test_notifications_are_kept_while_the_connection_is_full(
    recipient: Recipient, notified: Person
) -> None:
    assert new_notifier(recipient).nsub(notified) == m.Sok()
    other = Person(notified.relay)
    other_recipient = new_queue(Person(notified.relay))
    assert new_notifier(other_recipient).nsub(other) == m.Sok()
    for one in (recipient, other_recipient):
        one.send(recipient.person, notify=True)
    notified.full = True
    assert round_for(notified) == []
    assert len(other.all_events()) == 1
    recipient.send(recipient.person, notify=True)
    notified.full = False
    assert len(round_for(notified)) == 2
    assert notified.relay.counters.notifications_sent == 3


def test_notifications_are_kept_when_the_connection_has_gone(
    recipient: Recipient, notified: Person
) -> None:
    subscriber = new_notifier(recipient)
    assert subscriber.nsub(notified) == m.Sok()
    recipient.send(recipient.person, notify=True)
    notified.leave()
    assert notified.peer.notifier_ids == set()
    assert round_for(notified) == []
    second = Person(notified.relay)
    assert subscriber.nsub(second) == m.Sok()
    assert len(round_for(second)) == 1
    notified.relay.send_events()
    assert notified.events == []


def test_a_connection_that_left_after_losing_its_notifier(
    recipient: Recipient, notified: Person
) -> None:
    subscriber, second = new_notifier(recipient), Person(notified.relay)
    assert subscriber.nsub(notified) == m.Sok()
    assert subscriber.nsub(second) == m.Sok()
    notified.leave()
    recipient.send(recipient.person, notify=True)
    assert len(round_for(second)) == 1


def test_all_notifications_of_a_connection_go_together(notified: Person) -> None:
    """§7.1, §14."""
    relay = notified.relay
    person = Person(relay)
    recipients = [new_queue(person, subscribe=False) for _ in range(3)]
    for recipient in recipients:
        assert new_notifier(recipient).nsub(notified) == m.Sok()
        for _ in range(30):
            recipient.send(person, notify=True)
    notified.batches.clear()
    assert len(round_for(notified)) == 90
    assert notified.batches == [90]
    counters = relay.counters
    assert (counters.notifications_sent, counters.notifications_sent_batches) == (90, 2)


def test_old_notifications_expire() -> None:
    """§7.1."""
    clock = Clock()
    relay = new_relay(clock=clock, notification_ttl=100)
    recipient, notified = new_queue(Person(relay)), Person(relay)
    subscriber = new_notifier(recipient)
    recipient.send(recipient.person, notify=True)
    clock.now += 100
    recipient.send(recipient.person, notify=True)
    relay.expire_notifications()
    assert relay.counters.notifications_expired == 0
    clock.now += 1
    relay.expire_notifications()
    assert relay.counters.notifications_expired == 1
    assert subscriber.nsub(notified) == m.Sok()
    ((_, event),) = round_for(notified)
    assert subscriber.meta(event)[1] == 1_700_000_100


def test_notifications_of_an_unknown_notifier_harm_nobody(
    recipient: Recipient, notified: Person
) -> None:
    """§7.1: they are dropped with their notifier, or at the latest when they expire."""
    store = notified.relay.store
    store.add_notification(unknown := random(24), notification())
    assert new_notifier(recipient).nsub(notified) == m.Sok()
    recipient.send(recipient.person, notify=True)
    assert len(round_for(notified)) == 1
    assert store.notifiers_waiting() == [unknown]
    assert store.expire_notifications(notification().timestamp + 1) == 1
    assert store.notifiers_waiting() == []
