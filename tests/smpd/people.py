"""A relay without sockets, and connections to it, for tests of its rules."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from smpd.peers import Peer, PeerService
from smpd.relay import Outcome, Relay
from smpd.rules import Rules
from smpd.stores.interface import Store
from smpd.stores.memory import MemoryStore
from txsimplex.boxes import BoxKey, authenticator
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp import commands as c
from txsimplex.smp import messages as m
from txsimplex.smp.errors import Error
from txsimplex.smp.transmissions import Framing, Received, frame

_seeds = itertools.count(1)


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


class Person:
    """A client's connection: signs commands, keeps what the relay sends."""

    def __init__(
        self, relay: Relay, version: int = 18, service: c.Role | None = None
    ) -> None:
        self.relay = relay
        self.session_id = random(32)
        self.framing = Framing(version, self.session_id)
        self.version = version
        self.session_key = key(Algorithm.X25519)
        self.full = False
        self.events: list[Received] = []
        self.service_key = key()
        known = None
        if service is not None:
            fingerprint = random(32)
            record = relay.service(service, (b"leaf",), fingerprint)
            known = PeerService(
                record.service_id, service, fingerprint, self.service_key.public
            )
        self.service = known
        self.peer = Peer(self.framing, self.session_key, self, known, has_client_key=True)

    # -- what the relay calls

    def send(self, transmissions: Sequence[bytes]) -> None:
        """Takes what no command asked for."""
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
    ) -> bytes:
        """A signed transmission; `by_service` signs for the service as well."""
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
                box = BoxKey(private.exchange(self.session_key.public))
                proof = authenticator(box, corr_id, signed)
            else:
                proof = private.sign(signed)
        signature = self.service_key.sign(authorized) if by_service else None
        return self.framing.transmission(authorized, proof, signature)

    def batch(self, transmissions: Sequence[bytes]) -> Outcome:
        """The relay's outcome for a block."""
        return self.relay.process(
            self.peer, self.framing.read_commands(frame(transmissions))
        )

    def received(self, answers: Sequence[bytes]) -> list[m.Message | Error]:
        """Answers as the client reads them."""
        return [self.framing.read_messages(frame([one]))[0].message for one in answers]

    def ask(
        self,
        command: c.Command,
        entity_id: bytes = b"",
        private: PrivateKey | None = None,
        **options: object,
    ) -> m.Message | Error:
        """The answer to one command; MSG that follows from SUB is in `events`."""
        outcome = self.batch([self.transmission(command, entity_id, private, **options)])  # type: ignore[arg-type]
        self.send(outcome.messages)
        (answer,) = self.received([*outcome.refused, *outcome.answers])
        return answer.error if isinstance(answer, m.Err) else answer

    def next_event(self) -> Received:
        """The oldest event that was not looked at yet."""
        return self.events.pop(0)


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


def new_relay(store: Store | None = None, clock: Clock | None = None, **rules: object) -> Relay:
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
    notifier: tuple[PublicKey, PublicKey] | None = None,
) -> Recipient:
    """A queue of `person`."""
    private, dh = key(algorithm), key(Algorithm.X25519)
    new = c.New(private.public, dh.public, None, subscribe)
    new.request = None if mode is None else c.QueueRequest(mode)
    if notifier is not None:
        new.notifier = c.NotifierRequest(*notifier)
    ids = person.ask(new, b"", private)
    assert isinstance(ids, m.Ids), ids
    return Recipient(person, private, dh, ids)
