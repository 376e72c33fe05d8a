"""The connections of a proxy: one for each relay, for all senders (smp-proxy.md §5)."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from txsimplex.addresses import RelayLocation
from txsimplex.client.errors import ClientError, HandshakeError
from txsimplex.client.link import BROKER, NETWORK, RelayLink
from txsimplex.client.session import Session
from txsimplex.keys import Random
from txsimplex.smp.errors import Error

ERROR_TIME: Final = 30.0
"""Seconds for which a relay that could not be reached is not tried again (§5)."""
_FAILURES_KEPT: Final = 10_000

Connect = Callable[[RelayLocation], Awaitable[Session]]
"""Connects to a relay, as a proxy. Raises `ClientError` or `UnreachableError`."""


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


class RelayPool:
    """Connects once to each relay, whoever asks for it, and remembers what failed for a while.

    `most_forwarded` is how many commands to one relay may be without an answer, `most_relays`
    how many relays may be connected: for one more, that which was not used for the longest
    time is left, if nothing is under way to it.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        clock: IReactorTime,
        most_forwarded: int = 256,
        most_relays: int = 10_000,
        error_time: float = ERROR_TIME,
        random: Random = os.urandom,
    ) -> None:
        self._connect = connect
        self._clock = clock
        self._most = most_forwarded
        self._most_relays = most_relays
        self._error_time = error_time
        self._random = random
        # In the order of use, the one used last at the end.
        self._links: OrderedDict[RelayLocation, RelayLink] = OrderedDict()
        self._locations: dict[RelayLink, RelayLocation] = {}
        self._sessions: dict[bytes, RelayLink] = {}
        self._connecting: dict[RelayLocation, list[Deferred[RelayLink]]] = {}
        self._failures: dict[RelayLocation, tuple[float, Error]] = {}
        self._closed = False

    def __len__(self) -> int:
        """How many relays are connected."""
        return len(self._links)

    def session(self, session_id: bytes) -> RelayLink | None:
        """The connection with this session id."""
        link = self._sessions.get(session_id)
        if link is not None:
            self._links.move_to_end(self._locations[link])
        return link

    def link(self, location: RelayLocation) -> Deferred[RelayLink]:
        """The connection to a relay; fails with `UnreachableError`."""
        waiting: Deferred[RelayLink] = Deferred()
        link = self._links.get(location)
        failed = self._failures.get(location)
        if link is not None:
            self._links.move_to_end(location)
            waiting.callback(link)
        elif failed is not None and failed[0] > self._clock.seconds():
            waiting.errback(UnreachableError(failed[1]))
        elif self._closed or not self._has_room():
            waiting.errback(UnreachableError(NETWORK))
        else:
            self._failures.pop(location, None)
            self._join(location, waiting)
        return waiting

    def _has_room(self) -> bool:
        """Whether there may be one more relay; makes room if it can."""
        if len(self._links) + len(self._connecting) < self._most_relays:
            return True
        for link in self._links.values():
            if not link.load:
                link.close()
                return True
        return False

    def _join(self, location: RelayLocation, waiting: Deferred[RelayLink]) -> None:
        """Waits for the one attempt to connect."""
        others = self._connecting.get(location)
        if others is not None:
            others.append(waiting)
            return
        self._connecting[location] = [waiting]
        connecting: Deferred[Session] = ensureDeferred(self._open(location))
        connecting.addCallbacks(
            self._connected,
            self._failed,
            callbackArgs=(location,),
            errbackArgs=(location,),
        )

    async def _open(self, location: RelayLocation) -> Session:
        return await self._connect(location)

    def _connected(self, session: Session, location: RelayLocation) -> None:
        link = RelayLink(
            session,
            lambda link: self._ended(location, link),
            most=self._most,
            clock=self._clock,
            random=self._random,
        )
        waiting = self._connecting.pop(location)
        if self._closed or not session.blocks.connected:
            link.close()
            for each in waiting:
                each.errback(UnreachableError(NETWORK))
            return
        self._links[location] = link
        self._locations[link] = location
        self._sessions[link.session_id] = link
        for each in waiting:
            each.callback(link)

    def _failed(self, failure: Failure, location: RelayLocation) -> None:
        waiting = self._connecting.pop(location)
        error = failure.value
        expected = isinstance(error, (ClientError, UnreachableError))
        reason = reason_for_senders(error) if expected else Error(("INTERNAL",))
        if len(self._failures) >= _FAILURES_KEPT:
            self._forget_failures()
        self._failures[location] = (self._clock.seconds() + self._error_time, reason)
        for each in waiting:
            each.errback(UnreachableError(reason))
        if not expected:
            failure.raiseException()

    def _forget_failures(self) -> None:
        """Forgets failures that are over, and all if there are none."""
        now = self._clock.seconds()
        left = {where: what for where, what in self._failures.items() if what[0] > now}
        self._failures = left if len(left) < _FAILURES_KEPT else {}

    def _ended(self, location: RelayLocation, link: RelayLink) -> None:
        if self._links.get(location) is link:
            del self._links[location]
            del self._locations[link]
        if self._sessions.get(link.session_id) is link:
            del self._sessions[link.session_id]

    def close(self) -> None:
        """Ends all connections, and makes no more."""
        self._closed = True
        for link in list(self._links.values()):
            link.close()
