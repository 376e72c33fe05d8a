"""What the recipient of a queue keeps of it, and how it reads messages."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from txsimplex.boxes import BoxKey
from txsimplex.keys import PrivateKey, PublicKey
from txsimplex.smp.bodies import MessageBody, QuotaBody, open_body
from txsimplex.smp.commands import QueueMode
from txsimplex.smp.messages import Ids, Msg, NotifierIds

_SENDER_ID_SIZE = 24


@dataclass(frozen=True, slots=True)
class CreatedQueue:
    """A queue as the relay made it.

    `sender_id` is for the sender, `recipient_id` for the recipient's commands only.
    `box` opens the bodies of messages.
    """

    recipient_id: bytes = field(repr=False)
    sender_id: bytes = field(repr=False)
    mode: QueueMode | None
    link_id: bytes | None = field(repr=False)
    service_id: bytes | None = field(repr=False)
    notifier: NotifierIds | None = field(repr=False)
    box: BoxKey

    @classmethod
    def from_ids(cls, ids: Ids, dh_key: PrivateKey) -> CreatedQueue:
        """The queue from the relay's answer and the X25519 key that NEW was sent with."""
        return cls(
            ids.recipient_id,
            ids.sender_id,
            ids.mode,
            ids.link_id,
            ids.service_id,
            ids.notifier,
            shared_box(dh_key, ids.dh_key),
        )

    def open(self, message: Msg) -> MessageBody | QuotaBody:
        """What is in a message of this queue. Raises `BoxError` or `ParseError`."""
        return open_body(self.box, message.msg_id, message.body)


def shared_box(private: PrivateKey, relay_key: PublicKey) -> BoxKey:
    """The key of a queue's messages or notifications, from ours and the relay's X25519 key.

    The relay's is in IDS for messages, and in NID or the notifier part of IDS for
    notifications, whose meta data `txsimplex.smp.bodies.open_meta` opens with it.
    """
    return BoxKey(private.exchange(relay_key))


def sender_id_for(corr_id: bytes) -> bytes:
    """The sender id that a NEW with link data and this correlation id must have.

    (smp-server.md §4: the first 24 bytes of SHA3-384.)
    """
    return hashlib.sha3_384(corr_id).digest()[:_SENDER_ID_SIZE]
