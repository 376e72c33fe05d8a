"""NEW (docs/spec/smp-server.md §4, §11; smp-conformance.md F, M)."""

from __future__ import annotations

import hashlib

import pytest

from smpd.queues import Queue, Status
from tests.smpd.people import (
    Clock,
    Person,
    Recipient,
    ScriptedRandom,
    Subscriber,
    expect,
    key,
    new_queue,
    new_relay,
    random,
)
from txsimplex.boxes import BoxError
from txsimplex.keys import Algorithm
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.commands import LinkData, LinkRequest, QueueMode, Role
from txsimplex.smp.errors import Error

MESSAGING, CONTACT = QueueMode.MESSAGING, QueueMode.CONTACT
DATA = LinkData(b"fixed data", b"user data")


def new(
    person: Person,
    mode: QueueMode | None = MESSAGING,
    link: LinkRequest | None = None,
    *,
    password: bytes | None = None,
    subscribe: bool = True,
    corr_id: bytes | None = None,
    by_service: bool | None = None,
) -> m.Message | Error:
    """The answer to NEW with new keys."""
    private = key()
    request = None if mode is None else c.QueueRequest(mode, link)
    command = c.New(private.public, key(Algorithm.X25519).public, password, subscribe, request)
    return person.ask(command, b"", private, corr_id, by_service)


def queue_of(person: Person, ids: m.Message | Error) -> Queue:
    """The record behind IDS."""
    queue = person.relay.store.by_recipient(expect(ids, m.Ids).recipient_id)
    assert queue is not None
    return queue


def sender_id_for(corr_id: bytes) -> bytes:
    """The sender id that goes with link data (§4 NEW 5)."""
    return hashlib.sha3_384(corr_id).digest()[:24]


def test_084_ids_differ() -> None:
    person = Person(new_relay())
    ids = expect(new(person), m.Ids)
    assert len({ids.recipient_id, ids.sender_id, ids.dh_key.raw}) == 3
    assert [len(one) for one in (ids.recipient_id, ids.sender_id)] == [24, 24]
    assert (ids.link_id, ids.service_id, ids.notifier) == (None, None, None)


def test_the_record_of_a_new_queue() -> None:
    clock = Clock(1_700_000_123.9)
    person = Person(new_relay(clock=clock))
    queue = queue_of(person, new(person))
    assert queue.status is Status.ACTIVE
    assert queue.sender_key is None
    assert queue.used_on == 1_699_920_000
    assert queue.mode is MESSAGING
    assert person.relay.counters.queues_created == 1
    assert person.relay.counters.notifiers_created_new == 0


def test_103_the_same_key_makes_another_queue() -> None:
    person = Person(new_relay())
    private, dh = key(), key(Algorithm.X25519)
    command = c.New(private.public, dh.public, None, True, c.QueueRequest(MESSAGING))
    first, second = (expect(person.ask(command, b"", private), m.Ids) for _ in range(2))
    assert first.recipient_id != second.recipient_id
    assert first.sender_id != second.sender_id
    assert first.dh_key != second.dh_key
    assert person.relay.store.queue_count() == 2


@pytest.mark.parametrize("version", [6, 8, 9, 10, 11, 14, 15, 16, 17, 18])
@pytest.mark.parametrize("mode", [MESSAGING, CONTACT, None])
def test_the_mode_is_the_one_asked_for(version: int, mode: QueueMode | None) -> None:
    """smp-wire.md §10.1: what each version can say, and what IDS says of it."""
    person = Person(new_relay(), version)
    ids = expect(new(person, mode), m.Ids)
    stored = queue_of(person, ids).mode
    if version < 9:
        assert (stored, ids.mode) == (None, None)
    elif version < 15:
        assert stored is (CONTACT if mode is None else mode)
        assert ids.mode is stored
    else:
        assert (stored, ids.mode) == (mode, mode)


def test_new_is_signed_with_its_own_key() -> None:
    person = Person(new_relay())
    command = c.New(key().public, key(Algorithm.X25519).public)
    assert person.ask(command, b"", key()) == errors.AUTH
    assert person.relay.store.queue_count() == 0


@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519])
def test_any_key_that_authorises_makes_a_queue(algorithm: Algorithm) -> None:
    person = Person(new_relay())
    recipient = new_queue(person, algorithm=algorithm)
    assert recipient.send(person) == m.Ok()
    assert recipient.body(recipient.event()) == b"hello"


def test_124_only_create_does_not_subscribe() -> None:
    relay = new_relay()
    person = Person(relay)
    recipient = new_queue(person, subscribe=False)
    assert recipient.send(Person(relay)) == m.Ok()
    assert person.events == []
    assert recipient.ask(c.Ack(random(24))) == errors.NO_MSG
    assert recipient.ask(c.Sub()) == m.Sok()
    assert recipient.body(recipient.event()) == b"hello"


def test_104_an_empty_correlation_id_works() -> None:
    person = Person(new_relay())
    assert isinstance(new(person, corr_id=b""), m.Ids)


# -- who may create


def test_098_new_queues_may_be_off() -> None:
    person = Person(new_relay(new_queues=False))
    assert new(person) == errors.AUTH
    assert new(person, password=b"any") == errors.AUTH
    assert person.relay.store.queue_count() == 0
    assert person.relay.counters.queues_created == 0


@pytest.mark.parametrize("version", [6, 7, 18])
def test_099_101_a_password(version: int) -> None:
    person = Person(new_relay(password=b"secret"), version)
    assert isinstance(new(person, password=b"secret"), m.Ids)
    for wrong in (None, b"Secret", b"secre", b"secrets"):
        assert new(person, password=wrong) == errors.AUTH
    assert person.relay.store.queue_count() == 1


@pytest.mark.parametrize("version", [6, 7, 18])
def test_100_without_a_password_any_will_do(version: int) -> None:
    person = Person(new_relay(), version)
    assert isinstance(new(person, password=b"whatever"), m.Ids)
    assert isinstance(new(person), m.Ids)


def test_who_may_create_is_asked_before_anything_else() -> None:
    """§4 NEW 1 before 2 and 5."""
    relay = new_relay(password=b"secret")
    assert new(Person(relay), link=LinkRequest(random(24), DATA)) == errors.AUTH
    assert new(Person(relay, service=Role.MESSAGING), subscribe=False) == errors.AUTH


# -- link data


def test_171_the_sender_id_has_to_follow_from_the_correlation_id() -> None:
    person = Person(new_relay())
    assert new(person, link=LinkRequest(random(24), DATA)) == errors.PROHIBITED
    assert new(person, CONTACT, LinkRequest(random(24), DATA, random(24))) == errors.PROHIBITED
    corr_id = random(24)
    longer = hashlib.sha3_384(corr_id).digest()
    assert new(person, link=LinkRequest(longer, DATA), corr_id=corr_id) == errors.PROHIBITED
    assert person.relay.store.queue_count() == 0


def test_172_a_one_time_link_has_an_id_of_the_relay() -> None:
    person = Person(new_relay())
    corr_id = random(24)
    sender_id = sender_id_for(corr_id)
    ids = expect(new(person, link=LinkRequest(sender_id, DATA), corr_id=corr_id), m.Ids)
    assert (ids.sender_id, ids.mode) == (sender_id, MESSAGING)
    assert ids.link_id is not None
    assert len(ids.link_id) == 24
    queue = queue_of(person, ids)
    assert queue.link is not None
    assert (queue.link.link_id, queue.link.data) == (ids.link_id, DATA)


@pytest.mark.parametrize("link_id", [b"0123456789", bytes(range(24)), b"\xff" * 255])
def test_177_a_contact_link_has_the_clients_id(link_id: bytes) -> None:
    """Of any length (§16)."""
    person = Person(new_relay())
    corr_id = random(24)
    link = LinkRequest(sender_id_for(corr_id), DATA, link_id)
    ids = expect(new(person, CONTACT, link, corr_id=corr_id), m.Ids)
    assert (ids.sender_id, ids.link_id, ids.mode) == (link.sender_id, link_id, CONTACT)
    assert person.ask(c.Lget(), link_id) == m.Lnk(link.sender_id, DATA)


def test_an_empty_correlation_id_has_a_sender_id_too() -> None:
    person = Person(new_relay())
    link = LinkRequest(sender_id_for(b""), DATA)
    assert isinstance(new(person, link=link, corr_id=b""), m.Ids)


def test_a_sender_id_given_twice_is_refused() -> None:
    """§4 NEW 6: a collision of ids that the client gave is AUTH."""
    person = Person(new_relay())
    corr_id = random(24)
    link = LinkRequest(sender_id_for(corr_id), DATA)
    assert isinstance(new(person, link=link, corr_id=corr_id), m.Ids)
    assert new(person, link=link, corr_id=corr_id) == errors.AUTH
    assert person.relay.store.queue_count() == 1
    assert person.relay.counters.queues_created == 1


def test_a_link_id_given_twice_is_refused() -> None:
    person = Person(new_relay())
    link_id = random(24)
    for expected in (m.Ids, Error):
        corr_id = random(24)
        link = LinkRequest(sender_id_for(corr_id), DATA, link_id)
        answer = new(person, CONTACT, link, corr_id=corr_id)
        assert isinstance(answer, expected)
    assert answer == errors.AUTH
    assert person.relay.store.queue_count() == 1
    assert person.relay.store.by_sender(link.sender_id) is None


# -- random ids that are taken


@pytest.mark.parametrize("taken", ["recipient", "sender"])
@pytest.mark.parametrize("version", [8, 18])
def test_other_ids_are_tried_three_times(taken: str, version: int) -> None:
    """§4 NEW 6."""
    script = ScriptedRandom()
    person = Person(new_relay(random=script), version)
    first = expect(new(person), m.Ids)
    again = first.recipient_id if taken == "recipient" else first.sender_id

    def attempt(number: int) -> list[bytes]:
        free = random(24)
        return [again, free] if taken == "recipient" else [free, again]

    script.ids = [*attempt(1), *attempt(2), random(24), random(24)]
    third_time = expect(new(person), m.Ids)
    assert third_time.recipient_id != first.recipient_id
    assert script.ids == []
    script.ids = [*attempt(1), *attempt(2), *attempt(3)]
    assert new(person) == errors.INTERNAL
    assert script.ids == []
    assert person.relay.store.queue_count() == 2
    assert person.relay.counters.queues_created == 2


def test_a_taken_notifier_id_is_tried_again() -> None:
    script = ScriptedRandom()
    person = Person(new_relay(random=script))
    first = Subscriber.new()
    new_queue(person, notifier=first)
    script.ids = [first.notifier_id, random(24), random(24)]
    second = Subscriber.new()
    new_queue(person, notifier=second)
    assert second.notifier_id != first.notifier_id
    assert person.relay.store.by_notifier(first.notifier_id) is not None


def test_a_random_id_that_is_taken_is_refused_beside_ids_of_the_client() -> None:
    """§4 NEW 6: with client supplied ids any collision is AUTH."""
    script = ScriptedRandom()
    person = Person(new_relay(random=script))
    first = expect(new(person), m.Ids)
    corr_id = random(24)
    script.ids = [first.recipient_id] * 2
    link = LinkRequest(sender_id_for(corr_id), DATA)
    assert new(person, link=link, corr_id=corr_id) == errors.AUTH


# -- notifier


def test_158_a_notifier_can_come_with_new() -> None:
    relay = new_relay()
    recipient_person, notified = Person(relay), Person(relay)
    subscriber = Subscriber.new()
    recipient = new_queue(recipient_person, notifier=subscriber)
    assert len(subscriber.notifier_id) == 24
    assert subscriber.nsub(notified) == m.Sok()
    assert recipient.send(Person(relay), notify=True) == m.Ok()
    relay.send_notifications()
    ((entity_id, message),) = notified.all_events()
    assert entity_id == subscriber.notifier_id
    assert subscriber.meta(message)[0] == recipient.event().msg_id
    assert relay.counters.notifiers_created_new == 1
    assert relay.counters.notifiers_created == 0


@pytest.mark.parametrize("version", [16, 15, 6])
def test_before_version_17_new_has_no_notifier(version: int) -> None:
    person = Person(new_relay(), version)
    private, pair = key(), Subscriber.new()
    command = c.New(private.public, key(Algorithm.X25519).public)
    command.request = c.QueueRequest(MESSAGING)
    command.notifier = c.NotifierRequest(*pair.request)
    ids = expect(person.ask(command, b"", private), m.Ids)
    assert queue_of(person, ids).notifier is None


# -- by a service


def test_new_by_a_messaging_service() -> None:
    """§5.2: the queue is associated, and nobody is subscribed."""
    relay = new_relay()
    service = Person(relay, service=Role.MESSAGING)
    recipient = new_queue(service)
    assert recipient.ids.service_id == service.service_id
    queue = queue_of(service, recipient.ids)
    assert queue.service_id == service.service_id
    assert recipient.send(Person(relay)) == m.Ok()
    assert service.events == []
    assert relay.subscriptions.subscriber(queue) is None


def test_a_service_cannot_only_create() -> None:
    """§4 NEW 2."""
    person = Person(new_relay(), service=Role.MESSAGING)
    assert new(person, subscribe=False) == errors.PROHIBITED
    assert person.relay.store.queue_count() == 0


def test_ordinary_queues_have_no_service() -> None:
    person = Person(new_relay())
    ids = new(person)
    assert queue_of(person, ids).service_id is None
    assert expect(ids, m.Ids).service_id is None


@pytest.mark.parametrize("version", [16, 17])
def test_ids_tell_the_service_from_version_16_on(version: int) -> None:
    person = Person(new_relay(), version, Role.MESSAGING)
    assert expect(new(person), m.Ids).service_id == person.service_id


def test_messages_are_encrypted_with_the_two_dh_keys() -> None:
    """§4 NEW 3, smp-wire.md §14.2: only the recipient's DH key opens them."""
    relay = new_relay()
    person = Person(relay)
    recipient = new_queue(person)
    stranger = Recipient(person, recipient.private, key(Algorithm.X25519), recipient.ids)
    recipient.send(Person(relay), b"for your eyes only")
    message = recipient.event()
    assert recipient.body(message) == b"for your eyes only"
    with pytest.raises(BoxError):
        stranger.open(message)
