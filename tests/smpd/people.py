"""A relay without sockets, and connections to it, for tests of its rules."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from smpd.peers import Peer, PeerService
from smpd.relay import Outcome, Relay
from smpd.rules import Rules
from smpd.stores.interface import Store
from smpd.stores.memory import MemoryStore
from txsimplex.boxes import BoxKey, authenticator
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp import commands as c, messages as m
from txsimplex.smp.bodies import MessageBody, QuotaBody, open_body, open_meta
from txsimplex.smp.errors import Error
from txsimplex.smp.transmissions import Framing, Received, frame

ID_SIZE = 24

_seeds = itertools.count(1)
_M = TypeVar("_M", bound=m.Message)


def random(size: int) -> bytes:
    """Bytes that never come twice."""
    return next(_seeds).to_bytes(8, "big").rjust(size, b"\x5a")[-size:]


def key(algorithm: Algorithm = Algorithm.ED25519) -> PrivateKey:
    """A new private key."""
    return PrivateKey.generate(algorithm, random)


@dataclass
class Clock:
    """A time that a test sets, in seconds since 1970."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class ScriptedRandom:
    """Random bytes of which ids come from a script while it lasts."""

    def __init__(self) -> None:
        self.ids: list[bytes] = []

    def __call__(self, size: int) -> bytes:
        return self.ids.pop(0) if size == ID_SIZE and self.ids else random(size)


class Person:
    """A client's connection: signs commands, keeps what the relay sends.

    With `service`, a session of a service of that role; a second one of the same
    service is given the `fingerprint` of the first.
    """

    def __init__(
        self,
        relay: Relay,
        version: int = 18,
        service: c.Role | None = None,
        fingerprint: bytes | None = None,
    ) -> None:
        self.relay = relay
        self.session_id = random(32)
        self.framing = Framing(version, self.session_id)
        self.version = version
        self.session_key = key(Algorithm.X25519)
        self.full = False
        self.room: int | None = None
        """How many more transmissions come before it is full; None for any number."""
        self.events: list[Received] = []
        self.batches: list[int] = []
        """How many transmissions came together each time."""
        self.service_key = key()
        self.fingerprint = random(32) if fingerprint is None else fingerprint
        known = None
        if service is not None:
            record = relay.service(service, (b"leaf",), self.fingerprint)
            known = PeerService(
                record.service_id, service, self.fingerprint, self.service_key.public
            )
        self.service = known
        self.secret = random(32)
        self.peer = Peer(self.framing, self.session_key, self, known, secret=self.secret)

    @property
    def service_id(self) -> bytes:
        """The id of the service of this connection."""
        assert self.service is not None
        return self.service.service_id

    # -- what the relay calls

    def send(self, transmissions: Sequence[bytes]) -> None:
        """Takes what no command asked for."""
        self.batches.append(len(transmissions))
        if self.room is not None:
            self.room -= len(transmissions)
            self.full = self.room <= 0
        self._keep(transmissions)

    def send_parts(self, parts: Sequence[bytes]) -> None:
        """Takes one such transmission."""
        self.send((b"".join(parts),))

    def _keep(self, transmissions: Sequence[bytes]) -> None:
        for transmission in transmissions:
            self.events += self.framing.read_messages(frame([transmission]))

    # -- what tests call

    def transmission(
        self,
        command: c.Command,
        entity_id: bytes = b"",
        private: PrivateKey | None = None,
        corr_id: bytes | None = None,
        by_service: bool | None = None,
        session_key: PrivateKey | None = None,
    ) -> bytes:
        """A signed transmission.

        `by_service` signs for the service as well, which sessions of services do
        by themselves where the protocol asks for it; `session_key` is what the
        client takes for the relay's key.
        """
        corr_id = random(24) if corr_id is None else corr_id
        authorized = self.framing.authorized(corr_id, entity_id, command.encode(self.version))
        if by_service is None:
            by_service = self.service is not None and command.service_signed
        signed = authorized
        if by_service and self.service is not None:
            signed = self.service.fingerprint + authorized
        proof = b""
        if private is not None:
            if private.algorithm is Algorithm.X25519:
                shown = self.session_key if session_key is None else session_key
                box = BoxKey(private.exchange(shown.public))
                proof = authenticator(box, corr_id, signed)
            else:
                proof = private.sign(signed)
        signature = self.service_key.sign(authorized) if by_service else None
        return self.framing.transmission(authorized, proof, signature)

    def batch(self, transmissions: Sequence[bytes]) -> Outcome:
        """The relay's outcome for a block."""
        items = self.framing.read_commands(frame(transmissions))
        return self.relay.process(self.peer, self.relay.open_forwarded(self.peer, items))

    def received(self, answers: Sequence[bytes]) -> list[m.Message | Error]:
        """Answers as the client reads them; of ERR the error alone."""
        messages = (self.framing.read_messages(frame([one]))[0].message for one in answers)
        return [one.error if isinstance(one, m.Err) else one for one in messages]

    def ask(
        self,
        command: c.Command,
        entity_id: bytes = b"",
        private: PrivateKey | None = None,
        corr_id: bytes | None = None,
        by_service: bool | None = None,
        session_key: PrivateKey | None = None,
    ) -> m.Message | Error:
        """The answer to one command; MSG that follows from SUB is in `events`.

        Every answer repeats the correlation id and the entity id of its command
        (smp-server.md §4).
        """
        corr_id = random(24) if corr_id is None else corr_id
        sent = self.transmission(command, entity_id, private, corr_id, by_service, session_key)
        outcome = self.batch([sent])
        self._keep(outcome.messages)
        (answer,) = [*outcome.refused, *outcome.answers]
        (received,) = self.framing.read_messages(frame([answer]))
        assert (received.corr_id, received.entity_id) == (corr_id, entity_id)
        message = received.message
        assert isinstance(message, m.Message), message
        return message.error if isinstance(message, m.Err) else message

    def subscribe_to_notifier(
        self, notifier_id: bytes, private: PrivateKey, by_service: bool | None = None
    ) -> m.Message | Error:
        """The answer to NSUB."""
        return self.ask(c.Nsub(), notifier_id, private, by_service=by_service)

    def all_events(self) -> list[tuple[bytes, m.Message | Error]]:
        """Entity id and message of every event that was not looked at yet."""
        events, self.events = self.events, []
        assert {event.corr_id for event in events} <= {b""}
        return [
            (one.entity_id, one.message.error if isinstance(one.message, m.Err) else one.message)
            for one in events
        ]

    def leave(self) -> None:
        """Ends the connection."""
        self.relay.leave(self.peer)


@dataclass
class Recipient:
    """A recipient's keys and ids of one queue."""

    person: Person
    private: PrivateKey
    dh: PrivateKey
    ids: m.Ids
    box: BoxKey = field(init=False)

    def __post_init__(self) -> None:
        self.box = BoxKey(self.dh.exchange(self.ids.dh_key))

    @property
    def recipient_id(self) -> bytes:
        """The recipient's id of the queue."""
        return self.ids.recipient_id

    @property
    def sender_id(self) -> bytes:
        """The sender's id of the queue."""
        return self.ids.sender_id

    def ask(self, command: c.Command, person: Person | None = None) -> m.Message | Error:
        """The answer to a command of the recipient, by another connection if given."""
        return (person or self.person).ask(command, self.recipient_id, self.private)

    def transmission(self, command: c.Command, person: Person | None = None) -> bytes:
        """A command of the recipient as sent."""
        return (person or self.person).transmission(command, self.recipient_id, self.private)

    def send(
        self,
        by: Person,
        body: bytes = b"hello",
        private: PrivateKey | None = None,
        notify: bool = False,
    ) -> m.Message | Error:
        """The answer to a SEND to this queue by a connection."""
        return by.ask(c.Send(notify, body), self.sender_id, private)

    def open(self, message: m.Message | Error) -> MessageBody | QuotaBody:
        """What a MSG says."""
        assert isinstance(message, m.Msg), message
        return open_body(self.box, message.msg_id, message.body)

    def body(self, message: m.Message | Error) -> bytes:
        """The body of a MSG that is no notice."""
        opened = self.open(message)
        assert isinstance(opened, MessageBody)
        return opened.body

    def event(self, person: Person | None = None) -> m.Msg:
        """The oldest event of the recipient, which has to be a MSG of this queue (§4, §5.3)."""
        received = (person or self.person).events.pop(0)
        assert (received.corr_id, received.entity_id) == (b"", self.recipient_id)
        assert isinstance(received.message, m.Msg), received
        return received.message

    def information(self, person: Person | None = None) -> dict[str, object]:
        """The answer to QUE."""
        return expect(self.ask(c.Que(), person), m.Info).state


@dataclass
class Subscriber:
    """Keys of a notifier, and the id and box that the relay gave with it."""

    private: PrivateKey
    dh: PrivateKey
    notifier_id: bytes = b""
    box: BoxKey | None = None

    @classmethod
    def new(cls) -> Subscriber:
        """One whose notifier is not made yet."""
        return cls(key(), key(Algorithm.X25519))

    @property
    def request(self) -> tuple[PublicKey, PublicKey]:
        """What NEW and NKEY are given."""
        return self.private.public, self.dh.public

    def known_as(self, notifier_id: bytes, dh_key: PublicKey) -> Subscriber:
        """The same, with what the relay answered."""
        self.notifier_id = notifier_id
        self.box = BoxKey(self.dh.exchange(dh_key))
        return self

    def nsub(self, person: Person, by_service: bool | None = None) -> m.Message | Error:
        """The answer to NSUB by a connection."""
        return person.subscribe_to_notifier(self.notifier_id, self.private, by_service)

    def meta(self, message: m.Message | Error) -> tuple[bytes, int]:
        """Id and time of the message that an NMSG announces."""
        assert isinstance(message, m.Nmsg), message
        assert self.box is not None
        return open_meta(self.box, message.nonce, message.meta)


def expect(answer: m.Message | Error, kind: type[_M]) -> _M:
    """The answer, which has to be of that kind."""
    assert isinstance(answer, kind), answer
    return answer


def new_notifier(recipient: Recipient, person: Person | None = None) -> Subscriber:
    """A notifier of a queue, made by NKEY."""
    subscriber = Subscriber.new()
    nid = expect(recipient.ask(c.Nkey(*subscriber.request), person), m.Nid)
    return subscriber.known_as(nid.notifier_id, nid.dh_key)


def new_relay(
    store: Store | None = None,
    clock: Clock | None = None,
    random: Callable[[int], bytes] = random,
    **rules: object,
) -> Relay:
    """A relay with nothing in it."""
    return Relay(
        MemoryStore() if store is None else store,
        Rules(**rules),  # type: ignore[arg-type]
        clock or Clock(),
        random,
    )


def new_queue(
    person: Person,
    mode: c.QueueMode | None = c.QueueMode.MESSAGING,
    subscribe: bool = True,
    algorithm: Algorithm = Algorithm.ED25519,
    notifier: Subscriber | None = None,
    link: c.LinkRequest | None = None,
    corr_id: bytes | None = None,
) -> Recipient:
    """A queue of `person`."""
    private, dh = key(algorithm), key(Algorithm.X25519)
    new = c.New(private.public, dh.public, None, subscribe)
    new.request = None if mode is None else c.QueueRequest(mode, link)
    if notifier is not None:
        new.notifier = c.NotifierRequest(*notifier.request)
    ids = expect(person.ask(new, b"", private, corr_id), m.Ids)
    if notifier is not None:
        assert ids.notifier is not None
        notifier.known_as(ids.notifier.notifier_id, ids.notifier.dh_key)
    return Recipient(person, private, dh, ids)
