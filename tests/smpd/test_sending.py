"""SEND, quota and expiry (docs/spec/smp-server.md §4, §6; smp-wire.md §14; conformance F, J)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smpd.queues import Queue
from tests.smpd.people import (
    Clock,
    Person,
    Recipient,
    Subscriber,
    expect,
    key,
    new_notifier,
    new_queue,
    new_relay,
    random,
)
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.bodies import MessageBody, QuotaBody
from txsimplex.smp.errors import BlockingInformation, BlockingReason

BLOCKED = BlockingInformation(BlockingReason.SPAM)


@pytest.fixture
def clock() -> Clock:
    """The relay's time."""
    return Clock()


def queue_of(recipient: Recipient) -> Queue:
    """The relay's record."""
    queue = recipient.person.relay.store.by_recipient(recipient.recipient_id)
    assert queue is not None
    return queue


def test_085_a_message_arrives() -> None:
    clock = Clock(1_700_000_000.75)
    relay = new_relay(clock=clock)
    recipient = new_queue(Person(relay))
    assert recipient.send(Person(relay), b"\0any bytes ", notify=True) == m.Ok()
    assert recipient.open(recipient.event()) == MessageBody(1_700_000_000, True, b"\0any bytes ")
    assert recipient.person.events == []
    assert (relay.counters.messages_sent, relay.counters.messages_sent_notify) == (1, 1)


def test_an_empty_message_arrives() -> None:
    """§16."""
    relay = new_relay()
    recipient = new_queue(Person(relay))
    assert recipient.send(Person(relay), b"") == m.Ok()
    message = recipient.event()
    assert recipient.body(message) == b""
    assert len(message.encode(18)) == 16151


@pytest.mark.parametrize(
    ("version", "longest"),
    [(6, 16088), (7, 16088), (8, 16064), (10, 16064), (11, 16048), (18, 16048)],
)
def test_091_the_longest_message(version: int, longest: int) -> None:
    relay = new_relay()
    recipient = new_queue(Person(relay))
    person = Person(relay, version)
    body = bytes(range(256)) * 63
    assert recipient.send(person, body[:longest].ljust(longest, b"x")) == m.Ok()
    assert recipient.send(person, bytes(longest + 1)) == errors.LARGE_MSG
    assert recipient.body(recipient.event()) == body[:longest].ljust(longest, b"x")
    assert relay.counters.messages_sent == 1
    assert relay.counters.messages_sent_large == 1


def test_a_sender_id_is_needed() -> None:
    relay = new_relay()
    person = Person(relay)
    recipient = new_queue(person)
    for entity_id in (recipient.recipient_id, random(24)):
        assert person.ask(c.Send(False, b""), entity_id) == errors.AUTH
        assert person.ask(c.Send(False, b""), entity_id, key()) == errors.AUTH
    assert relay.counters.messages_sent_auth == 4
    assert relay.counters.messages_sent == 0


# -- order of checks


def test_authorization_comes_before_length(clock: Clock) -> None:
    relay = new_relay(clock=clock)
    recipient = new_queue(Person(relay))
    clock.now += 86400
    assert recipient.send(Person(relay), bytes(16049), key()) == errors.AUTH
    assert queue_of(recipient).used_on == 1_699_920_000


def test_length_comes_before_status() -> None:
    relay = new_relay()
    recipient = new_queue(Person(relay))
    assert recipient.ask(c.Off()) == m.Ok()
    assert recipient.send(Person(relay), bytes(16049)) == errors.LARGE_MSG
    assert recipient.send(Person(relay), bytes(16048)) == errors.AUTH
    assert relay.block_queue(recipient.sender_id, BLOCKED)
    assert recipient.send(Person(relay), bytes(16049)) == errors.LARGE_MSG
    assert recipient.send(Person(relay), bytes(16048)) == errors.blocked(BLOCKED)
    counters = relay.counters
    assert counters.messages_sent_large == 2
    assert counters.messages_sent_auth == 1
    assert counters.messages_sent_blocked == 1


@pytest.mark.parametrize("prepare", ["large", "off", "blocked", "full"])
def test_a_refused_message_is_a_use_of_the_queue(clock: Clock, prepare: str) -> None:
    """§4 SEND, §3.1: the day of use is noted before length and status are looked at."""
    relay = new_relay(clock=clock, quota=1)
    recipient = new_queue(Person(relay))
    body = bytes(16049 if prepare == "large" else 1)
    if prepare == "off":
        recipient.ask(c.Off())
    elif prepare == "blocked":
        relay.block_queue(recipient.sender_id, BLOCKED)
    elif prepare == "full":
        recipient.send(Person(relay))
    clock.now += 86400
    recipient.send(Person(relay), body)
    assert queue_of(recipient).used_on == 1_700_006_400


def test_most_commands_are_a_use_of_the_queue(clock: Clock) -> None:
    """§3.1: those marked W, once a day."""
    relay = new_relay(clock=clock)
    commands: list[Callable[[], c.Command]] = [
        c.Sub,
        c.Que,
        c.Ldel,
        c.Ndel,
        lambda: c.Ack(random(24)),
        lambda: c.Key(key().public),
        lambda: c.Nkey(*Subscriber.new().request),
        lambda: c.Lset(random(24), c.LinkData(b"", b"")),
    ]
    for command in commands:
        recipient = new_queue(Person(relay))
        clock.now += 86400
        recipient.ask(command())
        assert queue_of(recipient).used_on == int(clock.now) // 86400 * 86400, command


def test_off_and_nsub_are_no_use_of_the_queue(clock: Clock) -> None:
    """§3.1: they do not go that way."""
    relay = new_relay(clock=clock)
    recipient = new_queue(Person(relay))
    subscriber = new_notifier(recipient)
    before = queue_of(recipient).used_on
    clock.now += 86400
    assert recipient.ask(c.Off()) == m.Ok()
    assert subscriber.nsub(Person(relay)) == m.Sok()
    assert queue_of(recipient).used_on == before


# -- quota


def test_137_to_141_the_life_of_the_quota_marker(clock: Clock) -> None:
    relay = new_relay(clock=clock, quota=2)
    sender = Person(relay)
    recipient = new_queue(Person(relay))
    assert recipient.send(sender, b"one") == m.Ok()
    assert recipient.send(sender, b"two") == m.Ok()
    clock.now += 5
    assert recipient.send(sender, b"three", notify=True) == errors.QUOTA
    clock.now += 5
    assert recipient.send(sender, b"four") == errors.QUOTA
    assert recipient.information()["qiSize"] == 3

    first = recipient.event()
    assert recipient.body(first) == b"one"
    second = expect(recipient.ask(c.Ack(first.msg_id)), m.Msg)
    assert recipient.body(second) == b"two"
    assert recipient.send(sender) == errors.QUOTA
    marker = expect(recipient.ask(c.Ack(second.msg_id)), m.Msg)
    assert recipient.open(marker) == QuotaBody(1_700_000_005)
    assert len(marker.body) == len(first.body) == 16122
    assert recipient.send(sender) == errors.QUOTA
    assert recipient.ask(c.Ack(marker.msg_id)) == m.Ok()
    assert recipient.person.events == []

    assert recipient.send(sender, b"five") == m.Ok()
    assert recipient.body(recipient.event()) == b"five"
    counters = relay.counters
    assert counters.messages_sent == 3
    assert counters.messages_sent_quota == 4
    assert counters.messages_sent_notify == 0
    assert counters.messages_received == 2


def test_the_quota_is_128_unless_it_is_said() -> None:
    relay = new_relay()
    recipient = new_queue(Person(relay), subscribe=False)
    sender = Person(relay)
    answers = [recipient.send(sender) for _ in range(130)]
    assert answers == [m.Ok()] * 128 + [errors.QUOTA] * 2
    assert recipient.information()["qiSize"] == 129


def test_a_marker_is_not_announced(clock: Clock) -> None:
    """§7.1: nothing is stored for markers."""
    relay = new_relay(clock=clock, quota=1)
    person = Person(relay)
    recipient = new_queue(person, subscribe=False)
    subscriber = new_notifier(recipient)
    notified = Person(relay)
    assert subscriber.nsub(notified) == m.Sok()
    recipient.send(person, notify=True)
    recipient.send(person, notify=True)
    relay.send_notifications()
    assert len(notified.all_events()) == 1


def test_the_marker_of_a_queue_without_room_is_not_delivered() -> None:
    """§6: with a quota of 0 nothing is accepted, and the recipient is not told."""
    relay = new_relay(quota=0)
    recipient = new_queue(Person(relay))
    assert recipient.send(Person(relay)) == errors.QUOTA
    assert recipient.person.events == []


# -- expiry


def test_143_expiry_on_send(clock: Clock) -> None:
    relay = new_relay(clock=clock, message_ttl=1, expire_on_send=True)
    recipient = new_queue(Person(relay), subscribe=False)
    sender = Person(relay)
    recipient.send(sender, b"old")
    clock.now += 1
    recipient.send(sender, b"as old as may be")
    clock.now += 1
    recipient.send(sender, b"new")
    assert recipient.information()["qiSize"] == 2
    recipient.ask(c.Sub())
    assert recipient.body(recipient.event()) == b"as old as may be"
    assert relay.counters.messages_expired == 1


def test_145_without_expiry_on_send_old_messages_stay(clock: Clock) -> None:
    relay = new_relay(clock=clock, message_ttl=1)
    recipient = new_queue(Person(relay), subscribe=False)
    recipient.send(Person(relay), b"old")
    clock.now += 10
    recipient.send(Person(relay), b"new")
    recipient.ask(c.Sub())
    assert recipient.body(recipient.event()) == b"old"


def test_a_message_that_finds_the_queue_empty_by_expiry_is_delivered(clock: Clock) -> None:
    relay = new_relay(clock=clock, message_ttl=1, expire_on_send=True)
    recipient = new_queue(Person(relay))
    sender = Person(relay)
    recipient.send(sender, b"old")
    old = recipient.event()
    clock.now += 5
    recipient.send(sender, b"new")
    assert recipient.person.events == []
    answer = recipient.ask(c.Ack(old.msg_id))
    assert recipient.body(answer) == b"new"
    assert relay.counters.messages_received == 0


def test_expiry_keeps_a_full_queue_closed_until_the_marker_is_acknowledged(clock: Clock) -> None:
    """§6.1, conformance 147."""
    relay = new_relay(clock=clock, quota=1, message_ttl=1, expire_on_send=True)
    recipient = new_queue(Person(relay), subscribe=False)
    sender = Person(relay)
    recipient.send(sender)
    assert recipient.send(sender) == errors.QUOTA
    clock.now += 100
    assert recipient.send(sender) == errors.QUOTA
    assert recipient.information()["qiSize"] == 1
    recipient.ask(c.Sub())
    marker = recipient.event()
    assert isinstance(recipient.open(marker), QuotaBody)
    assert recipient.ask(c.Ack(marker.msg_id)) == m.Ok()
    assert recipient.send(sender) == m.Ok()


def test_144_periodic_expiry_in_steps(clock: Clock) -> None:
    relay = new_relay(clock=clock, message_ttl=10)
    person = Person(relay)
    recipients = [new_queue(person, subscribe=False) for _ in range(5)]
    for recipient in recipients:
        recipient.send(person, b"old")
    clock.now += 10
    for recipient in recipients:
        recipient.send(person, b"young")
    clock.now += 1
    steps = list(relay.expire_messages(2))
    assert len(steps) >= 3
    assert relay.counters.messages_expired == 5
    for recipient in recipients:
        recipient.ask(c.Sub())
        assert recipient.body(recipient.event()) == b"young"


def test_periodic_expiry_counts_each_step(clock: Clock) -> None:
    relay = new_relay(clock=clock, message_ttl=10)
    person = Person(relay)
    for _ in range(3):
        new_queue(person).send(person)
    clock.now += 11
    steps = relay.expire_messages(1)
    counted = []
    for _ in range(3):
        next(steps)
        counted.append(relay.counters.messages_expired)
    assert counted == [1, 2, 3]
