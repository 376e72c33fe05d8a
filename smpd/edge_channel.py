"""The core's side of the channel to an edge, and the connections that the edge has.

One `Conversation` for each connection; what an edge sends about them ends up there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from socket import socket as Socket
from typing import Any, Final

from twisted.logger import Logger

from smpd.channel import (
    SINGLE_HEAD_SIZE,
    Frame,
    Kind,
    Level,
    content_head,
    decode_entry,
    decode_opened,
    decode_proofs,
    encode_learned,
    single_head,
)
from smpd.conduit import Conduit
from smpd.conversation import Conversation, Conversations, Items
from txsimplex.smp.transmissions import (
    BAD_BLOCK,
    LARGEST_TRANSMISSION,
    TooLarge,
    Transmission,
    pack,
)

_BLOCK: Final = Kind.BLOCK.value


class EdgeLine:
    """A connection of an edge; the `smpd.conversation.Line` of its conversation."""

    __slots__ = ("_channel", "_full", "_number", "active_at", "by_unix", "conversation")

    def __init__(
        self, channel: EdgeChannel, number: int, active_at: float, *, by_unix: bool
    ) -> None:
        self._channel = channel
        self.by_unix = by_unix
        self._number = number
        self._full = False
        self.active_at = active_at
        self.conversation: Conversation | None = None

    # -- for the conversation

    @property
    def full(self) -> bool:
        """Whether the client, or the way to its edge, takes nothing more for now."""
        channel = self._channel
        return self._full or (channel.conduit.full and channel.stall(self))

    def send(self, transmissions: Sequence[bytes]) -> None:
        """Sends transmissions in as few blocks as hold them; those that fit into none are not."""
        if len(transmissions) == 1:
            if len(transmissions[0]) <= LARGEST_TRANSMISSION:
                self.send_parts(transmissions)
            return
        channel = self._channel
        self.active_at = channel.now()
        for content in pack(transmissions):
            if not isinstance(content, TooLarge):
                head = content_head(self._number, len(content))
                channel.conduit.put_parts(head, (content,), len(head) + len(content))

    def send_parts(self, parts: Sequence[bytes]) -> None:
        """Sends one transmission that fits into a block."""
        channel = self._channel
        self.active_at = channel.now()
        size = 0
        for part in parts:
            size += len(part)
        head = single_head(self._number, size)
        channel.conduit.put_parts(head, parts, SINGLE_HEAD_SIZE + size)

    def stop_reading(self) -> None:
        """Lets the edge read nothing from the client."""
        self._tell(Kind.HOLD)

    def go_on_reading(self) -> None:
        """Lets the edge read from the client again."""
        self._tell(Kind.GO_ON)

    def close(self) -> None:
        """Ends the connection in order."""
        self._tell(Kind.CLOSE)

    def _tell(self, kind: Kind, payload: bytes = b"") -> None:
        self._channel.conduit.put(kind, self._number, payload)

    # -- from the edge

    def opened(self, payload: bytes) -> None:
        """The client has shaken hands."""
        self.conversation = self._channel.conversations.open(
            self, decode_opened(payload), self._accepted, lambda: self._tell(Kind.REFUSED)
        )

    def _accepted(self, service_id: bytes | None) -> None:
        # The edge has accepted a connection without a service by itself.
        if service_id is not None:
            self._tell(Kind.ACCEPTED, service_id)

    def block(self, payload: bytes) -> None:
        """A block of the client, with what the edge has found out about it."""
        conversation = self.conversation
        if conversation is None:
            return
        self.active_at = self._channel.now()
        proofs, start = decode_proofs(payload)
        items = conversation.peer.framing.read_commands(payload, start)
        if proofs:
            for item, proof in zip(items, proofs, strict=False):
                if type(item) is Transmission:
                    item.proof = proof
        conversation.process(items, self._teach)

    def _teach(self, items: Items) -> None:
        """Tells the edge the keys that commands were verified with here: it has not tried them."""
        for item in items:
            if type(item) is Transmission and item.made_with is not None and item.entity_id:
                self._tell(Kind.LEARN, encode_learned(item.entity_id, item.made_with))

    def bad_block(self, payload: bytes) -> None:
        """A block that did not open."""
        if self.conversation is not None:
            self.active_at = self._channel.now()
            self.conversation.process((BAD_BLOCK,))

    def client_full(self, payload: bytes) -> None:
        """Much is buffered for the client."""
        self._full = True

    def client_ready(self, payload: bytes) -> None:
        """The client has taken most of it."""
        self._full = False
        self.go_on()

    def go_on(self) -> None:
        """What waited for this client may be sent."""
        if self.conversation is not None:
            self.conversation.resumed()

    def end(self) -> None:
        """The connection is gone."""
        conversation, self.conversation = self.conversation, None
        if conversation is not None:
            conversation.end()


_ABOUT_CONNECTIONS: Final[dict[int, Callable[[EdgeLine, bytes], None]]] = {
    Kind.OPENED: EdgeLine.opened,
    Kind.OPENED_BY_UNIX: EdgeLine.opened,
    Kind.BAD_BLOCK: EdgeLine.bad_block,
    Kind.FULL: EdgeLine.client_full,
    Kind.READY: EdgeLine.client_ready,
}


class EdgeChannel:
    """The channel to one edge, and its connections.

    `told` is called with what the edge says about itself: `Kind.LISTENING` and `Kind.STOPPED`;
    `lost` when the edge is gone.
    """

    log = Logger()

    def __init__(
        self,
        conversations: Conversations,
        reactor: Any,
        sock: Socket,
        told: Callable[[Kind], None],
        lost: Callable[[], None],
    ) -> None:
        self.conversations = conversations
        self.now = reactor.seconds
        self._told = told
        self._tell_lost = lost
        self._lines: dict[int, EdgeLine] = {}
        self._stalled: set[EdgeLine] = set()
        self.conduit = Conduit(
            reactor, sock, self._receive, self._drained, self._lost, bounded=True
        )

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._lines)

    @property
    def connections_by_unix(self) -> int:
        """How many of them came through Unix sockets."""
        return sum(line.by_unix for line in self._lines.values())

    def stall(self, line: EdgeLine) -> bool:
        """Notes that a line is to be told when the edge takes more again; gives True."""
        self._stalled.add(line)
        return True

    def _drained(self) -> None:
        stalled, self._stalled = self._stalled, set()
        for line in stalled:
            line.go_on()

    def _receive(self, frames: Sequence[Frame]) -> None:
        for kind, number, payload in frames:
            try:
                if kind == _BLOCK:
                    self._lines[number].block(payload)
                elif number:
                    self._take(kind, number, payload)
                else:
                    self._take_own(kind, payload)
            except Exception:  # noqa: BLE001
                # Of one connection; the others have nothing to do with it.
                self.log.failure("a connection has failed")
                self._fail(number)

    def _take(self, kind: int, number: int, payload: bytes) -> None:
        if kind in (Kind.OPENED, Kind.OPENED_BY_UNIX):
            by_unix = kind == Kind.OPENED_BY_UNIX
            self._lines[number] = EdgeLine(self, number, self.now(), by_unix=by_unix)
        if kind == Kind.CLOSED:
            line = self._lines.pop(number)
            self._stalled.discard(line)
            line.end()
        else:
            _ABOUT_CONNECTIONS[kind](self._lines[number], payload)

    def _take_own(self, kind: int, payload: bytes) -> None:
        if kind == Kind.LOG:
            level, text = decode_entry(payload)
            log = self.log.error if level is Level.ERROR else self.log.warn
            log("an edge process: {text}", text=text)
        else:
            self._told(Kind(kind))

    def _fail(self, number: int) -> None:
        line = self._lines.get(number)
        if line is not None:
            line.close()

    def _lost(self) -> None:
        lines, self._lines = self._lines, {}
        self._stalled.clear()
        for line in lines.values():
            line.end()
        self._tell_lost()

    def end(self) -> None:
        """The edge is gone: so are its connections."""
        if self.conduit.open:
            self.conduit.close()
            self._lost()
