"""Records for the tests of stores: queues, messages, notifications and services."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from smpd.queues import Link, Message, Notifier, Queue
from smpd.stores.interface import Coming, Notification, Service
from tests.smpd.people import ID_SIZE, key, random
from txsimplex.smp.commands import LinkData, QueueMode, Role

NOW = 1_700_000_000

_T = TypeVar("_T")


def at_once(steps: Iterator[_T | Coming]) -> Iterator[_T]:
    """Steps over all queues, of which nothing is still to come."""
    for step in steps:
        assert not hasattr(step, "addCallback")
        yield step


def new_id() -> bytes:
    """An id that was not there before."""
    return random(ID_SIZE)


def message(timestamp: int = NOW, body: bytes | None = b"hello", notify: bool = False) -> Message:
    """A message with an id of its own."""
    return Message(new_id(), timestamp, notify, body)


def notification(timestamp: int = NOW) -> Notification:
    """A notification unlike any other."""
    return Notification(timestamp, random(24), random(144))


def notifier(service_id: bytes | None = None, notifier_id: bytes | None = None) -> Notifier:
    """A notifier with an id of its own unless one is given."""
    return Notifier(notifier_id or new_id(), key().public, random(32), service_id)


def link(link_id: bytes | None = None) -> Link:
    """A link with an id of its own unless one is given."""
    return Link(link_id or new_id(), LinkData(b"fixed", b"user"))


def new_queue(
    *,
    recipient_id: bytes | None = None,
    sender_id: bytes | None = None,
    link: Link | None = None,
    notifier: Notifier | None = None,
    mode: QueueMode | None = QueueMode.MESSAGING,
    service_id: bytes | None = None,
) -> Queue:
    """A queue that is in no store."""
    return Queue(
        recipient_id=recipient_id or new_id(),
        recipient_keys=[key().public],
        secret=random(32),
        sender_id=sender_id or new_id(),
        mode=mode,
        link=link,
        notifier=notifier,
        used_on=NOW // 86400 * 86400,
        service_id=service_id,
    )


def service(role: Role = Role.NOTIFIER, fingerprint: bytes | None = None) -> Service:
    """A service with an id of its own."""
    return Service(new_id(), role, (b"leaf", b"identity"), fingerprint or random(32), NOW)
