"""Records of stores with databases to rows and back (`smpd/stores/schema`, `postgres_schema`).

What both kinds of database have in common. Whatever is read raises `DamagedRow` when it is not
what was written.
"""

from __future__ import annotations

from typing import Any, Final

from smpd.queues import Link, Notifier, Queue, Status
from smpd.stores.interface import Service
from txsimplex.encoding import ParseError, Reader, large, short
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import LinkData, QueueMode, Role
from txsimplex.smp.errors import BlockingInformation

Row = tuple[Any, ...]

QUEUE_COLUMNS: Final = (
    "number",
    "recipient_id",
    "sender_id",
    "recipient_keys",
    "secret",
    "sender_key",
    "mode",
    "status",
    "blocked",
    "used_on",
    "service_id",
    "notifier_id",
    "notifier_key",
    "notifier_secret",
    "notifier_service_id",
)
LINK_COLUMNS: Final = ("queue", "link_id", "fixed", "user")
SERVICE_COLUMNS: Final = ("service_id", "fingerprint", "role", "chain", "created_on", "notifiers")


class DamagedRow(Exception):
    """A row that the store has not written."""


def queue_row(queue: Queue) -> Row:
    """A row of `QUEUE_COLUMNS`."""
    notifier = queue.notifier
    if notifier is None:
        notifies: Row = (None, None, None, None)
    else:
        notifies = (
            notifier.notifier_id,
            notifier.key.encode(),
            notifier.secret,
            notifier.service_id,
        )
    return (
        queue.number,
        queue.recipient_id,
        queue.sender_id,
        b"".join([short(key.encode()) for key in queue.recipient_keys]),
        queue.secret,
        None if queue.sender_key is None else queue.sender_key.encode(),
        None if queue.mode is None else queue.mode.value.decode("ascii"),
        queue.status.value,
        None if queue.blocked is None else queue.blocked.encode(),
        queue.used_on,
        queue.service_id,
        *notifies,
    )


def link_row(queue: Queue, link: Link) -> Row:
    """A row of `LINK_COLUMNS`."""
    return (queue.number, link.link_id, link.data.fixed, link.data.user)


def queue_from_row(row: Row) -> Queue:
    """A queue from `QUEUE_COLUMNS` and `LINK_COLUMNS` without the first."""
    (
        number,
        recipient_id,
        sender_id,
        recipient_keys,
        secret,
        sender_key,
        mode,
        status,
        blocked,
        used_on,
        service_id,
        notifier_id,
        notifier_key,
        notifier_secret,
        notifier_service_id,
        link_id,
        fixed,
        user,
    ) = row
    try:
        queue = Queue(
            recipient_id,
            _keys(recipient_keys),
            secret,
            sender_id,
            None if mode is None else QueueMode(mode.encode("ascii")),
            None if sender_key is None else PublicKey.decode(sender_key),
            None if link_id is None else Link(link_id, LinkData(fixed, user)),
            None,
            Status(status),
            None if blocked is None else BlockingInformation.decode(blocked),
            used_on,
            service_id,
        )
        if notifier_id is not None:
            queue.notifier = Notifier(
                notifier_id, PublicKey.decode(notifier_key), notifier_secret, notifier_service_id
            )
    except (ParseError, ValueError) as error:
        raise DamagedRow from error
    queue.number = number
    return queue


def _keys(data: bytes) -> list[PublicKey]:
    reader = Reader(data)
    keys = []
    while reader.remaining:
        keys.append(PublicKey.decode(reader.short()))
    return keys


def service_row(service: Service, notifiers: int) -> Row:
    """A row of `SERVICE_COLUMNS`."""
    return (
        service.service_id,
        service.fingerprint,
        service.role.value.decode("ascii"),
        b"".join([large(certificate) for certificate in service.chain]),
        service.created_on,
        notifiers,
    )


def service_from_row(row: Row) -> Service:
    """A service from `SERVICE_COLUMNS`."""
    service_id, fingerprint, role, chain, created_on, _ = row
    reader = Reader(chain)
    certificates = []
    try:
        while reader.remaining:
            certificates.append(reader.large())
        return Service(
            service_id, Role(role.encode("ascii")), tuple(certificates), fingerprint, created_on
        )
    except (ParseError, ValueError) as error:
        raise DamagedRow from error
