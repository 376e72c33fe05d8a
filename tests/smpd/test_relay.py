"""Blocks of commands (docs/spec/smp-server.md §2; smp-wire.md §9.3; smp-conformance.md D, H, O)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from smpd.relay import Outcome
from tests.smpd.people import (
    Person,
    Recipient,
    key,
    new_notifier,
    new_queue,
    new_relay,
    random,
)
from txsimplex.addresses import Host, RelayLocation
from txsimplex.keys import Algorithm
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.commands import LinkData, QueueMode
from txsimplex.smp.errors import Error
from txsimplex.smp.transmissions import frame


@pytest.fixture
def person() -> Person:
    """A connection."""
    return Person(new_relay())


def answers(person: Person, transmissions: Sequence[bytes]) -> list[m.Message | Error]:
    """What the commands of a block are answered, none of them being refused."""
    outcome = person.batch(transmissions)
    assert not outcome.refused
    return person.received(outcome.answers)


def send(person: Person, recipient: Recipient) -> bytes:
    """An unsigned SEND."""
    return person.transmission(c.Send(False, b"hello"), recipient.sender_id)


def test_068_069_ping(person: Person) -> None:
    assert person.ask(c.Ping()) == m.Pong()
    assert person.ask(c.Ping(), corr_id=b"") == m.Pong()
    assert person.ask(c.Ping(), random(24)) == errors.HAS_AUTH
    assert person.ask(c.Ping(), b"", key()) == errors.HAS_AUTH


def test_answers_are_in_the_order_of_commands(person: Person) -> None:
    recipients = [new_queue(person) for _ in range(10)]
    outcome = person.batch([one.transmission(c.Que()) for one in recipients])
    received = [person.framing.read_messages(frame([one]))[0] for one in outcome.answers]
    assert [one.entity_id for one in received] == [one.recipient_id for one in recipients]


def test_commands_of_a_block_are_executed_first_to_last(person: Person) -> None:
    """Unlike the reference (§2.2), which no client relies on."""
    recipient = new_queue(person)
    off = recipient.transmission(c.Off())
    assert answers(person, [send(person, recipient), off]) == [m.Ok(), m.Ok()]
    assert answers(person, [off, send(person, recipient)]) == [m.Ok(), errors.AUTH]


def test_errors_of_verification_come_apart_and_first(person: Person) -> None:
    """§2.1, 3; conformance 128."""
    recipient = new_queue(person)
    strange = Recipient(person, key(), recipient.dh, recipient.ids)
    authorized = person.framing.authorized(b"c", b"", b"HELLO")
    outcome = person.batch(
        [
            recipient.transmission(c.Que()),
            strange.transmission(c.Que()),
            person.framing.transmission(authorized, b""),
            person.transmission(c.Ping()),
            person.framing.transmission(authorized, b"x" * 65),
            b"\0",
        ]
    )
    assert isinstance(outcome, Outcome)
    assert person.received(outcome.refused) == [
        errors.AUTH,
        errors.UNKNOWN,
        errors.BLOCK,
        errors.BLOCK,
    ]
    information, pong = person.received(outcome.answers)
    assert isinstance(information, m.Info)
    assert pong == m.Pong()


def test_071_a_bad_authenticator_keeps_the_correlation_id(person: Person) -> None:
    authorized = person.framing.authorized(b"corr", b"entity", b"PING")
    sent = person.framing.transmission(authorized, b"x" * 65)
    (answer,) = person.batch([sent]).refused
    (received,) = person.framing.read_messages(frame([answer]))
    assert (received.corr_id, received.entity_id) == (b"corr", b"")
    assert received.message == m.Err(errors.BLOCK)


def test_version_6_repeats_the_session_id(person: Person) -> None:
    """smp-wire.md §9.3, 2."""
    old = Person(person.relay, 6)
    assert old.ask(c.Ping()) == m.Pong()
    other = Person(person.relay, 6)
    (answer,) = old.batch([other.transmission(c.Ping())]).refused
    assert old.received([answer]) == [errors.SESSION]


# -- verification precedes execution


def test_121_a_key_set_in_the_same_block_is_not_known_yet(person: Person) -> None:
    recipient, private = new_queue(person), key()
    signed = person.transmission(c.Send(False, b"signed"), recipient.sender_id, private)
    outcome = person.batch([recipient.transmission(c.Key(private.public)), signed])
    assert person.received(outcome.refused) == [errors.AUTH]
    assert person.received(outcome.answers) == [m.Ok()]
    assert answers(person, [signed]) == [m.Ok()]


def test_252_an_unsigned_message_in_the_block_of_the_key(person: Person) -> None:
    recipient = new_queue(person)
    block = [recipient.transmission(c.Key(key().public)), send(person, recipient)]
    assert answers(person, block) == [m.Ok(), m.Ok()]
    assert recipient.body(recipient.event()) == b"hello"
    assert recipient.send(person) == errors.AUTH


def test_two_keys_in_a_block(person: Person) -> None:
    """The second does not replace the first."""
    recipient, private = new_queue(person), key()
    block = [
        recipient.transmission(c.Key(private.public)),
        recipient.transmission(c.Key(key().public)),
    ]
    assert answers(person, block) == [m.Ok(), errors.AUTH]
    assert recipient.send(person, private=private) == m.Ok()
    recipient, first, second = new_queue(person), key(), key()
    block = [
        person.transmission(c.Skey(one.public), recipient.sender_id, one) for one in (first, second)
    ]
    assert answers(person, block) == [m.Ok(), errors.AUTH]
    assert recipient.send(person, private=first) == m.Ok()


def test_a_recipient_key_removed_in_the_block_still_works_in_it(person: Person) -> None:
    recipient = new_queue(person, QueueMode.CONTACT)
    block = [recipient.transmission(c.Rkey([key().public])), recipient.transmission(c.Off())]
    assert answers(person, block) == [m.Ok(), m.Ok()]
    assert recipient.ask(c.Off()) == errors.AUTH


def test_after_del_in_a_block_the_queue_is_gone(person: Person) -> None:
    recipient, private = new_queue(person), key()
    subscriber = new_notifier(recipient)
    link_id = random(24)
    assert recipient.ask(c.Lset(link_id, LinkData(b"", b""))) == m.Ok()
    commands = [
        c.Del(),
        c.Sub(),
        c.Key(private.public),
        c.Lset(random(24), LinkData(b"", b"")),
        c.Ldel(),
        c.Nkey(*subscriber.request),
        c.Ndel(),
        c.Get(),
        c.Ack(b""),
        c.Off(),
        c.Que(),
        c.Del(),
    ]
    block = [recipient.transmission(one) for one in commands]
    block += [
        person.transmission(c.Skey(private.public), recipient.sender_id, private),
        send(person, recipient),
        person.transmission(c.Lkey(private.public), link_id, private),
        person.transmission(c.Nsub(), subscriber.notifier_id, subscriber.private),
    ]
    assert answers(person, block) == [m.Ok()] + [errors.AUTH] * (len(block) - 1)
    assert person.relay.counters.queues_deleted == 1
    assert person.peer.subscriptions == {}
    assert person.relay.store.queue_count() == 0


def test_a_contact_link_deleted_in_the_block(person: Person) -> None:
    recipient = new_queue(person, QueueMode.CONTACT)
    link_id, other_id = random(24), random(24)
    data = LinkData(b"", b"")
    assert recipient.ask(c.Lset(link_id, data)) == m.Ok()
    block = [
        recipient.transmission(c.Ldel()),
        person.transmission(c.Lget(), link_id),
        recipient.transmission(c.Lset(other_id, data)),
        person.transmission(c.Lget(), link_id),
    ]
    assert answers(person, block) == [m.Ok(), errors.AUTH, m.Ok(), errors.AUTH]


def test_a_one_time_link_deleted_in_the_block(person: Person) -> None:
    """§4 LKEY: and the queue is not secured then."""
    recipient, private = new_queue(person), key()
    link_id, other_id = random(24), random(24)
    data = LinkData(b"", b"")
    assert recipient.ask(c.Lset(link_id, data)) == m.Ok()
    lkey = person.transmission(c.Lkey(private.public), link_id, private)
    block = [recipient.transmission(c.Ldel()), lkey]
    assert answers(person, block) == [m.Ok(), errors.AUTH]
    assert recipient.ask(c.Lset(link_id, data)) == m.Ok()
    block = [
        recipient.transmission(c.Ldel()),
        recipient.transmission(c.Lset(other_id, data)),
        lkey,
    ]
    assert answers(person, block) == [m.Ok(), m.Ok(), errors.AUTH]
    assert recipient.information()["qiSnd"] is False


def test_a_notifier_replaced_in_the_block(person: Person) -> None:
    recipient = new_queue(person)
    subscriber = new_notifier(recipient)
    nsub = person.transmission(c.Nsub(), subscriber.notifier_id, subscriber.private)
    nkey = recipient.transmission(c.Nkey(*subscriber.request))
    nid, answer = answers(person, [nkey, nsub])
    assert isinstance(nid, m.Nid)
    assert answer == errors.AUTH
    ndel = recipient.transmission(c.Ndel())
    again = person.transmission(c.Nsub(), nid.notifier_id, subscriber.private)
    assert answers(person, [ndel, again]) == [m.Ok(), errors.AUTH]
    assert person.relay.counters.notifier_subscriptions == 0


# -- counters of batches


def batch_counts(person: Person) -> tuple[int, int, int, int]:
    """Of SUB, DEL, NDEL and NSUB."""
    counters = person.relay.counters
    return (
        counters.subscription_batches,
        counters.queues_deleted_batches,
        counters.notifiers_deleted_batches,
        counters.notifier_subscription_batches,
    )


def test_batches_count_for_their_first_command(person: Person) -> None:
    """§2.1, 2."""
    first, second = new_queue(person), new_queue(person)
    nobody = new_notifier(second)
    sub, ndel, que = (first.transmission(one) for one in (c.Sub(), c.Ndel(), c.Que()))
    nsub = person.transmission(c.Nsub(), nobody.notifier_id, nobody.private)
    for block, counts in (
        ([sub], (0, 0, 0, 0)),
        ([sub, que], (1, 0, 0, 0)),
        ([que, sub], (1, 0, 0, 0)),
        ([ndel, sub], (1, 0, 1, 0)),
        ([sub, person.transmission(c.Ping())], (1, 0, 1, 0)),
        ([sub, send(person, first)], (1, 0, 1, 0)),
        ([sub, nsub], (1, 0, 1, 0)),
        ([nsub], (1, 0, 1, 0)),
        ([nsub, nsub], (1, 0, 1, 1)),
        ([first.transmission(c.Del()), sub], (1, 1, 1, 1)),
    ):
        person.batch(block)
        assert batch_counts(person) == counts


def test_batches_count_commands_that_are_valid(person: Person) -> None:
    """§2.1, 2: as read, whether they are permitted or not."""
    recipient = new_queue(person)
    sub = recipient.transmission(c.Sub())
    refused = person.transmission(c.Sub(), recipient.recipient_id, key())
    unsigned = person.transmission(c.Sub(), recipient.recipient_id)
    person.batch([sub, b"\0", unsigned])
    assert batch_counts(person) == (0, 0, 0, 0)
    person.batch([refused, sub])
    assert batch_counts(person) == (1, 0, 0, 0)
    person.batch([b"\0", refused, refused])
    assert batch_counts(person) == (2, 0, 0, 0)


# -- private routing is off


def test_189_a_relay_that_is_no_proxy(person: Person) -> None:
    relay = RelayLocation((Host.parse("relay.example"),), "", random(32))
    assert person.ask(c.Prxy(relay)) == errors.PROXY_BASIC_AUTH
    assert person.ask(c.Prxy(relay, b"password")) == errors.PROXY_BASIC_AUTH
    assert person.ask(c.Prxy(relay), random(24)) == errors.HAS_AUTH
    forwarded = c.Pfwd(18, key(Algorithm.X25519).public, b"anything")
    assert person.ask(forwarded, random(32)) == errors.PROXY_NO_SESSION
    assert person.ask(forwarded) == errors.NO_ENTITY


def test_203_204_forwarded_transmissions(person: Person) -> None:
    assert person.ask(c.Rfwd(bytes(100))) == errors.CRYPTO
    person.peer.secret = None
    no_key = Error(("PROXY", "BROKER", "TRANSPORT", "NO_AUTH"))
    assert person.ask(c.Rfwd(bytes(100))) == no_key


# -- answers that are too long


def test_an_answer_that_fits_into_no_block_is_an_error(person: Person) -> None:
    """smp-wire.md §8: the client's ids are in it, and they can be long."""
    recipient = new_queue(person, QueueMode.CONTACT)
    link_id = random(24)
    assert recipient.ask(c.Lset(link_id, LinkData(b"", bytes(16200)))) == m.Ok()
    assert isinstance(person.ask(c.Lget(), link_id), m.Lnk)
    assert person.ask(c.Lget(), link_id, corr_id=bytes(255)) == errors.LARGE_MSG
    assert recipient.send(person) == m.Ok()
    ack = person.transmission(
        c.Ack(b""), recipient.recipient_id, recipient.private, corr_id=bytes(255)
    )
    assert person.received(person.batch([ack]).answers) == [errors.LARGE_MSG]
    assert isinstance(recipient.ask(c.Ack(b"")), m.Msg)
