"""No repr shows a secret, or who somebody is: what is printed may end up in a log."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from smpd.peers import Peer, PeerService, Subscription
from smpd.queues import Link, Message, Messages, Notifier, Queue
from smpd.relay import Outcome
from smpd.rules import Rules
from smpd.stores.interface import Collision, Notification, Service
from smpd.stores.memory import MemoryStore
from tests.smpd.people import Person, key, new_queue, new_relay, random
from tests.smpd.stores.records import new_queue as new_record, notifier
from txsimplex.boxes import BoxKey
from txsimplex.keys import Algorithm
from txsimplex.smp.commands import LinkData, QueueMode, Role


def secrets_of(record: object) -> Iterator[bytes]:
    """Every byte string in a record and in the records inside it."""
    if isinstance(record, bytes):
        if len(record) > 3:
            yield record
    elif isinstance(record, (list, tuple)):
        for one in record:
            yield from secrets_of(one)
    elif dataclasses.is_dataclass(record):
        for field in dataclasses.fields(record):
            yield from secrets_of(getattr(record, field.name))
    elif hasattr(record, "raw"):
        yield record.raw


def records() -> list[object]:
    """One of each, filled with random bytes."""
    person = Person(new_relay(), service=Role.MESSAGING)
    notifier = Notifier(random(24), key().public, random(32), random(24))
    link = Link(random(24), LinkData(random(40), random(40)))
    message = Message(random(24), 1_700_000_000, True, random(100))
    queue = Queue(
        recipient_id=random(24),
        recipient_keys=[key().public, key(Algorithm.X25519).public],
        secret=random(32),
        sender_id=random(24),
        mode=QueueMode.MESSAGING,
        sender_key=key(Algorithm.ED448).public,
        link=link,
        notifier=notifier,
        service_id=random(24),
        messages=Messages([message]),
    )
    assert isinstance(queue.box, BoxKey)
    return [
        Rules(password=b"correct horse"),
        message,
        notifier,
        link,
        queue,
        queue.messages,
        Service(random(24), Role.NOTIFIER, (random(300), random(300)), random(32), 0),
        Notification(1_700_000_000, random(24), random(144)),
        PeerService(random(24), Role.NOTIFIER, random(32), key().public),
        Subscription(person.peer, delivered=random(24)),
        Outcome([random(100)], [random(100)], [random(100)]),
    ]


def forms(secret: bytes) -> Iterator[str]:
    """How bytes could appear in a text."""
    yield repr(secret)[2:-1]
    yield secret.hex()
    yield str(list(secret))[1:-1]


@pytest.mark.parametrize("record", records(), ids=lambda record: type(record).__name__)
def test_no_repr_shows_bytes(record: object) -> None:
    secrets = list(secrets_of(record))
    assert secrets
    for text in (repr(record), str(record), f"{[record]}"):
        for secret in secrets:
            for form in forms(secret):
                assert form not in text


def test_a_peer_shows_its_version_only() -> None:
    person = Person(new_relay(), 17, Role.MESSAGING)
    new_queue(person, algorithm=Algorithm.X25519)
    peer: Peer = person.peer
    assert peer.secrets
    assert repr(peer) == "<Peer of version 17>"


def test_a_collision_names_no_id() -> None:
    store = MemoryStore()
    queue = new_record(notifier=notifier())
    store.add(queue)
    assert queue.notifier is not None
    with pytest.raises(Collision, match=r"^$"):
        store.add(queue)
    with pytest.raises(Collision, match=r"^$"):
        store.set_notifier(queue, queue.notifier)
