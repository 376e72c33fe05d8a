"""What passes between a TLS transport of blocks and its user (smp-wire.md §4, §5).

Two transports provide :class:`BlockTransport`: :mod:`txsimplex.block_server` (TLS on the socket
that a :mod:`txsimplex.block_port` accepted) and :mod:`txsimplex.block_stream` (client or server
over any stream of Twisted's).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from OpenSSL import SSL
from twisted.internet.interfaces import IAddress
from twisted.python.failure import Failure

BLOCK_SIZE = 16384
"""Everything after TLS is blocks of this many bytes, in both directions (smp-wire.md §5)."""


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Limits of one connection.

    :ivar setup_time: seconds for the TLS handshake (smp-wire.md §4.4).
    :ivar close_time: seconds that an orderly close may take to write what is buffered.
    :ivar high_water: blocks waiting to be written at which the receiver is paused.
    :ivar low_water: blocks waiting to be written at which it is resumed.
    """

    setup_time: float = 60.0
    close_time: float = 15.0
    high_water: int = 8
    low_water: int = 2


class BlockTransport(Protocol):
    """A TLS connection that carries blocks. Given to its receiver when TLS is set up."""

    @property
    def session_id(self) -> bytes:
        """The client's Finished message: 32 bytes with TLS 1.3, 12 with 1.2 (smp-wire.md §4.3)."""

    @property
    def alpn(self) -> bytes | None:
        """The protocol that was negotiated, or None when the client offered none."""

    @property
    def peer_chain(self) -> tuple[bytes, ...]:
        """The certificates that the peer presented in TLS: DER, leaf first; () for none.

        They are as the peer sent them: TLS has checked that it holds the leaf's key and nothing
        else. They may be read in :meth:`BlockReceiver.secured`, and may be gone later.
        """

    @property
    def buffered(self) -> int:
        """How many bytes of blocks wait to be written."""

    def sendBlock(self, block: bytes | bytearray | memoryview) -> None:
        """Write a block of exactly 16,384 bytes, at once if possible.

        The caller may reuse the memory of a bytearray or memoryview as soon as this returns.
        Nothing happens when the connection is closing or closed. It may call the receiver's
        ``pauseProducing`` before it returns.

        :raises ValueError: the block has another length.
        """

    def pauseReading(self) -> None:
        """Deliver no block until :meth:`resumeReading`; the peer's close may go unnoticed."""

    def resumeReading(self) -> None:
        """Deliver blocks again."""

    def loseConnection(self) -> None:
        """Write what is buffered, say goodbye and close; no more blocks are delivered."""

    def abortConnection(self) -> None:
        """Close now, dropping what is buffered."""

    def getPeer(self) -> IAddress:
        """The address at the other end. Never to be logged."""

    def getHost(self) -> IAddress:
        """The address at this end."""


class BlockReceiver(Protocol):
    """The user of a connection: a relay's session or a client."""

    def secured(self, transport: BlockTransport) -> None:
        """TLS is set up. Called once, before any other method except ``connectionLost``."""

    def blockReceived(self, block: bytes) -> None:
        """A block of 16,384 bytes came."""

    def pauseProducing(self) -> None:
        """Blocks wait to be written up to the high-water mark: send no more for now."""

    def resumeProducing(self) -> None:
        """The buffer has drained to the low-water mark."""

    def connectionLost(self, reason: Failure) -> None:
        """The connection is gone. Called exactly once, also when TLS was never set up."""


class BlockReceiverFactory(Protocol):
    """What a listening port needs from its user."""

    @property
    def context(self) -> SSL.Context:
        """The TLS context for the next connection. Replacing it reloads certificates.

        It is taken when a connection is accepted, right after its receiver was made: what both show
        belongs together, whenever TLS begins.
        """

    def buildReceiver(self, address: IAddress) -> BlockReceiver | None:
        """Make the receiver of a connection that has just been accepted, or None to refuse it."""
