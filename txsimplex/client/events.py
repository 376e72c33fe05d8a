"""Events of a connection, in a buffer with a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred

from txsimplex.smp.transmissions import Received


class EventBuffer:
    """Holds the events that nobody has taken yet, and asks for a pause when they are many.

    It is an async iterator, for any number of readers that share the events; it
    ends when the connection is closed and the events that came before are taken.
    `pause` is called when `limit` events wait, `resume` when half of them are gone.
    """

    def __init__(
        self, limit: int, pause: Callable[[], object], resume: Callable[[], object]
    ) -> None:
        if limit < 1:
            raise ValueError("a buffer holds at least one event")
        self._limit = limit
        self._pause = pause
        self._resume = resume
        self._events: deque[Received] = deque()
        self._readers: deque[Deferred[None]] = deque()
        self._paused = False
        self._closed = False

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Received) -> None:
        """Adds an event, also above the limit: what has arrived is never dropped."""
        self._events.append(event)
        if self._readers:
            self._readers.popleft().callback(None)
        if not self._paused and len(self._events) >= self._limit:
            self._paused = True
            self._pause()

    def close(self) -> None:
        """No more events will come."""
        self._closed = True
        while self._readers:
            self._readers.popleft().callback(None)

    def __aiter__(self) -> EventBuffer:
        return self

    async def __anext__(self) -> Received:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            reader: Deferred[None] = Deferred(self._readers.remove)
            self._readers.append(reader)
            await reader
        event = self._events.popleft()
        if self._paused and len(self._events) * 2 <= self._limit:
            self._paused = False
            if not self._closed:
                self._resume()
        return event
