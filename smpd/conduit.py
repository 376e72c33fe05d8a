"""A channel between core and edge on a socket.

Frames leave in one call, and arrive in one, when their process has nothing else to do: a system
call and the switch to the other process cost as much as the frames themselves. With little to do
that is at once, and the more there is to do, the more of them share a call.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from socket import socket as Socket
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from smpd.channel import HEAD_SIZE, Decoder, Frame, head
from txsimplex.encoding import ParseError

HIGH_WATER = 1 << 20
"""Bytes that wait to be written from which on a conduit is `full`."""
_LOW_WATER = HIGH_WATER // 4
_MOST = 8 * HIGH_WATER
"""Bytes that wait from which on nothing is read either, where that was asked for."""
_AT_ONCE = 128 * 1024
"""Bytes that are not kept any longer: the other side may begin with them."""
_MOST_READS = 64
"""For more than the kernel keeps for a socket."""
_PARTS = 1000
"""Of one call; the kernel takes 1024."""


def pair() -> tuple[Socket, Socket]:
    """Two sockets that are connected to each other, neither of which blocks."""
    both = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for each in both:
        each.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            each.setsockopt(socket.SOL_SOCKET, option, HIGH_WATER)
    return both


@implementer(IReadWriteDescriptor)
class Conduit:
    """One end.

    `received` is called with frames, `drained` when `full` is over, and `lost` once, when the
    other side is gone or has sent what is no frame. If `bounded`, nothing is read while the
    other side takes nothing; that may be so on one side only.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        sock: Socket,
        received: Callable[[Sequence[Frame]], None],
        drained: Callable[[], None],
        lost: Callable[[], None],
        *,
        bounded: bool = False,
    ) -> None:
        self._reactor = reactor
        self._socket = sock
        self._received = received
        self._drained = drained
        self._lost = lost
        self._bounded = bounded
        later = partial(reactor.callLater, 0)
        self._call_before_waiting = getattr(reactor, "callBeforeWaiting", later)
        self._decoder = Decoder()
        self._parts: list[bytes | memoryview] = []
        self._size = 0
        # The size from which on `put_parts` has more to do than to keep what it is given.
        self._attention = 0
        self._scheduled = False
        self._blocked = False
        self._resting = False
        self.open = True
        self.full = False
        """Whether so much waits to be written that no more should be sent."""
        reactor.addReader(self)

    # -- sending

    def put(self, kind: int, connection: int, *payload: bytes) -> None:
        """Sends a frame, with others of this turn and maybe the next ones."""
        size = 0
        for part in payload:
            size += len(part)
        self.put_parts(head(size, kind, connection), payload, HEAD_SIZE + size)

    def put_parts(self, frame_head: bytes, others: Sequence[bytes], size: int) -> None:
        """Sends a frame of `size` bytes in all, whose head is made already."""
        parts = self._parts
        parts.append(frame_head)
        parts += others
        self._size = size = self._size + size
        if size >= self._attention:
            self._attend()

    def _attend(self) -> None:
        """Sees to it that what was put is sent, or not kept if nothing can be sent any more."""
        if not self.open:
            self._parts.clear()
            self._size = 0
        elif self._blocked:
            self._measure()
        elif self._size >= _AT_ONCE:
            self._write()
        elif not self._scheduled:
            self._scheduled = True
            self._attention = _AT_ONCE
            self._call_before_waiting(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self._attention = 0
        if self._parts and not self._blocked and self.open:
            self._write()

    def _write(self) -> None:
        self._send()
        parts = self._parts
        if parts and not self._blocked:
            self._blocked = True
            self._attention = 0
            self._reactor.addWriter(self)
        elif not parts and self._blocked:
            self._blocked = False
            self._reactor.removeWriter(self)
            if self._scheduled:
                self._attention = _AT_ONCE
        self._measure()

    def _send(self) -> None:
        """Gives the kernel what it takes."""
        parts = self._parts
        while parts:
            try:
                sent = self._socket.sendmsg(parts[:_PARTS])
            except BlockingIOError:
                break
            except OSError:
                # What the other side has sent before its end is still to be read.
                parts.clear()
                self._size = 0
                break
            self._size -= sent
            if self._size:
                _drop(parts, sent)
            else:
                parts.clear()

    def _measure(self) -> None:
        if self._size >= HIGH_WATER:
            self.full = True
            if self._bounded and self._size >= _MOST and not self._resting:
                self._resting = True
                self._reactor.removeReader(self)
        elif self.full and self._size <= _LOW_WATER:
            self.full = False
            if self._resting:
                self._resting = False
                self._reactor.addReader(self)
            self._drained()

    # -- for the reactor

    def fileno(self) -> int:
        """The socket."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """The name in Twisted's own messages."""
        return "conduit"

    def doRead(self) -> Any:
        """Reads what has come, up to a bounded amount."""
        try:
            count = self._socket.recv_into(self._decoder.space())
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not count:
            return CONNECTION_DONE
        try:
            frames = self._decoder.take(count)
        except ParseError as error:
            self.log.error("the other process does not send frames: {error}", error=str(error))
            return CONNECTION_LOST
        self._received(frames)
        return None

    def doWrite(self) -> Any:
        """Writes what waits."""
        self._write()
        return None

    def connectionLost(self, reason: Failure) -> None:
        """The other side is gone, or this one has failed: then the other is told why."""
        if self.open:
            self._send()
            self.close()
            self._lost()

    def read_rest(self) -> None:
        """Takes what the other side has sent, which has ended."""
        for _ in range(_MOST_READS):
            if not self.open or self.doRead():
                break

    def close(self) -> None:
        """Ends it, without a call of `lost`."""
        if self.open:
            self.open = False
            self._attention = 0
            self._parts.clear()
            self._size = 0
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._socket.close()


def _drop(parts: list[bytes | memoryview], count: int) -> None:
    """Removes the first `count` bytes."""
    for index, part in enumerate(parts):
        size = len(part)
        if count < size:
            parts[:index] = []
            if count:
                parts[0] = memoryview(part)[count:]
            return
        count -= size
    parts.clear()
