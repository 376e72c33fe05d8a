"""The core's side of edge processes: they are started, replaced and ended here.

An edge has the connections, TLS and most of the cryptography (`smpd.edge`); the relay, its store
and all decisions are in the core's process (`smpd.edge_channel` has its connections).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from smpd.channel import CHANNEL, Kind, Start, encode_identity
from smpd.conduit import pair
from smpd.conversation import Conversations
from smpd.edge_channel import EdgeChannel
from txsimplex.smp.handshake import RelayIdentity

_LONGEST_DELAY: Final = 30.0
_LIVES_LONG: Final = 60.0
"""Seconds after which the end of an edge has nothing to do with its beginning."""
_STOP_TIME: Final = 2.0
"""Seconds that an edge has beyond what its connections have."""
PING_INTERVAL: Final = 5.0
"""Seconds from one question to an edge whether it is alive to the next."""
_MOST_SILENT: Final = 6
"""Intervals without a word, after which an edge is ended."""
_WITHOUT_INTERRUPTS: Final = ("/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh")
"""Ctrl-C goes to all processes, and Python would tell where it was before the edge ignores it."""
_LATE: Final = 1.0
"""Seconds by which the core looks too late for an interval to count."""


class _Watch(ProcessProtocol):
    """Tells when a process has ended, and how."""

    def __init__(self, ended: Callable[[Failure], None]) -> None:
        self._ended = ended

    def processEnded(self, reason: Failure) -> None:
        """Called by the reactor."""
        self._ended(reason)


class Silence:
    """How long an edge has said nothing, though it was asked and the core would have heard it.

    To be looked at every `PING_INTERVAL` seconds, from `now` on.
    """

    __slots__ = ("_due", "_intervals")

    def __init__(self, now: float) -> None:
        self._due = now + PING_INTERVAL
        self._intervals = 0

    def too_long(self, now: float, *, heard: bool) -> bool:
        """Whether the edge hangs; `heard` says whether something has come since the last time.

        An interval that was longer does not count: the core was stopped, perhaps with its edges,
        or it, or the whole machine, has too much to do.
        """
        if heard:
            self._intervals = 0
        elif now - self._due < _LATE:
            self._intervals += 1
        self._due = now + PING_INTERVAL
        return self._intervals >= _MOST_SILENT


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
        self._ping: IDelayedCall | None = None
        self._stopping = False
        self.listening: Deferred[None] | None = Deferred()
        self._stopped: Deferred[None] | None = None
        self._ended: Deferred[None] | None = None

    @property
    def connections(self) -> int:
        """How many it has that have shaken hands."""
        return 0 if self._channel is None else self._channel.connections

    @property
    def connections_by_unix(self) -> int:
        """How many of them came through Unix sockets."""
        return 0 if self._channel is None else self._channel.connections_by_unix

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
        arguments = (*_WITHOUT_INTERRUPTS, sys.executable, "-P", "-m", "smpd.edge")
        try:
            self._process = edges.reactor.spawnProcess(
                _Watch(self._has_ended),
                arguments[0],
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
        self._ask_again(Silence(self._started_at))

    def show(self, identity: RelayIdentity) -> None:
        """Lets the edge show this identity from now on."""
        self._tell(Kind.IDENTITY, encode_identity(identity))

    def _ask_again(self, silence: Silence) -> None:
        """Asks whether it is alive, and again every few seconds; ends it if it never is."""
        self._tell(Kind.PING)
        self._ping = self._edges.reactor.callLater(PING_INTERVAL, self._check, silence)

    def _check(self, silence: Silence) -> None:
        self._ping = None
        channel = self._channel
        if channel is None:
            return
        heard, channel.heard = channel.heard, False
        if silence.too_long(self._edges.reactor.seconds(), heard=heard):
            self.log.error(
                "an edge process has not answered for {seconds:.0f} seconds: it is ended",
                seconds=_MOST_SILENT * PING_INTERVAL,
            )
            self._kill()
        else:
            self._ask_again(silence)

    def _ask_no_more(self) -> None:
        if self._ping is not None:
            self._ping.cancel()
            self._ping = None

    def stop_accepting(self) -> Deferred[None]:
        """Lets it accept no more connections; fires when what it has received is here."""
        self._stopping = True
        # It has its time for that, and is ended when that is over.
        self._ask_no_more()
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
        self._ask_no_more()
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
    def connections_by_unix(self) -> int:
        """How many of them came through Unix sockets."""
        return sum(process.connections_by_unix for process in self.processes)

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
