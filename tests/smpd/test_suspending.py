"""OFF, DEL and blocking (docs/spec/smp-server.md §4, §5.5, §9; smp-conformance.md G, N)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smpd.queues import Queue, Status
from tests.smpd.people import (
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
from txsimplex.smp.commands import LinkData, QueueMode
from txsimplex.smp.errors import BlockingInformation, BlockingReason, Notice

SPAM = BlockingInformation(BlockingReason.SPAM)
CONTENT = BlockingInformation(BlockingReason.CONTENT, Notice(3600))
FOREVER = BlockingInformation(BlockingReason.CONTENT, Notice(None))

COMMANDS: dict[str, Callable[[], c.Command]] = {
    "SUB": c.Sub,
    "KEY": lambda: c.Key(key().public),
    "RKEY": lambda: c.Rkey([key().public]),
    "LSET": lambda: c.Lset(random(24), LinkData(b"", b"")),
    "LDEL": c.Ldel,
    "NKEY": lambda: c.Nkey(*Subscriber.new().request),
    "NDEL": c.Ndel,
    "GET": c.Get,
    "ACK": lambda: c.Ack(random(24)),
    "OFF": c.Off,
    "DEL": c.Del,
    "QUE": c.Que,
}
"""All commands of the recipient."""


@pytest.fixture
def recipient() -> Recipient:
    """Subscribed to a new queue."""
    return new_queue(Person(new_relay()))


@pytest.fixture
def sender(recipient: Recipient) -> Person:
    """Another connection."""
    return Person(recipient.person.relay)


def queue_of(recipient: Recipient) -> Queue:
    """The relay's record."""
    queue = recipient.person.relay.store.by_recipient(recipient.recipient_id)
    assert queue is not None
    return queue


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_recipient_commands_need_the_recipients_key_and_id(recipient: Recipient, name: str) -> None:
    """§3; conformance 88, 105, 108."""
    command, person = COMMANDS[name](), recipient.person
    assert person.ask(command, recipient.recipient_id, key()) == errors.AUTH
    assert person.ask(command, recipient.sender_id, recipient.private) == errors.AUTH
    assert person.ask(command, random(24), recipient.private) == errors.AUTH
    assert person.ask(command, recipient.recipient_id) == errors.NO_AUTH
    assert person.ask(command, b"", recipient.private) == errors.NO_AUTH
    assert queue_of(recipient).status is Status.ACTIVE


# -- OFF


def test_105_off_can_be_repeated(recipient: Recipient) -> None:
    assert recipient.ask(c.Off()) == m.Ok()
    assert recipient.ask(c.Off()) == m.Ok()
    assert queue_of(recipient).status is Status.OFF


def test_106_a_suspended_queue_takes_no_messages(recipient: Recipient, sender: Person) -> None:
    private = key()
    recipient.ask(c.Off())
    assert recipient.send(sender) == errors.AUTH
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    assert recipient.send(sender, private=private) == errors.AUTH
    assert recipient.send(sender) == errors.AUTH
    assert sender.relay.counters.messages_sent_auth == 3


def test_107_a_suspended_queue_is_emptied(recipient: Recipient, sender: Person) -> None:
    recipient.send(sender, b"one")
    recipient.send(sender, b"two")
    message = recipient.event()
    assert recipient.ask(c.Off()) == m.Ok()
    assert recipient.ask(c.Sub(), sender) == m.Sok()
    assert recipient.event(sender) == message
    second = expect(recipient.ask(c.Ack(message.msg_id), sender), m.Msg)
    assert recipient.body(second) == b"two"
    assert recipient.ask(c.Get()) == second
    assert recipient.ask(c.Ack(second.msg_id)) == m.Ok()
    assert recipient.information()["qiSize"] == 0


# -- DEL


def test_109_a_deleted_queue_is_gone(recipient: Recipient, sender: Person) -> None:
    private = key()
    subscriber = new_notifier(recipient)
    recipient.send(sender)
    recipient.ask(c.Key(private.public))
    assert recipient.ask(c.Del()) == m.Ok()
    assert recipient.send(sender) == errors.AUTH
    assert recipient.send(sender, private=private) == errors.AUTH
    assert sender.ask(c.Skey(private.public), recipient.sender_id, private) == errors.AUTH
    assert subscriber.nsub(sender) == errors.AUTH
    for command in COMMANDS.values():
        assert recipient.ask(command()) == errors.AUTH
    assert sender.relay.store.queue_count() == 0


def test_110_another_subscriber_is_told(recipient: Recipient, sender: Person) -> None:
    assert recipient.ask(c.Del(), sender) == m.Ok()
    sender.relay.send_events()
    assert recipient.person.all_events() == [(recipient.recipient_id, m.Deld())]
    assert sender.all_events() == []


@pytest.mark.parametrize(("version", "event"), [(6, m.End()), (9, m.End()), (10, m.Deld())])
def test_before_version_10_it_is_told_end(version: int, event: m.Message) -> None:
    relay = new_relay()
    recipient = new_queue(Person(relay, version))
    assert recipient.ask(c.Del(), Person(relay)) == m.Ok()
    relay.send_events()
    assert recipient.person.all_events() == [(recipient.recipient_id, event)]


def test_111_who_deletes_is_not_told(recipient: Recipient) -> None:
    assert recipient.ask(c.Del()) == m.Ok()
    recipient.person.relay.send_events()
    assert recipient.person.events == []
    assert recipient.person.peer.subscriptions == {}


def test_a_getter_that_deletes_is_none_any_more(recipient: Recipient, sender: Person) -> None:
    """§5.4."""
    assert recipient.ask(c.Get(), sender) == m.Ok()
    assert recipient.ask(c.Del(), sender) == m.Ok()
    assert sender.peer.subscriptions == {}


def test_the_notifiers_subscriber_is_told(recipient: Recipient, sender: Person) -> None:
    subscriber = new_notifier(recipient)
    assert subscriber.nsub(sender) == m.Sok()
    recipient.send(Person(sender.relay), notify=True)
    assert recipient.ask(c.Del()) == m.Ok()
    sender.relay.send_notifications()
    sender.relay.send_events()
    assert sender.all_events() == [(subscriber.notifier_id, m.Deld())]


def test_deleted_queues_are_counted() -> None:
    relay = new_relay()
    person = Person(relay)
    new, secured, other = (new_queue(person) for _ in range(3))
    for recipient in (secured, other):
        assert recipient.ask(c.Key(key().public)) == m.Ok()
    for recipient in (new, secured, other):
        assert recipient.ask(c.Del()) == m.Ok()
    counters = relay.counters
    assert counters.queues_deleted == 3
    assert counters.queues_deleted_new == 1
    assert counters.queues_deleted_secured == 2


# -- blocking


@pytest.mark.parametrize("information", [SPAM, CONTENT, FOREVER])
def test_184_a_blocked_queue(
    recipient: Recipient, sender: Person, information: BlockingInformation
) -> None:
    private = key()
    blocked = errors.blocked(information)
    assert sender.relay.block_queue(recipient.sender_id, information)
    for name in sorted(COMMANDS.keys() - {"OFF", "DEL"}):
        assert recipient.ask(COMMANDS[name](), sender) == blocked, name
    assert recipient.send(sender) == blocked
    assert sender.ask(c.Skey(private.public), recipient.sender_id, private) == blocked
    assert sender.relay.counters.messages_sent_blocked == 1
    assert sender.relay.counters.queues_secured == 0


def test_links_of_a_blocked_queue(sender: Person) -> None:
    for mode, read in ((QueueMode.CONTACT, c.Lget()), (QueueMode.MESSAGING, None)):
        recipient = new_queue(sender, mode)
        link_id, private = random(24), key()
        assert recipient.ask(c.Lset(link_id, LinkData(b"", b""))) == m.Ok()
        assert sender.relay.block_queue(recipient.sender_id, SPAM)
        if read is not None:
            assert sender.ask(read, link_id) == errors.blocked(SPAM)
        else:
            answer = sender.ask(c.Lkey(private.public), link_id, private)
            assert answer == errors.blocked(SPAM)


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        (6, errors.AUTH),
        (11, errors.AUTH),
        (12, errors.blocked(BlockingInformation(BlockingReason.CONTENT))),
        (17, errors.blocked(BlockingInformation(BlockingReason.CONTENT))),
        (18, errors.blocked(CONTENT)),
    ],
)
def test_185_188_what_each_version_is_told(version: int, answer: errors.Error) -> None:
    relay = new_relay()
    recipient = new_queue(Person(relay, version))
    assert relay.block_queue(recipient.sender_id, CONTENT)
    assert recipient.person.all_events() == [(recipient.recipient_id, answer)]
    assert recipient.ask(c.Sub()) == answer
    assert recipient.send(recipient.person) == answer


def test_a_blocked_queue_is_authorised_first(recipient: Recipient, sender: Person) -> None:
    """smp-wire.md §9.3: authorization before the conditions of commands."""
    sender.relay.block_queue(recipient.sender_id, SPAM)
    assert sender.ask(c.Sub(), recipient.recipient_id, key()) == errors.AUTH
    assert recipient.send(sender, private=key()) == errors.AUTH


def test_a_blocked_queue_can_be_suspended(recipient: Recipient, sender: Person) -> None:
    """§4 OFF: it overwrites the blocked status."""
    sender.relay.block_queue(recipient.sender_id, SPAM)
    assert recipient.ask(c.Off()) == m.Ok()
    assert recipient.send(sender) == errors.AUTH
    assert recipient.ask(c.Sub()) == m.Sok()
    assert not sender.relay.unblock_queue(recipient.sender_id)
    assert recipient.send(sender) == errors.AUTH


def test_a_blocked_queue_can_be_deleted(recipient: Recipient, sender: Person) -> None:
    sender.relay.block_queue(recipient.sender_id, SPAM)
    assert recipient.ask(c.Del()) == m.Ok()
    assert recipient.send(sender) == errors.AUTH


def test_a_blocked_queue_has_a_notifier(recipient: Recipient, sender: Person) -> None:
    """§3.1: NSUB does not ask."""
    subscriber = new_notifier(recipient)
    sender.relay.block_queue(recipient.sender_id, SPAM)
    assert subscriber.nsub(sender) == m.Sok()


def test_the_subscription_of_a_blocked_queue_stays(recipient: Recipient, sender: Person) -> None:
    """§5.5."""
    recipient.send(sender)
    message = recipient.event()
    sender.relay.block_queue(recipient.sender_id, SPAM)
    assert recipient.person.all_events() == [(recipient.recipient_id, errors.blocked(SPAM))]
    assert recipient.ask(c.Ack(message.msg_id)) == errors.blocked(SPAM)
    assert sender.relay.unblock_queue(recipient.sender_id)
    assert recipient.ask(c.Ack(message.msg_id)) == m.Ok()
    assert recipient.send(sender, b"again") == m.Ok()
    assert recipient.body(recipient.event()) == b"again"


def test_187_blocking_again_changes_the_reason(recipient: Recipient, sender: Person) -> None:
    relay = sender.relay
    assert relay.block_queue(recipient.sender_id, SPAM)
    assert relay.counters.queues_blocked == 1
    assert relay.block_queue(recipient.sender_id, CONTENT)
    assert recipient.ask(c.Que()) == errors.blocked(CONTENT)
    assert relay.counters.queues_blocked == 1
    assert relay.unblock_queue(recipient.sender_id)
    assert queue_of(recipient).blocked is None
    assert recipient.send(sender) == m.Ok()


def test_blocking_goes_by_the_senders_id(recipient: Recipient, sender: Person) -> None:
    """§16, 257 of conformance."""
    for stranger in (recipient.recipient_id, random(24)):
        assert not sender.relay.block_queue(stranger, SPAM)
        assert not sender.relay.unblock_queue(stranger)
    assert not sender.relay.unblock_queue(recipient.sender_id)
    assert recipient.send(sender) == m.Ok()
    assert sender.relay.counters.queues_blocked == 0


def test_a_getter_is_not_told_of_blocking(recipient: Recipient, sender: Person) -> None:
    assert recipient.ask(c.Get(), sender) == m.Ok()
    sender.relay.block_queue(recipient.sender_id, SPAM)
    assert sender.events == []
