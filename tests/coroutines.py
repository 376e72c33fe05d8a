"""Tests that are coroutines run in the reactor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

P = ParamSpec("P")
T = TypeVar("T")

TIME_LIMIT = 60.0
"""Seconds after which a test that still waits has failed."""


def in_reactor(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Any]:
    """A test from a coroutine; fixtures are its arguments as usual."""

    @functools.wraps(test)
    async def limited(*args: P.args, **kwargs: P.kwargs) -> None:
        await within(TIME_LIMIT, test(*args, **kwargs))

    decorated: Callable[P, Any] = pytest_twisted.ensureDeferred(limited)
    return decorated


async def within(seconds: float, coroutine: Coroutine[Any, Any, T]) -> T:
    """What `coroutine` gives; raises Twisted's `TimeoutError` after so many seconds."""
    from twisted.internet import reactor

    return await Deferred.fromCoroutine(coroutine).addTimeout(seconds, IReactorTime(reactor))


async def sleep(seconds: float) -> None:
    """Lets the reactor go on for so many seconds."""
    from twisted.internet import reactor

    done: Deferred[None] = Deferred()
    IReactorTime(reactor).callLater(seconds, done.callback, None)
    await done


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits until `condition` holds; fails when it does not within so many seconds."""
    for _ in range(int(seconds * 100)):
        if condition():
            return
        await sleep(0.01)
    raise AssertionError("waited in vain")


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Runs `coroutine` to its end, in the setup or teardown of a fixture."""
    result: T = pytest_twisted.blockon(Deferred.fromCoroutine(coroutine))
    return result
