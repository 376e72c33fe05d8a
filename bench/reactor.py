"""A benchmark's coroutine, run by Twisted's reactor in this process."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from bench.running import interruptions_held

__all__ = ["run_in_reactor"]

_T = TypeVar("_T")
_AWAKE: Final = 0.5
"""Seconds between looks at signals."""


def run_in_reactor(run: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """What the coroutine that `run` makes returns or raises; once only in a process.

    SIGTERM and Ctrl-C end it, where `bench.running.ended_by_signals` applies: raised inside of the
    reactor they would be a line in its log. It hears of no process's end (SIGCHLD): start them with
    `bench.running.Process`, not with the reactor.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    outcome: list[_T | Failure] = []

    def stop() -> None:
        with suppress(ReactorNotRunning):
            reactor.stop()

    def start() -> None:
        # A signal that comes right before the reactor waits is seen when that has ended.
        LoopingCall(lambda: None).start(_AWAKE)
        done: Deferred[Any] = Deferred.fromCoroutine(run()).addBoth(outcome.append)
        done.addBoth(lambda _: stop())

    reactor.callWhenRunning(start)
    with interruptions_held(lambda: reactor.callFromThread(stop)):
        reactor.run(installSignalHandlers=False)
    (result,) = outcome
    if isinstance(result, Failure):
        result.raiseException()
    return result
