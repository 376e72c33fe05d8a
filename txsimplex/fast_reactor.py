"""An epoll reactor that takes the shortest way from an event to its descriptor.

Twisted's own enters a logging context for every event. With 200 busy connections that is a quarter
of what a block costs.
"""

from __future__ import annotations

import errno
import select
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet import epollreactor
from twisted.internet.main import installReactor
from twisted.python import log

_EVENTS_PER_POLL = 1024
_MORE_TURNS = 2
_NEEDED = ("_poller", "_selectables", "_disconnectSelectable", "_doReadOrWrite")


class FastEPollReactor(epollreactor.EPollReactor):
    """``EPollReactor`` without a logging context around each event."""

    def __init__(self) -> None:
        self._due: list[Callable[[], object]] = []
        self._more_turns = _MORE_TURNS
        super().__init__()

    def callBeforeWaiting(self, function: Callable[[], object]) -> None:
        """Call a function once, when there is nothing else to do; it cannot be cancelled.

        That is before the reactor waits, or after two more turns in which it had no reason to. So
        what is gathered for the function becomes more with the load.
        """
        self._due.append(function)

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, at most ``timeout`` seconds, and handle them."""
        if self._due:
            if self._more_turns and self.running and self._poll(0):
                self._more_turns -= 1
                return
            self._more_turns = _MORE_TURNS
            timeout = self._call_due(timeout)
        self._poll(timeout)

    doIteration = doPoll

    def _poll(self, timeout: float | None) -> bool:
        """Wait for events and handle them; whether there were any."""
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, _EVENTS_PER_POLL)
        except OSError as error:
            if error.errno == errno.EINTR:
                return False
            raise
        selectables: dict[int, Any] = self._selectables
        readable = select.EPOLLIN
        for fd, event in events:
            try:
                selectable = selectables[fd]
            except KeyError:
                # An event before this one has closed it.
                continue
            if event == readable:
                try:
                    why = selectable.doRead()
                except BaseException as error:  # noqa: BLE001  (as Twisted does)
                    log.err()
                    why = error
                if why:
                    self._lose(selectable, why)
            else:
                self._handle(selectable, fd, event)
        return bool(events)

    def _call_due(self, timeout: float | None) -> float | None:
        """Call what is to be called before waiting; how long may be waited then."""
        due, self._due = self._due, []
        for function in due:
            try:
                function()
            except Exception:  # noqa: BLE001
                log.err()
        if self._due:
            return 0
        # There may be new calls to be made in time.
        return timeout if timeout == 0 else self.timeout()

    def _handle(self, selectable: Any, fd: int, event: int) -> None:
        try:
            self._doReadOrWrite(selectable, fd, event)
        except Exception:  # noqa: BLE001
            log.err()

    def _lose(self, selectable: Any, why: BaseException) -> None:
        try:
            self._disconnectSelectable(selectable, why, True)
        except Exception:  # noqa: BLE001
            log.err()


def replace_default() -> None:
    """Make this reactor the global one where Twisted's default is, which nobody chose or uses yet.

    When twistd looks for plugins the first time, it loads those of all packages, and some of them
    import the reactor. Who has kept it from then must not use it.
    """
    present: Any = sys.modules["twisted.internet.reactor"]
    chosen = "twisted.internet.default" not in sys.modules
    used = present._started or present.getDelayedCalls()
    if chosen or used or type(present) is not epollreactor.EPollReactor:
        return
    del sys.modules["twisted.internet.reactor"]
    install()


def install() -> None:
    """Make this reactor the global one, or Twisted's own where that has changed too much."""
    reactor: Any = FastEPollReactor()
    if not all(hasattr(reactor, name) for name in _NEEDED):
        reactor = epollreactor.EPollReactor()
    installReactor(reactor)
