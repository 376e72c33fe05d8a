"""Names of hosts, looked up in threads that nobody waits for.

A lookup takes as long as the servers of a name let it, which may be minutes if somebody else
chooses the name. In the reactor's threads, of which there are few, lookups would hold up all other
work that is done there, and the end of the process, which waits for them.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IResolutionReceiver,
)
from zope.interface import implementer

_MOST_THREADS: Final = 128
_MOST_WAITING: Final = 1024
_WAITING_TIME: Final = 45.0
"""Seconds after which nobody waits for a lookup that has not begun."""

_TYPES: Final[dict[int, Any]] = {socket.AF_INET: IPv4Address, socket.AF_INET6: IPv6Address}


@implementer(IHostResolution)
class _Lookup:
    def __init__(self, name: str, receiver: Any, until: float, find: Callable[[], Any]) -> None:
        self.name = name
        self.receiver = receiver
        self.until = until
        self.find = find
        self.cancelled = False

    def cancel(self) -> None:
        """See `IHostResolution`. The thread goes on, if there is one."""
        self.cancelled = True

    def complete(self, addresses: Sequence[IAddress] = ()) -> None:
        """Tells the receiver."""
        if self.cancelled:
            return
        for each in addresses:
            self.receiver.addressResolved(each)
        self.receiver.resolutionComplete()


@implementer(IHostnameResolver)
class ThreadedResolver:
    """Looks names up as the system does, each in a thread that ends with it or with the process.

    There are at most `most_threads`; `most_waiting` lookups more wait for one of them to end, and
    others find nothing. Names of onion services are found nowhere, and nobody is asked for them
    (RFC 7686).
    """

    def __init__(
        self,
        reactor: Any,
        *,
        most_threads: int = _MOST_THREADS,
        most_waiting: int = _MOST_WAITING,
        getaddrinfo: Callable[..., Any] = socket.getaddrinfo,
    ) -> None:
        self._reactor = reactor
        self._most_threads = most_threads
        self._most_waiting = most_waiting
        self._getaddrinfo = getaddrinfo
        # All of this is the reactor's thread's; the others know their lookup only.
        self._running = 0
        self._waiting: deque[_Lookup] = deque()

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See `IHostnameResolver`."""
        types = tuple(addressTypes or _TYPES.values())
        kind = socket.SOCK_STREAM if transportSemantics == "TCP" else socket.SOCK_DGRAM

        def find() -> list[IAddress]:
            found = self._getaddrinfo(hostName, portNumber, socket.AF_UNSPEC, kind)
            made: list[IAddress] = [
                _TYPES[family](transportSemantics, *where)
                for family, _, _, _, where in found
                if family in _TYPES
            ]
            return [each for each in made if isinstance(each, types)]

        until = self._reactor.seconds() + _WAITING_TIME
        lookup = _Lookup(hostName, resolutionReceiver, until, find)
        resolutionReceiver.resolutionBegan(lookup)
        if hostName.rstrip(".").lower().rpartition(".")[2] == "onion":
            lookup.complete()
        elif self._running < self._most_threads:
            self._start(lookup)
        elif len(self._waiting) < self._most_waiting:
            self._waiting.append(lookup)
        else:
            lookup.complete()
        return lookup

    def _start(self, lookup: _Lookup) -> None:
        # Daemon threads are those that Python does not wait for when it ends.
        thread = Thread(target=self._find, args=(lookup,), name="name lookup", daemon=True)
        self._running += 1
        try:
            thread.start()
        except RuntimeError:
            # The system has no more threads.
            self._running -= 1
            lookup.complete()

    def _find(self, lookup: _Lookup) -> None:
        """In a thread of its own."""
        addresses: list[IAddress] = []
        try:
            addresses = lookup.find()
        except (OSError, ValueError):
            # Nothing has that name, or nothing can: what is too long for the DNS is a UnicodeError.
            pass
        finally:
            self._reactor.callFromThread(self._found, lookup, addresses)

    def _found(self, lookup: _Lookup, addresses: list[IAddress]) -> None:
        self._running -= 1
        while self._waiting and self._running < self._most_threads:
            self._start_waiting(self._waiting.popleft())
        lookup.complete(addresses)

    def _start_waiting(self, lookup: _Lookup) -> None:
        if lookup.cancelled or lookup.until < self._reactor.seconds():
            lookup.complete()
        else:
            self._start(lookup)
