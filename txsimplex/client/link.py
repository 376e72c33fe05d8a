"""A proxy's connection to a relay: commands of many senders, answered in any order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from txsimplex.boxes import BoxError, BoxKey
from txsimplex.client.errors import DisconnectedError
from txsimplex.client.session import Session
from txsimplex.encoding import ParseError
from txsimplex.keys import Random
from txsimplex.smp import errors
from txsimplex.smp.commands import Rfwd
from txsimplex.smp.errors import Error
from txsimplex.smp.forwarding import Forwarded, open_rres, seal_rfwd
from txsimplex.smp.messages import Err, Message, Pkey, Rres
from txsimplex.smp.transmissions import Received, TooLarge, pack
from txsimplex.smp.versions import VersionRange

ANSWER_TIME: Final = 30.0
"""Seconds that a relay has to answer a forwarded command (§5)."""
FORWARDED_VERSIONS: Final = VersionRange(8, 17)
"""What senders are told of a relay's versions at most: 17 hides what it may come to (§1.2)."""

_CHECK_TIME: Final = 1.0
_TIMEOUTS: Final = 3
_SILENCE: Final = 900.0
"""With so many answers missing one after the other, seconds after the last block from the
relay until the connection is given up (§5)."""
_STUCK: Final = 45.0
"""Seconds in which a relay takes nothing of what is sent until the connection is given up."""
_NONCE_SIZE: Final = 24
_SHOWN: Final = 32
"""Characters of an unexpected answer that the sender is told of."""

Answered = Callable[["bytes | Error"], None]
"""Called with the answer for the sender, sealed, or with what went wrong as the sender is told."""

BROKER: Final = ("PROXY", "BROKER")
TIMED_OUT: Final = Error((*BROKER, "TIMEOUT"))
NETWORK: Final = Error((*BROKER, "NETWORK", "FAILED"))
VERSION: Final = Error((*BROKER, "TRANSPORT", "VERSION"))
NO_AUTH: Final = Error((*BROKER, "TRANSPORT", "NO_AUTH"))
LARGE_MSG: Final = Error((*BROKER, "TRANSPORT", "LARGE_MSG"))
BAD_RESPONSE: Final = Error((*BROKER, "RESPONSE"), "BLOCK")


class _Waiting:
    """A command that was forwarded."""

    __slots__ = ("answered", "deadline")

    def __init__(self, answered: Answered, deadline: float) -> None:
        self.answered = answered
        self.deadline = deadline


class RelayLink:
    """A session with a relay in which commands are forwarded.

    `most` is how many of them may be without an answer; more wait here, as all do while the
    relay takes no more. `lost` is called when the connection has ended. `used_at` is when it was
    used, in seconds of the clock.
    """

    def __init__(
        self,
        session: Session,
        lost: Callable[[RelayLink], None],
        *,
        most: int,
        clock: IReactorTime,
        random: Random = os.urandom,
    ) -> None:
        self._session = session
        self._lost = lost
        self._most = most
        self._clock = clock
        self._random = random
        self._box = None if session.secret is None else BoxKey(session.secret)
        self._sent: dict[bytes, _Waiting] = {}
        self._queue: deque[tuple[Forwarded, _Waiting]] = deque()
        self._timeouts = 0
        self._buffered = 0
        self._moved_at = 0.0
        self._heard_at = self.used_at = clock.seconds()
        self._check = LoopingCall(self._check_times)
        self._check.clock = clock
        session.blocks.when_lost(self._ended)
        session.blocks.when_room(self._room)
        session.blocks.deliver_to(self._receive)

    @property
    def session_id(self) -> bytes:
        """The session's id, by which senders name it."""
        return self._session.session_id

    @property
    def connected(self) -> bool:
        """Whether the connection has not ended yet."""
        return self._session.blocks.connected

    @property
    def load(self) -> int:
        """Commands without an answer."""
        return len(self._sent) + len(self._queue)

    def key(self) -> Pkey | Error:
        """What senders are told of the relay, or why nothing can be forwarded to it (§1.2)."""
        session = self._session
        versions = session.versions.intersection(FORWARDED_VERSIONS)
        if versions is None:
            return VERSION
        if session.shown is None or self._box is None:
            return NO_AUTH
        return Pkey(session.session_id, versions, session.shown.chain, session.shown.signed_key)

    def forward(self, forwarded: Forwarded, answered: Answered) -> None:
        """Forwards a command; `answered` is called once, in any case."""
        if self._session.version < FORWARDED_VERSIONS.minimum or self._box is None:
            answered(VERSION)
            return
        if not self._session.blocks.connected:
            answered(NETWORK)
            return
        self.used_at = self._clock.seconds()
        waiting = _Waiting(answered, self.used_at + ANSWER_TIME)
        if not self._check.running:
            self._moved_at = self.used_at
            self._check.start(_CHECK_TIME, now=False)
        if self._queue or not self._may_send():
            self._queue.append((forwarded, waiting))
        else:
            self._send(forwarded, waiting)

    def _may_send(self) -> bool:
        # What the stream does not take would stay in memory when its time is over.
        return len(self._sent) < self._most and self._session.blocks.writable

    def _send(self, forwarded: Forwarded, waiting: _Waiting) -> None:
        assert self._box is not None
        nonce = self._random(_NONCE_SIZE)
        framing = self._session.framing
        command = Rfwd(seal_rfwd(self._box, nonce, forwarded)).encode(self._session.version)
        sent = framing.transmission(framing.authorized(nonce, b"", command), b"")
        (content,) = pack([sent])
        if isinstance(content, TooLarge):
            waiting.answered(LARGE_MSG)
            return
        self._sent[nonce] = waiting
        self._session.send(content)

    # -- answers

    def _receive(self, block: bytes) -> None:
        self._heard_at = self._clock.seconds()
        self._timeouts = 0
        try:
            content = self._session.open(block)
        except (BoxError, ParseError):
            self.close()
            return
        for received in self._session.framing.read_messages(content):
            waiting = self._sent.pop(received.corr_id, None)
            if waiting is not None:
                waiting.answered(self._answer(received))
        self._send_more()

    def _room(self) -> None:
        """The relay has taken some of what was sent."""
        self._moved_at = self._clock.seconds()
        self._send_more()

    def _send_more(self) -> None:
        while self._queue and self._may_send():
            self._send(*self._queue.popleft())

    def _answer(self, received: Received) -> bytes | Error:
        """What the sender is told of an answer (§4)."""
        message = received.message
        if isinstance(message, Rres):
            assert self._box is not None
            try:
                return open_rres(self._box, received.corr_id, message.response)
            except BoxError:
                return errors.CRYPTO
            except ParseError:
                return BAD_RESPONSE
        if isinstance(message, Err):
            return message.error.within("PROXY", "PROTOCOL")
        if isinstance(message, Message):
            return Error((*BROKER, "UNEXPECTED"), type(message).__name__.upper()[:_SHOWN])
        return Error((*BROKER, "RESPONSE"), str(message)[:_SHOWN])

    # -- time

    def _check_times(self) -> None:
        """Gives up what has waited for too long, and a relay that says nothing any more."""
        now = self._clock.seconds()
        # The first ones are the oldest.
        for nonce, waiting in list(self._sent.items()):
            if waiting.deadline > now:
                break
            del self._sent[nonce]
            self._timeouts += 1
            waiting.answered(TIMED_OUT)
        while self._queue and self._queue[0][1].deadline <= now:
            self._queue.popleft()[1].answered(TIMED_OUT)
        silent = self._timeouts >= _TIMEOUTS and now - self._heard_at > _SILENCE
        if silent or self._is_stuck(now):
            self._session.blocks.abort()
            return
        self._send_more()
        # Thousands of idle connections would otherwise keep the reactor busy.
        waits = self.load or self._buffered or self._timeouts >= _TIMEOUTS
        if not waits and self._check.running:
            self._check.stop()

    def _is_stuck(self, now: float) -> bool:
        """Whether the relay has taken nothing for long, though there is something for it."""
        before, self._buffered = self._buffered, self._session.blocks.buffered
        if not self._buffered or self._buffered < before:
            self._moved_at = now
        return now - self._moved_at > _STUCK

    # -- the end

    def close(self) -> None:
        """Ends the connection."""
        self._session.blocks.close()

    def abort(self) -> None:
        """Ends the connection, and waits for nothing."""
        self._session.blocks.abort()

    def when_lost(self, watcher: Callable[[RelayLink], object]) -> None:
        """Calls `watcher` once when the connection has ended, at once if it has already."""
        self._session.blocks.when_lost(lambda error: watcher(self))

    def _ended(self, error: DisconnectedError) -> None:
        if self._check.running:
            self._check.stop()
        waiting = [*self._sent.values(), *(each for _, each in self._queue)]
        self._sent.clear()
        self._queue.clear()
        self._lost(self)
        for each in waiting:
            each.answered(NETWORK)
