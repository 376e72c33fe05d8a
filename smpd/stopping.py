"""What ends the relay: the first signal in order, the second one at once."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorCore

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping(Service):
    """Lets a second SIGTERM or SIGINT end the process without further delay.

    The first one is Twisted's, which stops all services in order. That may take some
    seconds, for connections to take what is buffered for them. Nothing is lost by not
    waiting for it, since what was answered is safe already: all but the snapshot of a
    store in memory.
    """

    def __init__(self, reactor: IReactorCore) -> None:
        self._reactor = reactor
        self._former: dict[int, Any] = {}

    def startService(self) -> None:
        """Begins to watch when the reactor has put its own handlers in place."""
        super().startService()
        self._reactor.callWhenRunning(self._watch)

    def _watch(self) -> None:
        for number in _SIGNALS:
            former = signal.getsignal(number)
            if callable(former):
                self._former[number] = former
                signal.signal(number, self._first)

    def _first(self, number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, _at_once)
        self._former[number](number, frame)


def _at_once(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)
