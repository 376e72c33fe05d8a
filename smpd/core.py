"""The core's side of edge processes: they are started, replaced and ended here.

An edge has the connections, TLS and most of the cryptography (`smpd.edge`); the relay, its store
and all decisions are here, one `Conversation` for each connection of each edge.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from socket import socket as Socket
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from smpd.channel import (
    CHANNEL,
    SINGLE_HEAD_SIZE,
    Frame,
    Kind,
    Level,
    Start,
    content_head,
    decode_entry,
    decode_opened,
    decode_proofs,
    encode_identity,
    encode_learned,
    single_head,
)
from smpd.conduit import Conduit, pair
from smpd.conversation import Conversation, Conversations, Items
from txsimplex.smp.handshake import RelayIdentity
from txsimplex.smp.transmissions import BAD_BLOCK, TooLarge, Transmission, pack

_BLOCK: Final = Kind.BLOCK.value
_LONGEST_DELAY: Final = 30.0
_LIVES_LONG: Final = 60.0
"""Seconds after which the end of an edge has nothing to do with its beginning."""
_STOP_TIME: Final = 2.0
"""Seconds that an edge has beyond what its connections have."""


class EdgeLine:
    """A connection of an edge; the `smpd.conversation.Line` of its conversation."""

    __slots__ = ("_channel", "_full", "_number", "active_at", "conversation")

    def __init__(self, channel: EdgeChannel, number: int, active_at: float) -> None:
        self._channel = channel
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
        """Sends transmissions in as few blocks as hold them."""
        if len(transmissions) == 1:
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
        if kind == Kind.OPENED:
            self._lines[number] = EdgeLine(self, number, self.now())
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


class _Watch(ProcessProtocol):
    """Tells when a process has ended, and how."""

    def __init__(self, ended: Callable[[Failure], None]) -> None:
        self._ended = ended

    def processEnded(self, reason: Failure) -> None:
        """Called by the reactor."""
        self._ended(reason)


class EdgeProcess:
    """One edge, which is started again whenever it ends, on the same sockets."""

    log = Logger()

    def __init__(self, edges: Edges, listening: Sequence[int]) -> None:
        self._edges = edges
        self._listening = listening
        self._channel: EdgeChannel | None = None
        self._process: Any = None
        self._started_at = 0.0
        self._delay = 0.0
        self._restart: IDelayedCall | None = None
        self._stopping = False
        self.listening: Deferred[None] | None = Deferred()
        self._stopped: Deferred[None] | None = None
        self._ended: Deferred[None] | None = None

    @property
    def connections(self) -> int:
        """How many it has that have shaken hands."""
        return 0 if self._channel is None else self._channel.connections

    def start(self) -> None:
        """Starts the process."""
        edges = self._edges
        self._restart = None
        self._started_at = edges.reactor.seconds()
        own, others = pair()
        descriptors = {0: 0, 1: 1, 2: 2, CHANNEL: others.fileno()}
        places = range(CHANNEL + 1, CHANNEL + 1 + len(self._listening))
        descriptors.update(zip(places, self._listening, strict=True))
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        arguments = (sys.executable, "-P", "-m", "smpd.edge")
        try:
            self._process = edges.reactor.spawnProcess(
                _Watch(self._has_ended),
                sys.executable,
                arguments,
                env={**os.environ, "PYTHONPATH": paths},
                childFDs=descriptors,
            )
        except OSError as error:
            own.close()
            self.log.error("an edge process cannot be started: {error}", error=str(error))
            self._start_again()
            return
        finally:
            others.close()
        self._channel = EdgeChannel(
            edges.conversations, edges.reactor, own, self._told, self._is_lost
        )
        start = replace(edges.start, listening=tuple(places))
        self._channel.conduit.put(Kind.START, 0, start.encode())
        self.show(edges.identity)

    def show(self, identity: RelayIdentity) -> None:
        """Lets the edge show this identity from now on."""
        self._tell(Kind.IDENTITY, encode_identity(identity))

    def stop_accepting(self) -> Deferred[None]:
        """Lets it accept no more connections; fires when what it has received is here."""
        self._stopping = True
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        if self._process is None:
            self._fire_stopped()
        else:
            self._tell(Kind.STOP_LISTENING)
            self._edges.reactor.callLater(_STOP_TIME, self._fire_stopped)
        return stopped

    def close(self, seconds: float) -> Deferred[None]:
        """Ends its connections in order and then the process, after `seconds` by force."""
        ended: Deferred[None] = Deferred()
        self._ended = ended
        if self._process is None:
            self._fire_ended()
            return ended
        self._tell(Kind.CLOSE)
        time_limit = self._edges.reactor.callLater(seconds, self._kill)

        def cancel(result: None) -> None:
            if time_limit.active():
                time_limit.cancel()

        return ended.addCallback(cancel)

    def _tell(self, kind: Kind, payload: bytes = b"") -> None:
        if self._channel is not None:
            self._channel.conduit.put(kind, 0, payload)

    def _told(self, kind: Kind) -> None:
        if kind is Kind.LISTENING and self.listening is not None:
            listening, self.listening = self.listening, None
            listening.callback(None)
        elif kind is Kind.STOPPED:
            self._fire_stopped()

    def _is_lost(self) -> None:
        """The channel is closed, so the process is about to end, or has to be."""
        process = self._process

        def kill() -> None:
            if self._process is process:
                self._kill()

        self._edges.reactor.callLater(_STOP_TIME, kill)

    def _kill(self) -> None:
        if self._process is not None:
            try:
                self._process.signalProcess("KILL")
            except ProcessExitedAlready:
                return

    def _has_ended(self, reason: Failure) -> None:
        self._process = None
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.end()
        self._fire_stopped()
        if self._stopping:
            if self._ended is not None and not reason.check(ProcessDone):
                self.log.warn(  # noqa: G010 (the name Twisted gives it)
                    "an edge process was ended: {how}", how=reason.getErrorMessage()
                )
            self._fire_ended()
            return
        self.log.error(
            "an edge process has ended, its clients come back to another: {how}",
            how=reason.getErrorMessage(),
        )
        self._start_again()

    def _start_again(self) -> None:
        if self._edges.reactor.seconds() - self._started_at >= _LIVES_LONG:
            self._delay = 0.0
        self._restart = self._edges.reactor.callLater(self._delay, self.start)
        self._delay = min(max(1.0, 2 * self._delay), _LONGEST_DELAY)

    def _fire_stopped(self) -> None:
        if self._stopped is not None:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)

    def _fire_ended(self) -> None:
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended.callback(None)


class Edges:
    """The edge processes of a relay.

    In the place of a `smpd.session.SessionFactory`, for ports that the core itself accepts no
    connections from. `start` is what edges are told, but for their sockets.
    """

    def __init__(
        self,
        conversations: Conversations,
        identity: RelayIdentity,
        context: Any,
        start: Start,
        reactor: Any,
    ) -> None:
        self.conversations = conversations
        self.identity = identity
        self.context = context
        self.start = start
        self.reactor = reactor
        self.processes: list[EdgeProcess] = []

    @property
    def connections(self) -> int:
        """How many there are now, of those that have shaken hands."""
        return sum(process.connections for process in self.processes)

    @property
    def connections_by_unix(self) -> None:
        """Edges do not tell how their connections came."""
        return None

    def buildReceiver(self, address: IAddress) -> None:
        """Refuses: connections are accepted by edges."""

    def show(self, identity: RelayIdentity, context: Any) -> None:
        """Lets all edges show another certificate."""
        self.identity = identity
        self.context = context
        for process in self.processes:
            process.show(identity)

    def run(self, listening: Sequence[Sequence[int]]) -> Deferred[Any]:
        """Starts an edge for each list of sockets; fires when all accept connections."""
        self.processes = [EdgeProcess(self, sockets) for sockets in listening]
        all_listen = [process.listening for process in self.processes]
        for process in self.processes:
            process.start()
        return gatherResults([each for each in all_listen if each is not None])

    def stop_accepting(self) -> Deferred[Any]:
        """No edge accepts connections any more; what was received is here when it fires."""
        return DeferredList([process.stop_accepting() for process in self.processes])

    def close_all(self, seconds: float) -> Deferred[Any]:
        """Ends all connections in order, those that are left after `seconds`, and the edges."""
        limit = seconds + _STOP_TIME
        return gatherResults([process.close(limit) for process in self.processes])
