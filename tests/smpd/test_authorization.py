"""Who made a transmission, and in which time (docs/spec/smp-server.md §3; smp-wire.md §9.1)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from smpd import authorization
from smpd.authorization import authorized_by
from smpd.relay import Relay
from tests.smpd.people import Person, Recipient, key, new_notifier, new_queue, new_relay, random
from txsimplex.boxes import BoxKey, verify_authenticator
from txsimplex.keys import Algorithm, PrivateKey, PublicKey, verify
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.commands import QueueMode
from txsimplex.smp.transmissions import Transmission, frame

ALGORITHMS = [Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519]


def read(person: Person, sent: bytes) -> Transmission:
    """A transmission as the relay reads it."""
    (transmission,) = person.framing.read_commands(frame([sent]))
    assert isinstance(transmission, Transmission)
    return transmission


def secured_queue(person: Person, algorithm: Algorithm) -> tuple[Recipient, PrivateKey]:
    """A queue whose recipient and sender have keys of `algorithm`, and the sender's."""
    recipient, private = new_queue(person, algorithm=algorithm), key(algorithm)
    assert recipient.ask(c.Key(private.public)) == m.Ok()
    return recipient, private


# -- one transmission


@pytest.mark.parametrize("version", [6, 7, 15, 16, 18])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_right_key(algorithm: Algorithm, version: int) -> None:
    person, private = Person(new_relay(), version), key(algorithm)
    others = [key(one).public for one in (*ALGORITHMS, algorithm)]
    t = read(person, person.transmission(c.Sub(), random(24), private))
    assert authorized_by(person.peer, t, [private.public])
    assert authorized_by(person.peer, t, [*others, private.public])
    assert authorized_by(person.peer, t, [private.public, *others])
    assert not authorized_by(person.peer, t, others)
    assert not authorized_by(person.peer, t, [])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_everything_is_authorised(algorithm: Algorithm) -> None:
    """smp-wire.md §9.1: session, correlation id, entity and command."""
    person, private = Person(new_relay()), key(algorithm)
    t = read(person, person.transmission(c.Ack(b"abc"), random(24), private))
    other_corr_id = random(24)
    changed = [
        t.authorized[:-1] + bytes((t.authorized[-1] ^ 1,)),
        t.authorized + b"\0",
        t.authorized.replace(t.corr_id, other_corr_id),
        t.authorized.replace(t.entity_id, random(24)),
        t.authorized.replace(person.session_id, random(32)),
    ]
    for authorized in changed:
        assert authorized != t.authorized
        forged = Transmission(
            other_corr_id if other_corr_id in authorized else t.corr_id,
            t.entity_id,
            t.header,
            t.command,
            t.authenticator,
            None,
            authorized,
        )
        assert not authorized_by(person.peer, forged, [private.public])
    assert authorized_by(person.peer, t, [private.public])


@pytest.mark.parametrize("size", [0, 1, 63, 65, 79, 81, 113, 115, 255])
def test_an_authenticator_of_no_known_size(size: int) -> None:
    person, private = Person(new_relay()), key()
    t = read(person, person.transmission(c.Sub(), random(24), private))
    t.authenticator = bytes(size)
    assert not authorized_by(person.peer, t, [private.public])


@pytest.mark.parametrize("corr_id", [b"", b"short", b"\xff" * 255])
def test_correlation_ids_of_any_length_make_a_nonce(corr_id: bytes) -> None:
    person, private = Person(new_relay()), key(Algorithm.X25519)
    for _ in range(2):
        t = read(person, person.transmission(c.Sub(), random(24), private, corr_id))
        assert authorized_by(person.peer, t, [private.public])
        assert not authorized_by(person.peer, t, [key(Algorithm.X25519).public])


def test_x25519_needs_the_relays_key() -> None:
    """§3: a client without ALPN was not shown any."""
    relay = new_relay()
    person = Person(relay, 6)
    recipient = new_queue(person, algorithm=Algorithm.X25519)
    shown = person.peer.session_key
    person.peer.session_key = None
    assert recipient.ask(c.Sub()) == errors.AUTH
    assert person.ask(c.Sub(), random(24), recipient.private) == errors.AUTH
    person.peer.session_key = shown
    assert recipient.ask(c.Sub()) == m.Ok()


def test_another_sessions_key_is_no_good() -> None:
    relay = new_relay()
    person, other = Person(relay), Person(relay)
    recipient = new_queue(person, algorithm=Algorithm.X25519)
    assert recipient.ask(c.Sub(), other) == m.Sok()
    sent = other.ask(
        c.Sub(), recipient.recipient_id, recipient.private, session_key=person.session_key
    )
    assert sent == errors.AUTH


# -- DH secrets that are kept


def test_only_secrets_that_were_right_are_kept() -> None:
    """Otherwise the second try would tell by its time that the queue exists."""
    relay = new_relay()
    person = Person(relay)
    recipient, private = secured_queue(person, Algorithm.X25519)
    stranger = Person(relay)
    for wrong in (key(Algorithm.X25519), key()):
        assert recipient.send(stranger, private=wrong) == errors.AUTH
        assert stranger.ask(c.Sub(), recipient.recipient_id, wrong) == errors.AUTH
        assert stranger.ask(c.Sub(), random(24), wrong) == errors.AUTH
    assert stranger.peer.secrets == {}
    assert recipient.send(stranger, private=private) == m.Ok()
    assert list(stranger.peer.secrets) == [private.public.raw]


def test_a_kept_secret_still_checks() -> None:
    person = Person(new_relay())
    recipient, private = secured_queue(person, Algorithm.X25519)
    assert recipient.send(person, private=private) == m.Ok()
    right = person.transmission(c.Send(False, b"hello"), recipient.sender_id, private)
    outcome = person.batch([right[:5] + bytes((right[5] ^ 1,)) + right[6:]])
    assert person.received(outcome.refused) == [errors.AUTH]
    assert person.received(person.batch([right]).answers) == [m.Ok()]


def test_secrets_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorization, "_SECRETS_KEPT", 4)
    person = Person(new_relay())
    recipients = [new_queue(person, algorithm=Algorithm.X25519) for _ in range(10)]
    for recipient in (*recipients, *recipients):
        assert recipient.ask(c.Sub()) == m.Sok()
        assert len(person.peer.secrets) <= 4


# -- the table of §3, where other tests do not look


def test_nsub_of_a_queue_without_notifier() -> None:
    person = Person(new_relay())
    recipient = new_queue(person)
    subscriber = new_notifier(recipient)
    assert recipient.ask(c.Ndel()) == m.Ok()
    assert subscriber.nsub(person) == errors.AUTH


def test_refusals_are_counted() -> None:
    """§3: of SEND, SUB, NSUB and GET."""
    person = Person(new_relay())
    recipient = new_queue(person)
    subscriber = new_notifier(recipient)
    counters = person.relay.counters
    for entity_id in (recipient.recipient_id, random(24)):
        for command in (c.Sub(), c.Get(), c.Que(), c.Off(), c.Del(), c.Ack(b"")):
            assert person.ask(command, entity_id, key()) == errors.AUTH
    for entity_id in (subscriber.notifier_id, random(24)):
        assert person.ask(c.Nsub(), entity_id, key()) == errors.AUTH
    for private in (key(), None):
        assert person.ask(c.Send(False, b""), random(24), private) == errors.AUTH
    assert person.ask(c.Skey(key().public), recipient.sender_id, key()) == errors.AUTH
    assert counters.subscriptions_auth == 2
    assert counters.messages_got_auth == 2
    assert counters.notifier_subscriptions_auth == 2
    assert counters.messages_sent_auth == 2


# -- as long as for a queue that is not there


@dataclass
class Work:
    """What was done to verify."""

    exchanges: int = 0
    boxes: int = 0
    signatures: int = 0
    authenticators: int = 0

    def taken(self) -> Work:
        """What was done since it was last asked."""
        done = replace(self)
        self.exchanges = self.boxes = self.signatures = self.authenticators = 0
        return done


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts what is dear in verification."""
    done = Work()
    exchange = PrivateKey.exchange

    def counted_verify(public: PublicKey, message: bytes, signature: bytes) -> bool:
        done.signatures += len(signature)
        return verify(public, message, signature)

    def counted_authenticator(box: BoxKey, corr_id: bytes, message: bytes, given: bytes) -> bool:
        done.authenticators += 1
        return verify_authenticator(box, corr_id, message, given)

    def counted_exchange(private: PrivateKey, public: PublicKey) -> bytes:
        done.exchanges += 1
        return exchange(private, public)

    class CountedBoxKey(BoxKey):
        def __init__(self, secret: bytes) -> None:
            done.boxes += 1
            super().__init__(secret)

    monkeypatch.setattr(authorization, "verify", counted_verify)
    monkeypatch.setattr(authorization, "verify_authenticator", counted_authenticator)
    monkeypatch.setattr(authorization, "BoxKey", CountedBoxKey)
    monkeypatch.setattr(PrivateKey, "exchange", counted_exchange)
    return done


@dataclass
class Case:
    """A command that is refused for a queue that exists, and for one that does not."""

    relay: Relay
    person: Person
    there: Transmission
    missing: Transmission

    @classmethod
    def of(cls, command: str, queue: Algorithm, authenticator: Algorithm) -> Case:
        """A queue with a key of one algorithm, a command signed with one of another."""
        relay = new_relay()
        owner, person = Person(relay), Person(relay)
        private, there, missing = key(authenticator), b"", random(24)
        asked: c.Command
        if command in ("SEND", "SEND unsecured"):
            asked = c.Send(False, b"hello")
            recipient = new_queue(owner, algorithm=queue)
            if command == "SEND":
                assert recipient.ask(c.Key(key(queue).public)) == m.Ok()
            there = recipient.sender_id
        elif command in ("SKEY", "SKEY contact"):
            asked = c.Skey(private.public)
            mode = QueueMode.CONTACT if command == "SKEY contact" else QueueMode.MESSAGING
            recipient = new_queue(owner, mode)
            assert recipient.ask(c.Key(key(queue).public)) == m.Ok()
            there = recipient.sender_id
        elif command == "LKEY":
            asked = c.Lkey(private.public)
            recipient = new_queue(owner)
            there = random(24)
            assert recipient.ask(c.Lset(there, c.LinkData(b"", b""))) == m.Ok()
            assert recipient.ask(c.Key(key(queue).public)) == m.Ok()
        elif command == "NSUB":
            asked = c.Nsub()
            recipient = new_queue(owner)
            notifier = key(queue)
            nid = recipient.ask(c.Nkey(notifier.public, key(Algorithm.X25519).public))
            assert isinstance(nid, m.Nid)
            there = nid.notifier_id
        else:
            asked = c.Sub()
            there = new_queue(owner, algorithm=queue).recipient_id
        corr_id = random(24)
        sent = [
            person.transmission(asked, entity_id, private, corr_id)
            for entity_id in (there, missing)
        ]
        return cls(relay, person, *(read(person, one) for one in sent))

    def refuse(self, transmission: Transmission) -> None:
        """Has it refused."""
        self.relay.process(self.person.peer, (transmission,))

    def is_refused(self, transmission: Transmission) -> bool:
        """Whether it is."""
        outcome = self.relay.process(self.person.peer, (transmission,))
        return self.person.received(outcome.refused) == [errors.AUTH]


PAIRS = [(queue, used) for queue in ALGORITHMS for used in ALGORITHMS]
COMMANDS = ["SUB", "SEND", "SEND unsecured", "SKEY", "SKEY contact", "LKEY", "NSUB"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("queue", "used"), PAIRS, ids=[f"{queue.name}-{used.name}" for queue, used in PAIRS]
)
def test_a_missing_queue_costs_the_same_verification(
    work: Work, command: str, queue: Algorithm, used: Algorithm
) -> None:
    case = Case.of(command, queue, used)
    done = []
    work.taken()
    for transmission in (case.there, case.missing, case.there, case.missing):
        assert case.is_refused(transmission)
        done.append(work.taken())
    expected = (
        Work(1, 1, 0, 1) if used is Algorithm.X25519 else Work(signatures=used.signature_size)
    )
    assert done == [expected] * 4


def test_a_message_without_authenticator_costs_nothing(work: Work) -> None:
    """§3: no verification, queue or no queue."""
    person = Person(new_relay())
    recipient, _ = secured_queue(person, Algorithm.X25519)
    sent = [
        read(person, person.transmission(c.Send(False, b""), entity_id))
        for entity_id in (recipient.sender_id, random(24))
    ]
    work.taken()
    for one in sent:
        outcome = person.relay.process(person.peer, (one,))
        assert person.received(outcome.refused) == [errors.AUTH]
    assert work == Work()


TOLERANCE = 0.3
ROUNDS = 80


def thread_times(calls: list[Callable[[], None]], rounds: int) -> Iterator[list[int]]:
    """CPU time of each call in nanoseconds, one after the other, again and again."""
    for _ in range(rounds):
        times = []
        for call in calls:
            start = time.thread_time_ns()
            call()
            times.append(time.thread_time_ns() - start)
        yield times


def difference(case: Case) -> float:
    """How much longer one takes than the other, by medians."""
    calls = [lambda: case.refuse(case.there), lambda: case.refuse(case.missing)]
    for _ in thread_times(calls, 3):
        pass
    times = list(thread_times(calls, ROUNDS))
    there, missing = (statistics.median(column) for column in zip(*times, strict=True))
    return float(abs(there - missing) / min(there, missing))


@pytest.mark.parametrize("command", ["SUB", "SEND"])
@pytest.mark.parametrize(
    ("queue", "used"), PAIRS, ids=[f"{queue.name}-{used.name}" for queue, used in PAIRS]
)
def test_205_a_missing_queue_takes_as_long(command: str, queue: Algorithm, used: Algorithm) -> None:
    case = Case.of(command, queue, used)
    assert case.is_refused(case.there)
    assert case.is_refused(case.missing)
    # Once again, since other work on the machine disturbs caches and clock rate.
    assert difference(case) < TOLERANCE or difference(case) < TOLERANCE


def test_205_the_measure_notices_what_is_not_verified() -> None:
    """A message without authenticator is not verified, and that shows."""
    case = Case.of("SEND", Algorithm.ED25519, Algorithm.ED25519)
    unsigned = case.person.transmission(c.Send(False, b"hello"), random(24))
    case.missing = read(case.person, unsigned)
    assert difference(case) > TOLERANCE
