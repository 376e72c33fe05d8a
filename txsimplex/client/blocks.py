"""The client's end of a TLS connection: blocks that are asked for, or handed on as they come.

The handshake asks for one block after the other, a session takes them as they
come; both are built on `BlockConnection`, which knows nothing of what is in a block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from txsimplex.blocks_transport import BlockTransport
from txsimplex.client.errors import DisconnectedError

_BLOCKS_AHEAD = 16
"""Blocks that wait to be asked for before reading is paused."""


class BlockConnection:
    """The receiver of a `BlockStream`, which also waits where the stream says so.

    `when_secured` fires when TLS is set up and fails with `DisconnectedError` when it
    cannot be. `asked_for_certificate` says whether the relay then wanted one of the client.
    """

    def __init__(self) -> None:
        self.when_secured: Deferred[None] = Deferred()
        self.asked_for_certificate = False
        self._transport: BlockTransport | None = None
        self._reason: str | None = None
        self._deliver: Callable[[bytes], object] | None = None
        self._blocks: deque[bytes] = deque()
        self._reader: Deferred[None] | None = None
        self._reading = True
        self._watchers: list[Callable[[DisconnectedError], object]] = []
        self._outgoing: deque[tuple[bytes, Callable[[bytes], bytes] | None]] = deque()
        self._writable = True
        self._room: Callable[[], object] | None = None

    @property
    def transport(self) -> BlockTransport:
        """The secured transport: session id, ALPN and chain are there. `DisconnectedError`."""
        if self._transport is None:
            raise self.error()
        return self._transport

    @property
    def connected(self) -> bool:
        """Whether TLS is set up and the connection not yet lost."""
        return self._transport is not None and self._reason is None

    @property
    def writable(self) -> bool:
        """Whether a block that is sent now is written, or waits in the stream at most."""
        return self._writable and not self._outgoing

    @property
    def buffered(self) -> int:
        """How many bytes of blocks wait in the stream."""
        return self._transport.buffered if self._transport is not None else 0

    def error(self) -> DisconnectedError:
        """The exception for what cannot be done on a connection that is not there."""
        return DisconnectedError(self._reason or "not connected")

    # -- what the stream calls

    def secured(self, transport: BlockTransport) -> None:
        """TLS is set up."""
        self._transport = transport
        self.when_secured.callback(None)

    def blockReceived(self, block: bytes) -> None:
        """A block of 16,384 bytes has arrived."""
        if self._deliver is not None:
            self._deliver(block)
            return
        self._blocks.append(block)
        if len(self._blocks) >= _BLOCKS_AHEAD:
            self.pause_reading()
        self._wake_reader()

    def connectionLost(self, reason: Failure) -> None:
        """The connection is closed, or TLS could not be set up."""
        self._reason = reason.getErrorMessage() or "the connection is lost"
        self._outgoing.clear()
        self._room = None
        if not self.when_secured.called:
            self.when_secured.errback(self.error())
        self._wake_reader()
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher(self.error())

    def pauseProducing(self) -> None:
        """The stream has enough to write."""
        self._writable = False

    def resumeProducing(self) -> None:
        """The stream has room again."""
        self._writable = True
        self._write()
        if self._room is not None and self.writable:
            self._room()

    # -- what its owner calls

    def send(self, content: bytes, seal: Callable[[bytes], bytes] | None = None) -> None:
        """Sends a block; `seal` makes it of `content` when the stream has room for it.

        Without `seal`, `content` is the block itself. Nothing happens when the
        connection is closed.
        """
        if self.connected:
            self._outgoing.append((content, seal))
            self._write()

    def when_room(self, room: Callable[[], object]) -> None:
        """Calls `room` each time when there is room again for what is sent."""
        self._room = room

    def _write(self) -> None:
        while self._writable and self._outgoing and self.connected:
            content, seal = self._outgoing.popleft()
            self.transport.sendBlock(content if seal is None else seal(content))

    async def next_block(self) -> bytes:
        """The next block; one caller may wait at a time.

        Raises `DisconnectedError` when none will come.
        """
        while not self._blocks:
            if self._reason is not None:
                raise self.error()
            self._reader = Deferred()
            await self._reader
        block = self._blocks.popleft()
        if not self._blocks:
            self.resume_reading()
        return block

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.callback(None)

    def deliver_to(self, deliver: Callable[[bytes], object]) -> None:
        """From now on each block is given to `deliver`, those that wait first."""
        self._deliver = deliver
        while self._blocks:
            deliver(self._blocks.popleft())
        self.resume_reading()

    def pause_reading(self) -> None:
        """Takes no more blocks from the network; a few may still arrive."""
        if self._reading and self.connected:
            self._reading = False
            self.transport.pauseReading()

    def resume_reading(self) -> None:
        """Takes blocks from the network again."""
        if not self._reading and self.connected:
            self._reading = True
            self.transport.resumeReading()

    def when_lost(self, watcher: Callable[[DisconnectedError], object]) -> None:
        """Calls `watcher` once when the connection is closed, at once if it is already."""
        if self._reason is None:
            self._watchers.append(watcher)
        else:
            watcher(self.error())

    async def lost(self) -> None:
        """Waits until the connection is closed, by whomever."""
        if self._reason is not None:
            return
        done: Deferred[DisconnectedError] = Deferred()
        self.when_lost(done.callback)
        await done

    def close(self) -> None:
        """Closes the connection when what was sent is written."""
        if self.connected:
            self.transport.loseConnection()

    def abort(self) -> None:
        """Closes the connection at once."""
        if self.connected:
            self.transport.abortConnection()
