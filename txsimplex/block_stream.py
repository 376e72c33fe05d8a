"""Blocks over TLS over any stream that Twisted provides (smp-wire.md §4, §5).

For clients, whose connections come from endpoints (TCP, SOCKS, Unix sockets), and for servers on
endpoints other than those of :mod:`txsimplex.block_port`.
"""

from __future__ import annotations

from collections import deque
from socket import socket as Socket
from typing import Any, ClassVar

from OpenSSL import SSL
from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from txsimplex import openssl
from txsimplex.blocks_transport import BLOCK_SIZE, BlockReceiver, TransportLimits

_RECORDS_PER_WRITE = 4
_ALL = -1
_DEFAULT_LIMITS = TransportLimits()


@implementer(IPushProducer)
class BlockStream(Protocol):
    """A Twisted protocol that is the :class:`BlockTransport` of its receiver."""

    tls_class: ClassVar[Any] = openssl.MemoryTLS

    session_id = b""
    alpn: bytes | None = None
    peer_chain: tuple[bytes, ...] = ()

    _any_transport: Any = None
    _tls: Any = None
    _timer: IDelayedCall | None = None
    # The socket under the transport, if blocks may be written to it without asking the transport.
    _socket: Socket | None = None
    _lost = False
    _closing = False
    _reading = True
    _receiver_paused = False
    _transport_paused = False
    # Blocks that wait until the transport has drained.
    _waiting: deque[bytes] | None = None
    # What has come of a block, or None.
    _partial: bytearray | None = None
    # Records that have come in whole and were not read because reading is paused.
    _unread = 0
    # Bytes that are missing of the record that is coming in, and what has come of its header.
    _missing = 0
    _header = b""
    # Blocks encrypted and not yet passed to the transport; whether more may be on their way.
    _pending = 0
    _gathering = False

    def __init__(
        self,
        receiver: BlockReceiver,
        context: SSL.Context,
        *,
        server: bool,
        clock: IReactorTime,
        limits: TransportLimits = _DEFAULT_LIMITS,
    ) -> None:
        """
        :param receiver: the user of the connection.
        :param context: made by :mod:`txsimplex.tls`.
        :param server: be the server's end.
        :param clock: the reactor.
        """
        self._receiver = receiver
        self._context = context
        self._server = server
        self._clock = clock
        self._limits = limits

    # -- for the receiver

    @property
    def buffered(self) -> int:
        """See :class:`BlockTransport`. What the stream's own transport buffers is not counted."""
        return BLOCK_SIZE * len(self._waiting) if self._waiting else 0

    def sendBlock(self, block: bytes | bytearray | memoryview) -> None:
        """See :class:`BlockTransport`."""
        if len(block) != BLOCK_SIZE:
            raise ValueError(f"a block has {BLOCK_SIZE} bytes")
        if self._closing:
            return
        if self._transport_paused or self._waiting is not None:
            self._wait_to_write(block)
        else:
            self._write(block)

    def pauseReading(self) -> None:
        """See :class:`BlockTransport`."""
        if not self._closing:
            self._reading = False
            self._any_transport.pauseProducing()

    def resumeReading(self) -> None:
        """See :class:`BlockTransport`."""
        if not self._closing and not self._reading:
            self._reading = True
            if self._unread and not self._gathering:
                self._clock.callLater(0, self._read_unread)
            else:
                self._any_transport.resumeProducing()

    def loseConnection(self) -> None:
        """See :class:`BlockTransport`."""
        if not self._closing:
            self._stop()
            if self._waiting is None:
                self._say_goodbye()

    def abortConnection(self) -> None:
        """See :class:`BlockTransport`."""
        if not self._lost:
            self._closing = True
            self._reading = False
            self._cancel_timer()
            transport = self._any_transport
            getattr(transport, "abortConnection", transport.loseConnection)()

    def getPeer(self) -> IAddress:
        """See :class:`BlockTransport`."""
        return self._any_transport.getPeer()  # type: ignore[no-any-return]

    def getHost(self) -> IAddress:
        """See :class:`BlockTransport`."""
        return self._any_transport.getHost()  # type: ignore[no-any-return]

    # -- for the transport, to which this is a protocol and a producer

    def connectionMade(self) -> None:
        """Begin with TLS."""
        transport: Any = self.transport
        self._any_transport = transport
        # Not all of Twisted's Unix transports admit that they are none of TCP.
        if isinstance(transport.getPeer(), (IPv4Address, IPv6Address)):
            transport.setTcpNoDelay(True)
        self._socket = _bare_socket(transport)
        transport.registerProducer(self, True)
        self._timer = self._clock.callLater(self._limits.setup_time, self.abortConnection)
        self._tls = self.tls_class(self._context, self._server)
        if not self._server:
            self._handshake()

    def dataReceived(self, data: bytes) -> None:
        """Take in records, or parts of them."""
        if self._closing:
            return
        self._tls.feed(data)
        records = self._count_records(data)
        if self.session_id:
            self._read_records(_ALL if self._unread < 0 else self._unread + records)
        elif self._handshake():
            # Some of those records were the handshake's: read until there is none.
            self._read_records(_ALL)

    def pauseProducing(self) -> None:
        """The transport has enough to write for now."""
        self._transport_paused = True

    def resumeProducing(self) -> None:
        """The transport has written what it had."""
        self._transport_paused = False
        if self._waiting is not None:
            self._write_waiting(self._waiting)

    def stopProducing(self) -> None:
        """The transport will write no more."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        if not self._lost:
            self._lost = self._closing = True
            self._reading = False
            self._cancel_timer()
            self._tls = self._waiting = self._partial = self._socket = None
            receiver = self._receiver
            del self._receiver
            receiver.connectionLost(reason)

    # -- reading

    def _handshake(self) -> bool:
        tls = self._tls
        try:
            if not tls.handshake():
                self._flush()
                return False
        except openssl.TLSEndedError:
            self._stop()
            self._disconnect()
            return False
        self._cancel_timer()
        self.session_id = tls.session_id
        if not self.session_id:
            self.abortConnection()
            return False
        self.alpn = tls.alpn
        self.peer_chain = tls.peer_chain
        tls.settle()
        self._gathering = True
        self._receiver.secured(self)
        self.peer_chain = ()
        return True

    def _read_records(self, records: int) -> None:
        """Read so many records, fewer if reading is paused, and write what comes of them."""
        read = self._tls.read
        self._gathering = True
        try:
            while records and self._reading:
                data = read()
                if data is None:
                    records = 0
                    break
                records -= 1
                if self._partial is None and len(data) == BLOCK_SIZE:
                    self._receiver.blockReceived(data)
                else:
                    self._assemble(data)
        except openssl.TLSEndedError:
            records = 0
            if not self._closing:
                self._stop()
                self._disconnect()
        finally:
            self._unread = records
            self._gathering = False
            if self._tls is not None:
                self._flush()

    def _read_unread(self) -> None:
        if self._reading and not self._gathering:
            self._any_transport.resumeProducing()
            self._read_records(self._unread)

    def _count_records(self, data: bytes) -> int:
        """How many TLS records end in ``data``, which follows on what came before.

        So nothing need be read in vain: to find out from OpenSSL that there is no further record
        costs as much as to read one.
        """
        size = len(data)
        if self._header:
            start = 5 - len(self._header)
            header = self._header + data[:start]
            if size < start:
                self._header = header
                return 0
            self._header = b""
            end = start + (header[3] << 8 | header[4])
        elif self._missing:
            end = self._missing
        elif size >= 5:
            end = 5 + (data[3] << 8 | data[4])
        else:
            self._header = data
            return 0
        records = 0
        while end <= size:
            records += 1
            start = end
            end += 5
            if end > size:
                self._header = data[start:]
                self._missing = 0
                return records
            end += data[start + 3] << 8 | data[start + 4]
        self._missing = end - size
        return records

    def _assemble(self, data: bytes) -> None:
        """Take in a record that is not a block: no more than one block comes out."""
        partial = self._partial
        if partial is None:
            partial = self._partial = bytearray()
        partial += data
        if len(partial) >= BLOCK_SIZE:
            block = bytes(partial[:BLOCK_SIZE])
            del partial[:BLOCK_SIZE]
            if not partial:
                self._partial = None
            self._receiver.blockReceived(block)

    # -- writing

    def _write(self, block: bytes | bytearray | memoryview) -> None:
        try:
            self._tls.write(block)
        except openssl.TLSEndedError:
            self.abortConnection()
            return
        self._pending += 1
        if not self._gathering or self._pending >= _RECORDS_PER_WRITE:
            self._flush()

    def _flush(self) -> None:
        """Pass to the transport what is encrypted."""
        self._pending = 0
        transport = self._any_transport
        while True:
            data = self._tls.drain()
            size = len(data)
            if size and self._socket is not None and _is_idle(transport):
                try:
                    sent = self._socket.send(data)
                except OSError:
                    # No room, or an error that the transport will meet too.
                    sent = 0
                data = data[sent:]
            if data:
                transport.write(bytes(data))
            if size < openssl.DRAIN_SIZE:
                return

    def _wait_to_write(self, block: bytes | bytearray | memoryview) -> None:
        waiting = self._waiting
        if waiting is None:
            waiting = self._waiting = deque()
        waiting.append(bytes(block))
        if not self._receiver_paused and len(waiting) >= self._limits.high_water:
            self._receiver_paused = True
            self._receiver.pauseProducing()

    def _write_waiting(self, waiting: deque[bytes]) -> None:
        while waiting and not self._transport_paused and not self._lost:
            self._write(waiting.popleft())
        if self._lost:
            return
        if not waiting:
            self._waiting = None
            if self._closing:
                self._say_goodbye()
                return
        if self._receiver_paused and len(waiting) <= self._limits.low_water:
            self._receiver_paused = False
            if not self._closing:
                self._receiver.resumeProducing()

    # -- closing

    def _stop(self) -> None:
        """Deliver nothing more, and be gone in time."""
        self._closing = True
        self._reading = False
        self._cancel_timer()
        self._timer = self._clock.callLater(self._limits.close_time, self.abortConnection)

    def _say_goodbye(self) -> None:
        if self.session_id:
            self._tls.close_notify()
        self._disconnect()

    def _disconnect(self) -> None:
        """Close when all is written and the peer has closed; see ``BlockServer._close``."""
        self._flush()
        transport = self._any_transport
        transport.unregisterProducer()
        if self._socket is None:
            transport.loseConnection()
        else:
            transport.loseWriteConnection()
            transport.resumeProducing()

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()


def _bare_socket(transport: Any) -> Socket | None:
    """The socket of one of Twisted's own TCP transports, whose buffer can be looked into.

    To write to it at once saves a turn of the reactor's and two changes of its set of events. It
    is done only while the transport has nothing of its own to write.
    """
    if not isinstance(transport, tcp.Connection) or getattr(transport, "TLS", True):
        return None
    if not all(hasattr(transport, name) for name in ("dataBuffer", "_tempDataBuffer")):
        return None
    return transport.getHandle()


def _is_idle(transport: Any) -> bool:
    return not transport.dataBuffer and not transport._tempDataBuffer and transport.connected
