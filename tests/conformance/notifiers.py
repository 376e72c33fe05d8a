"""Notifiers of queues under test: their keys, and what their notifications say."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.conformance.clients import Queue, new_key, next_event, of
from txsimplex.client.queues import shared_box
from txsimplex.client.smp import SMPClient
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp.bodies import open_meta
from txsimplex.smp.messages import Nmsg


@dataclass(frozen=True)
class Notifier:
    """A notifier with all keys: for NSUB `key`, for its notifications `dh_key` and the relay's."""

    notifier_id: bytes
    key: PrivateKey = field(repr=False)
    dh_key: PrivateKey = field(repr=False)
    relay_key: PublicKey = field(repr=False)

    @property
    def own(self) -> tuple[bytes, PrivateKey]:
        """Id and key, as NSUB takes them."""
        return self.notifier_id, self.key

    def open(self, notification: Nmsg) -> tuple[bytes, int]:
        """Id and time of the message that a notification announces."""
        box = shared_box(self.dh_key, self.relay_key)
        return open_meta(box, notification.nonce, notification.meta)


async def make_notifier(
    recipient: SMPClient,
    queue: Queue,
    algorithm: Algorithm = Algorithm.ED25519,
    *,
    key: PrivateKey | None = None,
) -> Notifier:
    """Gives a queue a notifier (NKEY), with a new key if none is given."""
    key, dh_key = key or new_key(algorithm), new_key(Algorithm.X25519)
    nid = await recipient.add_notifier(*queue.own, key.public, dh_key.public)
    return Notifier(nid.notifier_id, key, dh_key, nid.dh_key)


async def next_notification(client: SMPClient, notifier: Notifier) -> tuple[bytes, int]:
    """What the next event, which must be NMSG of `notifier`, announces."""
    event = await next_event(client)
    assert event.entity_id == notifier.notifier_id
    return notifier.open(of(Nmsg, event))
