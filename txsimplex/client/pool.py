"""The connections of a proxy: one for each relay, for all senders (smp-proxy.md §5)."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from txsimplex.addresses import RelayLocation
from txsimplex.client.errors import (
    ClientError,
    DisconnectedError,
    HandshakeError,
    TimedOutError,
)
from txsimplex.client.link import BROKER, NETWORK, RelayLink
from txsimplex.client.session import Session
from txsimplex.keys import Random
from txsimplex.smp.errors import Error

ERROR_TIME: Final = 30.0
"""Seconds for which a relay that could not be reached is not tried again (§5)."""
_FAILURES_KEPT: Final = 10_000
IDLE_TIME: Final = 1200.0
"""Seconds after which a connection that nobody uses is closed (§5)."""
_SWEEP_TIME: Final = 60.0
"""Seconds between looks at what is over."""
_MOST_HELD: Final = 4096
"""So many may wait for relays that could not be reached; others are told at once."""
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 5.0

Connect = Callable[[RelayLocation], Awaitable[Session]]
"""Connects to a relay, as a proxy. Raises `ClientError` or `UnreachableError`."""


_Key = bytes
"""What stands for a relay: a digest of its location, which its sender may have made 16 KiB long."""


def _key(location: RelayLocation) -> _Key:
    return hashlib.blake2b(location.encode(), digest_size=32).digest()


class UnreachableError(Exception):
    """A relay cannot be reached; `error` is what a sender is told."""

    def __init__(self, error: Error) -> None:
        super().__init__(str(error))
        self.error = error


def reason_for_senders(error: BaseException | None) -> Error:
    """What a sender is told of a connection that could not be made (§4)."""
    if isinstance(error, UnreachableError):
        return error.error
    if isinstance(error, HandshakeError):
        return error.error.within(*BROKER, "TRANSPORT")
    return NETWORK


@dataclass(slots=True)
class _Attempts:
    """Attempts to connect to the relay at `location`, and those who wait for it.

    `connecting` is the one under way, `again` when the next one is.
    `until` is when there will be no more, in seconds of the clock; `pause` the seconds before the
    next one.
    """

    location: RelayLocation
    until: float
    pause: float = _FIRST_PAUSE
    waiting: list[Deferred[RelayLink]] = field(default_factory=list)
    held: int = 0
    connecting: Deferred[Session] | None = None
    again: IDelayedCall | None = None


class RelayPool:
    """Connects once to each relay, whoever asks for it, and remembers what failed for a while.

    A relay that cannot be reached is tried again, less and less often, for `retry_time` seconds.
    All that wait for it, at most 4,096 for all relays, learn how it ended then.

    `most_forwarded` is how many commands to one relay may be without an answer, `most_relays`
    how many connections there may be, also those that are being made or closed: for one more,
    that which was not used for the longest time is left, if nothing is under way to it. What
    is not used for twenty minutes is closed, and at once what nothing can be forwarded by.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        clock: IReactorTime,
        most_forwarded: int = 256,
        most_relays: int = 10_000,
        error_time: float = ERROR_TIME,
        retry_time: float = 0.0,
        random: Random = os.urandom,
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._most = most_forwarded
        self._most_relays = most_relays
        self._error_time = error_time
        self._retry_time = retry_time
        self._random = random
        # In the order of use, the one used last at the end.
        self._links: OrderedDict[_Key, RelayLink] = OrderedDict()
        self._keys: dict[RelayLink, _Key] = {}
        self._sessions: dict[bytes, RelayLink] = {}
        # Those that were told to close and have not yet.
        self._leaving: dict[RelayLink, None] = {}
        self._connecting: dict[_Key, _Attempts] = {}
        self._held = 0
        # In the order of time.
        self._failures: OrderedDict[_Key, tuple[float, Error]] = OrderedDict()
        self._sweeping: IDelayedCall | None = None
        self._closed = False

    def __len__(self) -> int:
        """How many relays are connected."""
        return len(self._links)

    def session(self, session_id: bytes) -> RelayLink | None:
        """The connection with this session id."""
        link = self._sessions.get(session_id)
        if link is not None:
            self._links.move_to_end(self._keys[link])
        return link

    def link(self, location: RelayLocation) -> Deferred[RelayLink]:
        """The connection to a relay; fails with `UnreachableError`."""
        waiting: Deferred[RelayLink] = Deferred()
        key = _key(location)
        link = self._links.get(key)
        failed = self._failures.get(key)
        if link is not None:
            self._links.move_to_end(key)
            link.used_at = self._clock.seconds()
            waiting.callback(link)
        elif failed is not None and failed[0] > self._clock.seconds():
            waiting.errback(UnreachableError(failed[1]))
        elif self._closed or not self._has_room():
            waiting.errback(UnreachableError(NETWORK))
        else:
            self._failures.pop(key, None)
            self._join(key, location, waiting)
        return waiting

    def _has_room(self) -> bool:
        """Whether there may be one more relay; makes room if it can."""
        while len(self._links) + len(self._leaving) + len(self._connecting) >= self._most_relays:
            link = next(iter(self._leaving), None) or self._unused()
            if link is None:
                return False
            self._drop(link)
            # At once: one that closes in order would be there beside the one it makes room for.
            link.abort()
        return True

    def _unused(self) -> RelayLink | None:
        """Of the connections by which nothing is under way, that used longest ago."""
        return next((link for link in self._links.values() if not link.load), None)

    def _join(self, key: _Key, location: RelayLocation, waiting: Deferred[RelayLink]) -> None:
        """Waits for the attempts to connect, which begin with the first to wait."""
        attempts = self._connecting.get(key)
        if attempts is None:
            attempts = _Attempts(location, self._clock.seconds() + self._retry_time)
            attempts.waiting.append(waiting)
            self._connecting[key] = attempts
            self._attempt(key)
        elif attempts.again is None or self._hold(attempts, 1):
            attempts.waiting.append(waiting)
        else:
            waiting.errback(UnreachableError(NETWORK))

    def _hold(self, attempts: _Attempts, more: int) -> bool:
        """Whether so many more may wait for a relay that could not be reached."""
        if self._held + more > _MOST_HELD:
            return False
        self._held += more
        attempts.held += more
        return True

    def _attempt(self, key: _Key) -> None:
        attempts = self._connecting[key]
        connecting: Deferred[Session] = ensureDeferred(self._open(attempts.location))
        attempts.connecting = connecting
        connecting.addCallbacks(
            self._connected,
            self._failed,
            callbackArgs=(key,),
            errbackArgs=(key,),
        )

    def _attempt_again(self, key: _Key) -> None:
        self._connecting[key].again = None
        self._attempt(key)

    def _try_later(self, key: _Key, error: BaseException | None) -> bool:
        """Whether there is another attempt after one that failed with `error`."""
        attempts = self._connecting[key]
        next_at = self._clock.seconds() + attempts.pause
        passing = isinstance(error, (DisconnectedError, TimedOutError))
        if not passing or next_at >= attempts.until:
            return False
        if not self._hold(attempts, len(attempts.waiting) - attempts.held):
            return False
        attempts.again = self._clock.callLater(attempts.pause, self._attempt_again, key)
        attempts.pause = min(2 * attempts.pause, _LONGEST_PAUSE)
        return True

    def _end_attempts(self, key: _Key) -> list[Deferred[RelayLink]]:
        """Who has waited for them."""
        attempts = self._connecting.pop(key)
        self._held -= attempts.held
        return attempts.waiting

    async def _open(self, location: RelayLocation) -> Session:
        return await self._connect(location)

    def _connected(self, session: Session, key: _Key) -> None:
        if self._closed:
            session.blocks.close()
            return
        link = RelayLink(
            session,
            self._drop,
            most=self._most,
            clock=self._clock,
            random=self._random,
        )
        waiting = self._end_attempts(key)
        reason = self._reason_against(link)
        if reason is not None:
            if reason is not NETWORK:
                self._remember(key, reason)
            self._leave(link)
            for each in waiting:
                each.errback(UnreachableError(reason))
            return
        self._links[key] = link
        self._keys[link] = key
        self._sessions[link.session_id] = link
        self._sweep_later()
        for each in waiting:
            each.callback(link)

    def _reason_against(self, link: RelayLink) -> Error | None:
        """Why senders cannot have a connection that was just made, if they cannot."""
        if not link.connected:
            return NETWORK
        key = link.key()
        return key if isinstance(key, Error) else None

    def _failed(self, failure: Failure, key: _Key) -> None:
        if self._closed:
            # However an attempt ends that was cancelled.
            failure.trap(ClientError, UnreachableError, CancelledError)
            return
        error = failure.value
        if self._try_later(key, error):
            return
        expected = isinstance(error, (ClientError, UnreachableError))
        reason = reason_for_senders(error) if expected else Error(("INTERNAL",))
        waiting = self._end_attempts(key)
        self._remember(key, reason)
        for each in waiting:
            each.errback(UnreachableError(reason))
        if not expected:
            failure.raiseException()

    def _remember(self, key: _Key, reason: Error) -> None:
        """Does not try a relay again for a while."""
        self._forget()
        if len(self._failures) >= _FAILURES_KEPT:
            self._failures.popitem(last=False)
        self._failures[key] = (self._clock.seconds() + self._error_time, reason)
        self._sweep_later()

    def _forget(self) -> None:
        """Forgets failures that are over."""
        now, failures = self._clock.seconds(), self._failures
        while failures and next(iter(failures.values()))[0] <= now:
            failures.popitem(last=False)

    # -- what is over

    def _sweep_later(self) -> None:
        """One timer for all, so that using a connection costs none."""
        if self._sweeping is None and not self._closed and (self._links or self._failures):
            self._sweeping = self._clock.callLater(_SWEEP_TIME, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        self._forget()
        self._close_unused()
        self._sweep_later()

    def _close_unused(self) -> None:
        """Closes connections that nobody uses."""
        since = self._clock.seconds() - IDLE_TIME
        # Those after one that was used are not older.
        while self._links and (link := next(iter(self._links.values()))).used_at <= since:
            self._leave(link)

    def _leave(self, link: RelayLink) -> None:
        """Closes a connection in order; it counts as one until it is closed."""
        self._drop(link)
        if link.connected:
            self._leaving[link] = None
            link.close()

    def _drop(self, link: RelayLink) -> None:
        """Forgets a connection that has ended or is about to."""
        self._leaving.pop(link, None)
        key = self._keys.pop(link, None)
        if key is not None:
            del self._links[key]
            if self._sessions.get(link.session_id) is link:
                del self._sessions[link.session_id]

    def close(self) -> None:
        """Ends all connections, and makes no more."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for key, attempts in list(self._connecting.items()):
            waiting = self._end_attempts(key)
            if attempts.again is not None:
                attempts.again.cancel()
            if attempts.connecting is not None:
                attempts.connecting.cancel()
            for each in waiting:
                each.errback(UnreachableError(NETWORK))
        for link in list(self._links.values()):
            link.close()
