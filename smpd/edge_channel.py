"""The core's side of the channel to an edge, and the connections that the edge has.

One `Conversation` for each connection; what an edge sends about them ends up there.
"""

from __future__ import annotations

from collections import deque
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
_CONTENT: Final = Kind.CONTENT.value
_ANSWER: Final = Kind.ANSWER.value
_MANY_UNTOLD: Final = 2
"""Blocks that were carried out, at which the edge is told without an answer to tell it with."""
_MUCH: Final = 16
"""Answers to one block, in blocks, from which on the client has to take them before its next."""


class EdgeLine:
    """A connection of an edge; the `smpd.conversation.Line` of its conversation."""

    __slots__ = (
        "_channel",
        "_full",
        "_number",
        "_sent",
        "_untold",
        "_waiting",
        "active_at",
        "by_unix",
        "conversation",
    )

    def __init__(
        self, channel: EdgeChannel, number: int, active_at: float, *, by_unix: bool
    ) -> None:
        self._channel = channel
        self.by_unix = by_unix
        self._number = number
        self._full = False
        # Blocks sent since the last one of the client.
        self._sent = 0
        # Blocks of the client that were carried out, or are now, and the edge does not know.
        self._untold = 0
        # Blocks that wait until the client has taken the answers to the one before, if it has to.
        self._waiting: deque[bytes | None] | None = None
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
                head = content_head(self._number, len(content), self._next_kind())
                channel.conduit.put_parts(head, (content,), len(head) + len(content))

    def send_parts(self, parts: Sequence[bytes]) -> None:
        """Sends one transmission that fits into a block."""
        channel = self._channel
        self.active_at = channel.now()
        size = 0
        for part in parts:
            size += len(part)
        head = single_head(self._number, size, self._next_kind())
        channel.conduit.put_parts(head, parts, SINGLE_HEAD_SIZE + size)

    def _next_kind(self) -> int:
        """The kind of the frame with the next block for the client."""
        self._sent += 1
        if self._untold:
            self._untold -= 1
            return _ANSWER
        return _CONTENT

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

    def block(self, payload: bytes | None) -> None:
        """A block of the client, with what the edge has found out about it; or a bad one."""
        if self._waiting is None:
            self._carry_out(payload)
        else:
            # No more than the edge lets be under way.
            self._waiting.append(payload)

    def _carry_out(self, payload: bytes | None) -> None:
        conversation = self.conversation
        if conversation is None:
            return
        self.active_at = self._channel.now()
        self._untold += 1
        self._sent = 0
        if payload is None:
            conversation.process((BAD_BLOCK,))
        else:
            self._process(conversation, payload)
        if self._untold >= _MANY_UNTOLD:
            self._tell(Kind.CARRIED_OUT, bytes((self._untold,)))
            self._untold = 0
        if self._sent >= _MUCH:
            self._waiting = deque()
            self._tell(Kind.MUCH_SENT)

    def _process(self, conversation: Conversation, payload: bytes) -> None:
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
        self.block(None)

    def client_has_taken(self, payload: bytes) -> None:
        """The client has taken the many answers to a block: the next ones are carried out."""
        waiting, self._waiting = self._waiting, None
        while waiting and self._waiting is None:
            self._carry_out(waiting.popleft())
        if waiting:
            self._waiting = waiting

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
    Kind.TAKEN: EdgeLine.client_has_taken,
}


class EdgeChannel:
    """The channel to one edge, and its connections.

    `told` is called with what the edge says about itself: `Kind.LISTENING`, `Kind.STOPPED` and
    `Kind.PONG`; `lost` when the edge is gone.
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
        self.heard = False
        """Set whenever something has come; for who wants to know whether the edge is alive."""
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
        self.heard = True
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
            # Its last frames say why, and the end of its process may be noticed before them.
            self.conduit.read_rest()
            self.conduit.close()
            self._lost()
