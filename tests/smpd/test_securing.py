"""KEY, SKEY and RKEY (docs/spec/smp-server.md §3, §4; smp-conformance.md F)."""

from __future__ import annotations

import pytest

from tests.smpd.people import Person, Recipient, key, new_queue, new_relay, random
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.commands import QueueMode
from txsimplex.smp.errors import Error

MESSAGING, CONTACT = QueueMode.MESSAGING, QueueMode.CONTACT


@pytest.fixture
def recipient() -> Recipient:
    """Of a messaging queue."""
    return new_queue(Person(new_relay()))


@pytest.fixture
def sender(recipient: Recipient) -> Person:
    """Another connection."""
    return Person(recipient.person.relay)


def skey(person: Person, entity_id: bytes, private: PrivateKey) -> m.Message | Error:
    """The answer to SKEY with a key, signed by that key."""
    return person.ask(c.Skey(private.public), entity_id, private)


def sender_key(recipient: Recipient) -> object:
    """The key that the relay has."""
    queue = recipient.person.relay.store.by_recipient(recipient.recipient_id)
    assert queue is not None
    return queue.sender_key


def test_088_key_is_the_recipients(recipient: Recipient) -> None:
    person, private = recipient.person, key()
    command = c.Key(private.public)
    assert person.ask(command, recipient.recipient_id, key()) == errors.AUTH
    assert person.ask(command, recipient.sender_id, recipient.private) == errors.AUTH
    assert sender_key(recipient) is None


def test_089_key_is_idempotent(recipient: Recipient) -> None:
    private = key()
    counters = recipient.person.relay.counters
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    assert counters.queues_secured == 2
    assert recipient.ask(c.Key(key().public)) == errors.AUTH
    assert counters.queues_secured == 2
    assert sender_key(recipient) == private.public


def test_keys_of_two_algorithms_differ(recipient: Recipient) -> None:
    """smp-wire.md §2: equal means the same algorithm and the same key."""
    private = key(Algorithm.X25519)
    twin = PrivateKey(Algorithm.ED25519, private.raw).public
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    assert recipient.ask(c.Key(twin)) == errors.AUTH


@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519])
def test_090_a_secured_queue_takes_only_its_senders_messages(
    recipient: Recipient, sender: Person, algorithm: Algorithm
) -> None:
    private = key(algorithm)
    assert recipient.send(sender) == m.Ok()
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    assert recipient.send(sender, private=private) == m.Ok()
    assert recipient.send(sender) == errors.AUTH
    for other in (Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519):
        assert recipient.send(sender, private=key(other)) == errors.AUTH


@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519])
def test_087_an_unsecured_queue_takes_no_signed_message(
    recipient: Recipient, sender: Person, algorithm: Algorithm
) -> None:
    assert recipient.send(sender, private=key(algorithm)) == errors.AUTH
    assert recipient.person.events == []


@pytest.mark.parametrize("mode", [MESSAGING, CONTACT, None])
def test_key_works_on_a_queue_of_any_mode(mode: QueueMode | None) -> None:
    recipient = new_queue(Person(new_relay()), mode)
    private = key()
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    assert recipient.send(recipient.person, private=private) == m.Ok()


# -- SKEY


def test_092_skey_is_signed_with_its_key(recipient: Recipient, sender: Person) -> None:
    private = key()
    assert sender.ask(c.Skey(private.public), recipient.sender_id, key()) == errors.AUTH
    assert skey(sender, recipient.recipient_id, private) == errors.AUTH
    assert skey(sender, random(24), private) == errors.AUTH
    assert sender_key(recipient) is None
    assert skey(sender, recipient.sender_id, private) == m.Ok()
    assert sender_key(recipient) == private.public


def test_093_skey_is_idempotent(recipient: Recipient, sender: Person) -> None:
    private = key(Algorithm.X25519)
    assert skey(sender, recipient.sender_id, private) == m.Ok()
    assert skey(sender, recipient.sender_id, private) == m.Ok()
    assert sender.relay.counters.queues_secured == 2
    assert skey(sender, recipient.sender_id, key()) == errors.AUTH
    assert skey(sender, recipient.sender_id, key(Algorithm.X25519)) == errors.AUTH
    assert sender.relay.counters.queues_secured == 2
    assert recipient.send(sender, private=private) == m.Ok()


def test_skey_after_key(recipient: Recipient, sender: Person) -> None:
    private = key()
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    assert skey(sender, recipient.sender_id, key()) == errors.AUTH
    assert skey(sender, recipient.sender_id, private) == m.Ok()
    assert recipient.ask(c.Key(private.public)) == m.Ok()


@pytest.mark.parametrize("version", [6, 8, 9])
def test_no_version_is_too_old_for_skey(recipient: Recipient, version: int) -> None:
    """smp-wire.md §6.2: commands are not refused because of the version."""
    private = key()
    person = Person(recipient.person.relay, version)
    assert skey(person, recipient.sender_id, private) == m.Ok()
    assert recipient.send(person, private=private) == m.Ok()


@pytest.mark.parametrize("mode", [CONTACT, None])
def test_094_skey_is_for_messaging_queues(mode: QueueMode | None) -> None:
    recipient = new_queue(Person(new_relay()), mode)
    assert skey(recipient.person, recipient.sender_id, key()) == errors.AUTH
    assert sender_key(recipient) is None


def test_250_skey_after_off(recipient: Recipient, sender: Person) -> None:
    private = key()
    assert skey(sender, recipient.sender_id, private) == m.Ok()
    assert recipient.ask(c.Off()) == m.Ok()
    assert skey(sender, recipient.sender_id, private) == m.Ok()


# -- RKEY


def test_095_rkey_replaces_the_recipients_keys() -> None:
    person = Person(new_relay())
    recipient = new_queue(person, CONTACT)
    old, new, other = recipient.private, key(Algorithm.X25519), key(Algorithm.ED448)

    def works(private: PrivateKey) -> bool:
        answer = person.ask(c.Que(), recipient.recipient_id, private)
        assert isinstance(answer, m.Info) or answer == errors.AUTH
        return isinstance(answer, m.Info)

    assert recipient.ask(c.Rkey([old.public, new.public, other.public])) == m.Ok()
    assert [works(one) for one in (old, new, other)] == [True, True, True]
    assert person.ask(c.Rkey([new.public]), recipient.recipient_id, other) == m.Ok()
    assert [works(one) for one in (old, new, other)] == [False, True, False]


def test_096_a_key_may_remove_itself() -> None:
    recipient = new_queue(Person(new_relay()), CONTACT)
    assert recipient.ask(c.Rkey([key().public])) == m.Ok()
    assert recipient.ask(c.Que()) == errors.AUTH
    assert recipient.ask(c.Sub()) == errors.AUTH


@pytest.mark.parametrize("mode", [MESSAGING, None])
@pytest.mark.parametrize("count", [1, 2, 8, 9])
def test_097_rkey_is_for_contact_queues(mode: QueueMode | None, count: int) -> None:
    recipient = new_queue(Person(new_relay()), mode)
    assert recipient.ask(c.Rkey([key().public for _ in range(count)])) == errors.AUTH
    assert isinstance(recipient.ask(c.Que()), m.Info)


def test_251_many_recipient_keys() -> None:
    person = Person(new_relay())
    recipient = new_queue(person, CONTACT)
    keys = [key() for _ in range(50)]
    assert recipient.ask(c.Rkey([one.public for one in keys])) == m.Ok()
    assert isinstance(person.ask(c.Que(), recipient.recipient_id, keys[-1]), m.Info)
