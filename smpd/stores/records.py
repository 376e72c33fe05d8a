"""What a store keeps, as bytes (docs/spec/smp-server.md §1, §6, §7, §8).

The primitives are those of the protocol (smp-wire.md §1). Readers raise `ParseError`
for anything that no encoder writes; encoders raise `ValueError` for what is too long.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from smpd.queues import Link, Message, Messages, Notifier, Queue, Status
from smpd.stores.interface import Notification, Service
from txsimplex.encoding import (
    ParseError,
    Reader,
    boolean,
    i64,
    large,
    maybe,
    nonempty,
    short,
    text,
    u8,
)
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import LinkData, QueueMode, Role
from txsimplex.smp.errors import BlockingInformation

_E = TypeVar("_E", bound=Enum)


def _encode_key(key: PublicKey) -> bytes:
    return short(key.encode())


def _read_key(reader: Reader) -> PublicKey:
    return PublicKey.decode(reader.short())


def _member(kind: type[_E], value: object) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise ParseError(f"an unknown {kind.__name__}") from None


def encode_link(link: Link) -> bytes:
    """The id and the data of a link."""
    return short(link.link_id) + link.data.encode()


def read_link(reader: Reader) -> Link:
    """Reads what `encode_link` writes."""
    return Link(reader.short(), LinkData.read(reader))


def encode_notifier(notifier: Notifier) -> bytes:
    """Id, key, secret and service of a notifier."""
    return (
        short(notifier.notifier_id)
        + _encode_key(notifier.key)
        + short(notifier.secret)
        + maybe(notifier.service_id, short)
    )


def read_notifier(reader: Reader) -> Notifier:
    """Reads what `encode_notifier` writes."""
    return Notifier(reader.short(), _read_key(reader), reader.short(), reader.maybe(reader.short))


def _encode_blocked(blocked: BlockingInformation) -> bytes:
    return large(blocked.encode())


def encode_queue(queue: Queue) -> bytes:
    """A queue with its link, notifier and quota state, without its messages."""
    return b"".join(
        (
            short(queue.recipient_id),
            nonempty(queue.recipient_keys, _encode_key),
            short(queue.secret),
            short(queue.sender_id),
            maybe(queue.mode, lambda mode: mode.value),
            maybe(queue.sender_key, _encode_key),
            maybe(queue.link, encode_link),
            maybe(queue.notifier, encode_notifier),
            text(queue.status.value),
            maybe(queue.blocked, _encode_blocked),
            i64(queue.used_on),
            maybe(queue.service_id, short),
            boolean(queue.messages.can_write),
        )
    )


def read_queue(reader: Reader) -> Queue:
    """Reads what `encode_queue` writes."""
    return Queue(
        recipient_id=reader.short(),
        recipient_keys=reader.nonempty(lambda: _read_key(reader)),
        secret=reader.short(),
        sender_id=reader.short(),
        mode=reader.maybe(lambda: _member(QueueMode, reader.take(1))),
        sender_key=reader.maybe(lambda: _read_key(reader)),
        link=reader.maybe(lambda: read_link(reader)),
        notifier=reader.maybe(lambda: read_notifier(reader)),
        status=_member(Status, reader.text()),
        blocked=reader.maybe(lambda: BlockingInformation.decode(reader.large())),
        used_on=reader.i64(),
        service_id=reader.maybe(reader.short),
        messages=Messages(can_write=reader.bool()),
    )


def encode_message(message: Message) -> bytes:
    """A message, or the quota marker, which has no body."""
    return (
        short(message.msg_id)
        + i64(message.timestamp)
        + boolean(message.notify)
        + maybe(message.body, large)
    )


def read_message(reader: Reader) -> Message:
    """Reads what `encode_message` writes."""
    return Message(reader.short(), reader.i64(), reader.bool(), reader.maybe(reader.large))


def encode_notification(notification: Notification) -> bytes:
    """Time and content of a notification."""
    return i64(notification.timestamp) + short(notification.nonce) + large(notification.meta)


def read_notification(reader: Reader) -> Notification:
    """Reads what `encode_notification` writes."""
    return Notification(reader.i64(), reader.short(), reader.large())


def encode_service(service: Service) -> bytes:
    """A service with the certificates it showed."""
    return b"".join(
        (
            short(service.service_id),
            service.role.value,
            u8(len(service.chain)),
            *map(large, service.chain),
            short(service.fingerprint),
            i64(service.created_on),
        )
    )


def read_service(reader: Reader) -> Service:
    """Reads what `encode_service` writes."""
    return Service(
        reader.short(),
        _member(Role, reader.take(1)),
        tuple(reader.items(reader.large)),
        reader.short(),
        reader.i64(),
    )
