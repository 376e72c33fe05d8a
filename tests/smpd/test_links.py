"""Short links: LSET, LDEL, LKEY, LGET (docs/spec/smp-server.md §4, §10; smp-conformance.md M)."""

from __future__ import annotations

import hashlib

import pytest

from tests.smpd.people import Person, Recipient, key, new_queue, new_relay, random
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.commands import LinkData, LinkRequest, QueueMode
from txsimplex.smp.errors import Error

MESSAGING, CONTACT = QueueMode.MESSAGING, QueueMode.CONTACT
DATA = LinkData(b"fixed data", b"user data")
CHANGED = LinkData(b"fixed data", b"other user data")


def with_link(mode: QueueMode, person: Person | None = None) -> tuple[Recipient, bytes]:
    """A queue with a link, and the link's id."""
    corr_id = random(24)
    sender_id = hashlib.sha3_384(corr_id).digest()[:24]
    link_id = random(24) if mode is CONTACT else None
    recipient = new_queue(
        person or Person(new_relay()),
        mode,
        link=LinkRequest(sender_id, DATA, link_id),
        corr_id=corr_id,
    )
    assert recipient.ids.link_id is not None
    return recipient, recipient.ids.link_id


def other(recipient: Recipient) -> Person:
    """Another connection to the same relay."""
    return Person(recipient.person.relay)


def lkey(person: Person, link_id: bytes, private: PrivateKey) -> m.Message | Error:
    """The answer to LKEY with a key, signed by that key."""
    return person.ask(c.Lkey(private.public), link_id, private)


# -- one-time links


def test_173_a_one_time_link_is_not_simply_read() -> None:
    recipient, link_id = with_link(MESSAGING)
    assert other(recipient).ask(c.Lget(), link_id) == errors.AUTH
    assert recipient.ask(c.Lset(link_id, CHANGED)) == m.Ok()
    answer = lkey(other(recipient), link_id, key())
    assert answer == m.Lnk(recipient.sender_id, CHANGED)


def test_174_lkey_is_signed_with_its_key() -> None:
    recipient, link_id = with_link(MESSAGING)
    person, private = other(recipient), key()
    assert person.ask(c.Lkey(private.public), link_id) == errors.NO_AUTH
    assert person.ask(c.Lkey(private.public), link_id, key()) == errors.AUTH
    assert lkey(person, recipient.recipient_id, private) == errors.AUTH
    assert lkey(person, recipient.sender_id, private) == errors.AUTH
    assert lkey(person, random(24), private) == errors.AUTH
    assert recipient.information()["qiSnd"] is False


@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519])
def test_175_lkey_secures_and_can_be_repeated(algorithm: Algorithm) -> None:
    recipient, link_id = with_link(MESSAGING)
    person, private = other(recipient), key(algorithm)
    for times in (1, 2):
        assert lkey(person, link_id, private) == m.Lnk(recipient.sender_id, DATA)
        assert person.relay.counters.queues_secured == times
    assert lkey(person, link_id, key(algorithm)) == errors.AUTH
    assert person.relay.counters.queues_secured == 2
    assert recipient.information()["qiSnd"] is True
    assert recipient.send(person) == errors.AUTH
    assert recipient.send(person, private=private) == m.Ok()


def test_lkey_of_a_queue_secured_with_key() -> None:
    recipient, link_id = with_link(MESSAGING)
    person, private = other(recipient), key()
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    assert lkey(person, link_id, key()) == errors.AUTH
    assert lkey(person, link_id, private) == m.Lnk(recipient.sender_id, DATA)


def test_176_a_secured_link_is_not_set_but_deleted() -> None:
    recipient, link_id = with_link(MESSAGING)
    private = key()
    lkey(other(recipient), link_id, private)
    assert recipient.ask(c.Lset(link_id, CHANGED)) == errors.AUTH
    assert recipient.ask(c.Ldel()) == m.Ok()
    assert recipient.ask(c.Lset(link_id, DATA)) == errors.AUTH
    assert lkey(other(recipient), link_id, private) == errors.AUTH


def test_the_first_message_after_securing_deletes_the_link() -> None:
    """§4 LKEY."""
    recipient, link_id = with_link(MESSAGING)
    person, private = other(recipient), key()
    assert recipient.send(person) == m.Ok()
    assert isinstance(lkey(person, link_id, private), m.Lnk)
    assert recipient.send(person, private=private) == m.Ok()
    assert lkey(person, link_id, private) == errors.AUTH
    assert person.relay.store.by_link(link_id) is None


def test_a_message_that_is_too_long_does_not_delete_the_link() -> None:
    """§4 SEND: length, then status, then the link."""
    recipient, link_id = with_link(MESSAGING)
    person, private = other(recipient), key()
    assert isinstance(lkey(person, link_id, private), m.Lnk)
    assert recipient.send(person, bytes(16049), private) == errors.LARGE_MSG
    assert isinstance(lkey(person, link_id, private), m.Lnk)
    assert recipient.ask(c.Off()) == m.Ok()
    assert recipient.send(person, b"", private) == errors.AUTH
    assert isinstance(lkey(person, link_id, private), m.Lnk)


def test_a_message_over_quota_deletes_the_link() -> None:
    """§4 LKEY: done before the quota check."""
    recipient, link_id = with_link(MESSAGING, Person(new_relay(quota=1)))
    person, private = other(recipient), key()
    assert recipient.send(person) == m.Ok()
    assert isinstance(lkey(person, link_id, private), m.Lnk)
    assert recipient.send(person, private=private) == errors.QUOTA
    assert lkey(person, link_id, private) == errors.AUTH


def test_an_unsecured_queue_keeps_its_link() -> None:
    recipient, link_id = with_link(MESSAGING)
    person = other(recipient)
    for _ in range(2):
        assert recipient.send(person) == m.Ok()
    assert isinstance(lkey(person, link_id, key()), m.Lnk)


def test_lset_gives_a_one_time_queue_a_link() -> None:
    recipient = new_queue(Person(new_relay()))
    link_id, private = random(24), key()
    assert recipient.ask(c.Lset(link_id, DATA)) == m.Ok()
    assert lkey(other(recipient), link_id, private) == m.Lnk(recipient.sender_id, DATA)


# -- contact links


def test_178_a_contact_link_is_read_by_anybody() -> None:
    recipient, link_id = with_link(CONTACT)
    person = other(recipient)
    assert lkey(person, link_id, key()) == errors.AUTH
    for _ in range(2):
        assert person.ask(c.Lget(), link_id) == m.Lnk(recipient.sender_id, DATA)
    assert person.ask(c.Lget(), recipient.recipient_id) == errors.AUTH
    assert person.ask(c.Lget(), recipient.sender_id) == errors.AUTH
    assert person.ask(c.Lget(), random(24)) == errors.AUTH
    assert person.ask(c.Lget(), link_id, key()) == errors.HAS_AUTH


def test_179_the_fixed_part_stays() -> None:
    recipient, link_id = with_link(CONTACT)
    person = other(recipient)
    assert recipient.ask(c.Lset(link_id, CHANGED)) == m.Ok()
    assert person.ask(c.Lget(), link_id) == m.Lnk(recipient.sender_id, CHANGED)
    assert recipient.ask(c.Lset(random(24), DATA)) == errors.AUTH
    assert recipient.ask(c.Lset(link_id, LinkData(b"changed", b"user"))) == errors.AUTH
    assert person.ask(c.Lget(), link_id) == m.Lnk(recipient.sender_id, CHANGED)


def test_180_ldel_is_idempotent() -> None:
    recipient, link_id = with_link(CONTACT)
    assert recipient.ask(c.Ldel()) == m.Ok()
    assert recipient.ask(c.Ldel()) == m.Ok()
    assert other(recipient).ask(c.Lget(), link_id) == errors.AUTH


def test_after_ldel_another_link_can_be_set() -> None:
    recipient, link_id = with_link(CONTACT)
    assert recipient.ask(c.Ldel()) == m.Ok()
    new_id, new_data = random(24), LinkData(b"new", b"data")
    assert recipient.ask(c.Lset(new_id, new_data)) == m.Ok()
    assert other(recipient).ask(c.Lget(), new_id) == m.Lnk(recipient.sender_id, new_data)
    assert other(recipient).ask(c.Lget(), link_id) == errors.AUTH


def test_a_secured_contact_queue_keeps_its_link() -> None:
    recipient, link_id = with_link(CONTACT)
    person, private = other(recipient), key()
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    assert recipient.ask(c.Lset(link_id, CHANGED)) == m.Ok()
    assert recipient.send(person, private=private) == m.Ok()
    assert person.ask(c.Lget(), link_id) == m.Lnk(recipient.sender_id, CHANGED)


def test_a_link_of_another_queue_is_not_set() -> None:
    recipient, link_id = with_link(CONTACT)
    stranger = new_queue(other(recipient), CONTACT)
    assert stranger.ask(c.Lset(link_id, DATA)) == errors.AUTH
    assert other(recipient).ask(c.Lget(), link_id) == m.Lnk(recipient.sender_id, DATA)


def test_a_deleted_queue_has_no_link() -> None:
    recipient, link_id = with_link(CONTACT)
    assert recipient.ask(c.Del()) == m.Ok()
    assert other(recipient).ask(c.Lget(), link_id) == errors.AUTH


# -- queues of clients before version 9, whose mode is not known


def test_182_an_old_contact_queue_gets_a_link() -> None:
    person = Person(new_relay())
    recipient = new_queue(person, None)
    link_id = random(24)
    assert recipient.ask(c.Lset(link_id, DATA)) == m.Ok()
    assert person.ask(c.Lget(), link_id) == m.Lnk(recipient.sender_id, DATA)
    assert lkey(person, link_id, key()) == errors.AUTH


def test_an_old_queue_that_is_secured_is_none_for_contacts() -> None:
    """§1: is it a contact queue depends on the key where the mode is unknown."""
    person = Person(new_relay())
    recipient = new_queue(person, None)
    link_id, private = random(24), key()
    assert recipient.ask(c.Lset(link_id, DATA)) == m.Ok()
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    assert person.ask(c.Lget(), link_id) == errors.AUTH
    assert recipient.ask(c.Lset(link_id, CHANGED)) == errors.AUTH
    assert recipient.send(person, private=private) == m.Ok()
    assert person.relay.store.by_link(link_id) is None
