"""Sessions of services (docs/spec/smp-server.md §3, §7.2, §8; smp-conformance.md L)."""

from __future__ import annotations

import pytest

from smpd.stores.interface import RoleMismatch
from tests.smpd.people import (
    Person,
    Recipient,
    Subscriber,
    key,
    new_notifier,
    new_queue,
    new_relay,
    random,
)
from txsimplex.addresses import Host, RelayLocation
from txsimplex.keys import Algorithm
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.commands import Role
from txsimplex.smp.errors import Error


@pytest.fixture
def recipient() -> Recipient:
    """Of a queue."""
    return new_queue(Person(new_relay()))


@pytest.fixture
def subscriber(recipient: Recipient) -> Subscriber:
    """Of its notifier."""
    return new_notifier(recipient)


@pytest.fixture
def service(recipient: Recipient) -> Person:
    """A session of a service of notifications."""
    return Person(recipient.person.relay, service=Role.NOTIFIER)


def same_service(service: Person) -> Person:
    """Another session of it."""
    return Person(service.relay, service=Role.NOTIFIER, fingerprint=service.fingerprint)


def nsubs(
    person: Person, entity_id: bytes | None = None, by_service: bool = False
) -> m.Message | Error:
    """The answer to NSUBS, signed by the session's key."""
    service_id = person.service_id if entity_id is None else entity_id
    return person.ask(c.Nsubs(), service_id, person.service_key, by_service=by_service)


def events_of(person: Person) -> list[tuple[bytes, m.Message | Error]]:
    """What `person` gets by a round of events."""
    person.relay.send_events()
    return person.all_events()


def notify(recipient: Recipient, person: Person) -> int:
    """How many notifications `person` gets of a new message."""
    recipient.send(Person(person.relay), notify=True)
    person.relay.send_notifications()
    return sum(isinstance(message, m.Nmsg) for _, message in person.all_events())


def more_notifiers(recipient: Recipient, count: int) -> list[tuple[Recipient, Subscriber]]:
    """Notifiers of other queues."""
    others = [new_queue(recipient.person) for _ in range(count)]
    return [(other, new_notifier(other)) for other in others]


# -- known services


def test_161_a_certificate_has_one_id() -> None:
    relay = new_relay()
    first = relay.service(Role.NOTIFIER, (b"leaf", b"identity"), b"f" * 32)
    assert relay.service(Role.NOTIFIER, (b"leaf", b"identity"), b"f" * 32) is first
    assert len(first.service_id) == 24
    assert first.chain == (b"leaf", b"identity")
    assert first.created_on == 1_699_920_000
    assert relay.service(Role.NOTIFIER, (b"leaf",), b"g" * 32).service_id != first.service_id


def test_169_a_certificate_has_one_role() -> None:
    relay = new_relay()
    relay.service(Role.NOTIFIER, (b"leaf",), b"f" * 32)
    with pytest.raises(RoleMismatch):
        relay.service(Role.MESSAGING, (b"leaf",), b"f" * 32)


# -- what a service may ask


@pytest.mark.parametrize("role", Role)
def test_170_commands_of_other_parties_are_prohibited(role: Role) -> None:
    """§3, 1."""
    relay = new_relay()
    person = Person(relay, service=role)
    private, box_key = key(), key(Algorithm.X25519).public
    parties: dict[Role, list[tuple[c.Command, bytes, bool]]] = {
        Role.MESSAGING: [
            (c.New(private.public, box_key), b"", True),
            *((one, random(24), True) for one in (c.Sub(), c.Get(), c.Del(), c.Que())),
            (c.Subs(), random(24), True),
            (c.Skey(private.public), random(24), True),
            (c.Send(False, b""), random(24), False),
            (c.Lkey(private.public), random(24), True),
            (c.Lget(), random(24), False),
            (c.Prxy(RelayLocation((Host.parse("relay.example"),), "", random(32))), b"", False),
            (c.Pfwd(18, box_key, b"x"), random(24), False),
        ],
        Role.NOTIFIER: [(c.Nsub(), random(24), True), (c.Nsubs(), random(24), True)],
        Role.PROXY: [(c.Rfwd(b"x"), b"", False)],
    }
    for party, commands in parties.items():
        for command, entity_id, signed in commands:
            answer = person.ask(command, entity_id, private if signed else None)
            assert (answer == errors.PROHIBITED) is (party is not role), (role, command)
    assert person.ask(c.Ping()) == m.Pong()
    assert relay.counters.subscriptions_auth == (1 if role is Role.MESSAGING else 0)


def test_the_role_is_looked_at_before_the_signature(service: Person) -> None:
    """smp-wire.md §9.3, 6."""
    answer = service.ask(c.Sub(), random(24), key(), by_service=False)
    assert answer == errors.PROHIBITED


def test_162_nsub_needs_the_services_signature(service: Person, subscriber: Subscriber) -> None:
    assert subscriber.nsub(service, by_service=False) == errors.SERVICE
    service_key, service.service_key = service.service_key, key()
    assert subscriber.nsub(service) == errors.SERVICE
    service.service_key = service_key
    for _ in range(2):
        assert subscriber.nsub(service) == m.Sok(service.service_id)


def test_163_what_each_key_signs(service: Person, subscriber: Subscriber) -> None:
    """smp-wire.md §9.1: the entity's key the fingerprint too, the service's key not."""
    assert service.service is not None
    fingerprint = service.service.fingerprint
    corr_id = random(24)
    authorized = service.framing.authorized(corr_id, subscriber.notifier_id, b"NSUB")

    def answer(by_entity: bytes, by_service: bytes) -> m.Message | Error:
        sent = service.framing.transmission(
            authorized, subscriber.private.sign(by_entity), service.service_key.sign(by_service)
        )
        outcome = service.batch([sent])
        (one,) = service.received([*outcome.refused, *outcome.answers])
        return one

    assert answer(authorized, authorized) == errors.AUTH
    assert answer(fingerprint + authorized, fingerprint + authorized) == errors.SERVICE
    assert answer(fingerprint + authorized, authorized) == m.Sok(service.service_id)


@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519])
def test_new_and_sub_of_a_messaging_service(algorithm: Algorithm) -> None:
    relay = new_relay()
    person = Person(relay, service=Role.MESSAGING)
    recipient = new_queue(person, algorithm=algorithm)
    assert recipient.ids.service_id == person.service_id
    unsigned = person.ask(c.Sub(), recipient.recipient_id, recipient.private, by_service=False)
    assert unsigned == errors.SERVICE
    recipient.send(Person(relay))
    assert recipient.ask(c.Sub()) == m.Sok(person.service_id)
    assert recipient.body(recipient.event()) == b"hello"
    assert relay.counters.subscriptions_auth == 0


def test_commands_without_a_service_signature_refuse_one(recipient: Recipient) -> None:
    """§3, 2: in any session."""
    service = Person(recipient.person.relay, service=Role.MESSAGING)
    for person in (recipient.person, service):
        for command in (c.Get(), c.Que(), c.Ack(random(24)), c.Off(), c.Del()):
            answer = person.ask(command, recipient.recipient_id, recipient.private, by_service=True)
            assert answer == errors.SERVICE, command
    assert isinstance(recipient.ask(c.Que()), m.Info)


def test_151_an_ordinary_session_has_no_service_signature(
    recipient: Recipient, subscriber: Subscriber
) -> None:
    person = recipient.person
    assert subscriber.nsub(person, by_service=True) == errors.SERVICE
    sub = person.ask(c.Sub(), recipient.recipient_id, recipient.private, by_service=True)
    assert sub == errors.SERVICE
    new = c.New(recipient.private.public, key(Algorithm.X25519).public)
    assert person.ask(new, b"", recipient.private, by_service=True) == errors.SERVICE
    assert person.relay.store.queue_count() == 1


def test_168_subs(recipient: Recipient) -> None:
    """Receiving services are not there yet."""
    relay = recipient.person.relay
    ordinary = Person(relay)
    assert ordinary.ask(c.Subs(), random(24), ordinary.service_key) == errors.SERVICE
    service = Person(relay, service=Role.MESSAGING)
    for entity_id, private, by_service, answer in (
        (service.service_id, service.service_key, False, errors.PROHIBITED),
        (service.service_id, service.service_key, True, errors.SERVICE),
        (service.service_id, key(), False, errors.SERVICE),
        (service.service_id, key(Algorithm.X25519), False, errors.SERVICE),
        (random(24), service.service_key, False, errors.SERVICE),
    ):
        assert service.ask(c.Subs(), entity_id, private, by_service=by_service) == answer


def test_nsubs_is_signed_by_the_sessions_key_alone(service: Person) -> None:
    """§3, 3."""
    assert nsubs(service, by_service=True) == errors.SERVICE
    assert nsubs(service, random(24)) == errors.SERVICE
    for algorithm in (Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519):
        answer = service.ask(c.Nsubs(), service.service_id, key(algorithm))
        assert answer == errors.SERVICE
    ordinary = Person(service.relay)
    assert ordinary.ask(c.Nsubs(), service.service_id, ordinary.service_key) == errors.SERVICE
    assert nsubs(service) == m.Soks(0)
    assert service.relay.counters.notifier_subscriptions_auth == 0


# -- subscribing to notifiers


def test_a_service_is_sent_the_notifications(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    assert subscriber.nsub(service) == m.Sok(service.service_id)
    assert notify(recipient, service) == 1
    assert subscriber.nsub(service) == m.Sok(service.service_id)
    assert notify(recipient, service) == 1
    assert events_of(service) == []
    counters = service.relay.counters
    assert counters.notifier_subscriptions == 1
    assert counters.notifier_subscriptions_duplicate == 1


def test_164_a_second_session_takes_over(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    second = same_service(service)
    assert second.service_id == service.service_id
    assert subscriber.nsub(service) == m.Sok(service.service_id)
    assert subscriber.nsub(second) == m.Sok(service.service_id)
    assert events_of(service) == [(service.service_id, m.Ends(1))]
    assert notify(recipient, second) == 1
    assert service.events == []
    assert subscriber.nsub(service) == m.Sok(service.service_id)
    assert events_of(second) == [(service.service_id, m.Ends(1))]
    assert subscriber.nsub(second) == m.Sok(service.service_id)
    assert events_of(service) == [(service.service_id, m.Ends(1))]


def test_165_a_deleted_notifier_is_told_to_the_service(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    subscriber.nsub(service)
    assert recipient.ask(c.Ndel()) == m.Ok()
    assert events_of(service) == [(subscriber.notifier_id, m.Deld())]
    assert service.relay.store.notifier_count(service.service_id) == 0


@pytest.mark.parametrize("command", ["NKEY", "DEL"])
def test_a_replaced_or_lost_notifier_is_told_to_the_service(
    recipient: Recipient, service: Person, subscriber: Subscriber, command: str
) -> None:
    """§7.2."""
    subscriber.nsub(service)
    if command == "DEL":
        assert recipient.ask(c.Del()) == m.Ok()
    else:
        new_notifier(recipient)
    assert events_of(service) == [(subscriber.notifier_id, m.Deld())]
    assert nsubs(service) == m.Soks(0)


def test_166_nsubs_takes_over_everything(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    ((other, other_subscriber),) = more_notifiers(recipient, 1)
    assert subscriber.nsub(service) == m.Sok(service.service_id)
    assert other_subscriber.nsub(service) == m.Sok(service.service_id)
    second = same_service(service)
    assert nsubs(second) == m.Soks(2)
    assert events_of(service) == [(service.service_id, m.Ends(2))]
    assert nsubs(second) == m.Soks(2)
    assert (notify(recipient, second), notify(other, second)) == (1, 1)
    assert service.events == []
    assert events_of(second) == []


def test_nsubs_after_the_first_session_left(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    subscriber.nsub(service)
    service.leave()
    recipient.send(Person(service.relay), notify=True)
    second = same_service(service)
    assert nsubs(second) == m.Soks(1)
    second.relay.send_notifications()
    ((entity_id, event),) = second.all_events()
    assert entity_id == subscriber.notifier_id
    assert isinstance(event, m.Nmsg)
    assert service.events == []


def test_nsubs_again_tells_the_count_of_now(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    """§7.2."""
    assert nsubs(service) == m.Soks(0)
    subscriber.nsub(service)
    assert nsubs(service) == m.Soks(1)
    ((other, other_subscriber),) = more_notifiers(recipient, 1)
    other_subscriber.nsub(service)
    assert nsubs(service) == m.Soks(2)
    other.ask(c.Ndel())
    assert nsubs(service) == m.Soks(1)
    assert events_of(service) == [(other_subscriber.notifier_id, m.Deld())]


def test_a_session_that_was_ended_can_subscribe_again(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    assert nsubs(service) == m.Soks(0)
    subscriber.nsub(service)
    second = same_service(service)
    assert nsubs(second) == m.Soks(1)
    assert events_of(service) == [(service.service_id, m.Ends(1))]
    assert service.peer.service_notifiers == 0
    assert nsubs(service) == m.Soks(1)
    assert events_of(second) == [(service.service_id, m.Ends(1))]
    assert notify(recipient, service) == 1


def test_ends_is_not_sent_to_a_session_that_is_back(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    subscriber.nsub(service)
    second = same_service(service)
    assert nsubs(second) == m.Soks(1)
    assert nsubs(service) == m.Soks(1)
    assert events_of(service) == []
    assert second.all_events() == [(service.service_id, m.Ends(1))]


# -- services and direct subscriptions


def test_a_service_takes_over_from_a_connection(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    direct = Person(service.relay)
    assert subscriber.nsub(direct) == m.Sok()
    assert subscriber.nsub(service) == m.Sok(service.service_id)
    assert events_of(direct) == [(subscriber.notifier_id, m.End())]
    assert notify(recipient, service) == 1
    assert direct.events == []
    assert direct.peer.notifier_ids == set()


def test_a_connection_takes_over_from_a_service(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    """§7.2: the association goes, the service is told and counts one less."""
    ((_, other_subscriber),) = more_notifiers(recipient, 1)
    subscriber.nsub(service)
    other_subscriber.nsub(service)
    direct = Person(service.relay)
    assert subscriber.nsub(direct) == m.Sok()
    assert events_of(service) == [(subscriber.notifier_id, m.End())]
    assert service.relay.store.notifier_count(service.service_id) == 1
    assert nsubs(service) == m.Soks(1)
    assert notify(recipient, direct) == 1
    assert service.events == []


def test_a_service_takes_a_notifier_back(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    direct = Person(service.relay)
    for person in (service, direct, service):
        assert isinstance(subscriber.nsub(person), m.Sok)
    assert events_of(service) == []
    assert direct.all_events() == [(subscriber.notifier_id, m.End())]
    assert notify(recipient, service) == 1


def test_a_connection_takes_over_from_a_service_that_left(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    subscriber.nsub(service)
    service.leave()
    direct = Person(service.relay)
    assert subscriber.nsub(direct) == m.Sok()
    assert events_of(service) == []
    assert nsubs(same_service(service)) == m.Soks(0)
    assert notify(recipient, direct) == 1


def test_a_service_takes_over_from_another(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    subscriber.nsub(service)
    other = Person(service.relay, service=Role.NOTIFIER)
    assert subscriber.nsub(other) == m.Sok(other.service_id)
    assert events_of(service) == [(subscriber.notifier_id, m.End())]
    assert notify(recipient, other) == 1
    store = service.relay.store
    assert store.notifier_count(service.service_id) == 0
    assert store.notifier_count(other.service_id) == 1
    assert nsubs(service) == m.Soks(0)
    assert nsubs(other) == m.Soks(1)


def test_a_count_is_never_below_zero(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    """A session is sent END for notifiers that an earlier session subscribed to."""
    others = more_notifiers(recipient, 2)
    subscriber.nsub(service)
    for _, other_subscriber in others:
        other_subscriber.nsub(service)
    service.leave()
    second, third = same_service(service), same_service(service)
    subscriber.nsub(second)
    direct = Person(service.relay)
    subscriber.nsub(direct)
    others[0][1].nsub(direct)
    others[1][0].ask(c.Ndel())
    assert {entity_id for entity_id, _ in events_of(second)} == {
        subscriber.notifier_id,
        others[0][1].notifier_id,
        others[1][1].notifier_id,
    }
    assert nsubs(third) == m.Soks(0)
    assert events_of(second) == [(service.service_id, m.Ends(0))]


def test_a_full_service_gets_its_notifications_later(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    subscriber.nsub(service)
    service.full = True
    assert notify(recipient, service) == 0
    service.full = False
    assert notify(recipient, service) == 2


def test_a_former_session_that_leaves_ends_nothing(
    recipient: Recipient, service: Person, subscriber: Subscriber
) -> None:
    second = same_service(service)
    subscriber.nsub(service)
    subscriber.nsub(second)
    service.leave()
    assert notify(recipient, second) == 1
