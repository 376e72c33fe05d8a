"""What the relay knows of one connection, without its transport."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from txsimplex.boxes import BoxKey
from txsimplex.keys import PrivateKey, PublicKey
from txsimplex.smp.commands import Rfwd, Role
from txsimplex.smp.handshake import ServiceClaim
from txsimplex.smp.transmissions import Framing, Transmission


class Outlet(Protocol):
    """Where the relay sends what no command of the connection asked for."""

    @property
    def full(self) -> bool:
        """Whether the connection takes no more for now; it tells the relay when it does."""

    def send(self, transmissions: Sequence[bytes]) -> None:
        """Sends transmissions in order, in as few blocks as hold them."""

    def send_parts(self, parts: Sequence[bytes]) -> None:
        """Sends one transmission, given in parts."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection after its handshake, before the relay has said anything to its service.

    `session_key` is the relay's own of this connection, None if the client was not shown it;
    `secret` is of it and the client's, None if the client has sent none.
    """

    version: int
    session_id: bytes = field(repr=False)
    session_key: PrivateKey | None
    secret: bytes | None = field(repr=False)
    service: ServiceClaim | None = None


@dataclass(slots=True)
class PeerService:
    """The service that a connection belongs to (smp-server.md §8)."""

    service_id: bytes = field(repr=False)
    role: Role
    fingerprint: bytes = field(repr=False)
    session_key: PublicKey


class ProxySession(Protocol):
    """What is known of a connection that forwards commands (`smpd.forwarding`)."""

    @property
    def is_full(self) -> bool:
        """Whether it has to be renewed."""

    def open(self, t: Transmission, command: Rfwd) -> Any:
        """What a RFWD brings."""


@dataclass(slots=True, eq=False)
class Subscription:
    """A connection's interest in one queue (smp-server.md §5.1).

    `delivered` is the message it has not acknowledged; `getter` means GET instead
    of SUB; `waits` that a message could not be sent while the connection was full;
    `delayed` that one is about to be sent; `acknowledged` that any was acknowledged.
    """

    peer: Peer
    getter: bool = False
    delivered: bytes | None = field(default=None, repr=False)
    waits: bool = False
    delayed: bool = False
    acknowledged: bool = False


class Peer:
    """One connection: how its transmissions read, its keys and its subscriptions.

    `secret` is of the session keys of both sides; `forwarding` is there once the connection
    has turned out to be that of a proxy.
    """

    __slots__ = (
        "forwarding",
        "framing",
        "notifier_ids",
        "outlet",
        "secret",
        "secrets",
        "service",
        "service_notifiers",
        "service_subscribed",
        "session_key",
        "subscriptions",
        "version",
        "waiting",
    )

    def __init__(
        self,
        framing: Framing,
        session_key: PrivateKey | None,
        outlet: Outlet,
        service: PeerService | None = None,
        *,
        secret: bytes | None = None,
    ) -> None:
        self.framing = framing
        self.version = framing.version
        self.session_key = session_key
        self.outlet = outlet
        self.service = service
        self.secret = secret
        self.forwarding: ProxySession | None = None
        self.subscriptions: dict[bytes, Subscription] = {}
        self.notifier_ids: set[bytes] = set()
        self.service_notifiers = 0
        self.service_subscribed = False
        self.secrets: dict[bytes, BoxKey] = {}
        self.waiting: set[bytes] = set()

    def __repr__(self) -> str:
        return f"<Peer of version {self.version}>"
