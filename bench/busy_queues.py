"""Queues that the crash benchmark keeps busy, as their users know them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any, Final

from bench.ledger import Ledger, number_of
from bench.workers import sleep
from txsimplex.addresses import ServerAddress
from txsimplex.boxes import BoxError
from txsimplex.client.errors import DisconnectedError, RelayError, TimedOutError
from txsimplex.client.queues import CreatedQueue
from txsimplex.client.smp import SMPClient, connect
from txsimplex.encoding import ParseError
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import errors
from txsimplex.smp.bodies import QuotaBody
from txsimplex.smp.messages import Msg
from txsimplex.smp.transmissions import Received

ENDED: Final = (DisconnectedError, TimedOutError)
"""What a client gets for an answer when the relay is gone."""
CONNECTIONS: Final = 2
"""Connections of senders to a relay, and as many of recipients."""
STEP: Final = 0.02
"""Seconds between looking whether something has come."""
SENDS_AT_ONCE: Final = 2
"""Messages under way to each queue."""
CHURN_INTERVAL: Final = 0.03
"""Seconds between queues that are created and deleted."""
HABITS: Final = ("at once", "at once", "at once", "later", "never")
"""When the recipient of a queue acknowledges, while it is subscribed."""

_CONNECT_TIME: Final = 5.0
_LEFT_INSECURE: Final = 0.25
"""Part of the queues that everybody may send to."""


class BusyQueue:
    """A queue of both its users."""

    def __init__(
        self, created: CreatedQueue, key: PrivateKey, sender_key: PrivateKey, share: int
    ) -> None:
        self.share = share
        """Which of the connections are its own, when there is one relay."""
        self.created = created
        self.key = key
        self.sender_key = sender_key
        self.seed = created.sender_id
        self.wants_securing = random.random() >= _LEFT_INSECURE
        self.secured = False
        self.habit = HABITS[0]
        self.waits = False
        """Whether a message came to this subscription that is not acknowledged."""
        self.came = False
        """Whether anything came to this subscription."""

    @property
    def recipient_id(self) -> bytes:
        """Its id for the recipient's commands."""
        return self.created.recipient_id

    def enter(self, ledger: Ledger, message: Msg) -> int | None:
        """Enters a message that came into the books.

        Its number; None for a quota marker or what should not be.
        """
        try:
            opened = self.created.open(message)
        except (BoxError, ParseError):
            ledger.seen(self.recipient_id, None, message.msg_id)
            return None
        if isinstance(opened, QuotaBody):
            ledger.marker_seen(self.recipient_id, message.msg_id)
            return None
        number = number_of(self.seed, opened.body)
        ledger.seen(self.recipient_id, number, message.msg_id)
        return number


async def created(client: SMPClient, share: int = 0) -> BusyQueue:
    """A new queue, which `client` is subscribed to."""
    key = PrivateKey.generate(Algorithm.ED25519, os.urandom)
    sender_key = PrivateKey.generate(Algorithm.X25519, os.urandom)
    dh_key = PrivateKey.generate(Algorithm.X25519, os.urandom)
    return BusyQueue(await client.create_queue(key, dh_key), key, sender_key, share)


async def connected(
    clock: Any,
    place: tuple[str, str, int],
    on_event: Callable[[Received], object],
    wanted: Callable[[], bool],
) -> SMPClient | None:
    """A connection to the relay at `place`, as soon as it takes one; None when not `wanted` more.

    `place` is the relay's address, and the host and port to connect to.
    """
    from twisted.internet.endpoints import TCP4ClientEndpoint

    address, host, port = place
    endpoint = TCP4ClientEndpoint(clock, host, port)
    server = ServerAddress.parse(address)
    while wanted():
        try:
            return await connect(
                endpoint, server, timeout=_CONNECT_TIME, clock=clock, on_event=on_event
            )
        except ENDED:
            await sleep(STEP)
    return None


def is_auth(answer: object) -> bool:
    """Whether a relay says that there is no such queue."""
    return isinstance(answer, RelayError) and answer.error == errors.AUTH
