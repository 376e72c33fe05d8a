"""Tests that run at several versions of the protocol."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, DeferredList

Test = Callable[..., Coroutine[Any, Any, None]]


def at_versions(*versions: int) -> Callable[[Test], Callable[..., Any]]:
    """Runs a coroutine that takes `version` as one test, at all `versions` at the same time.

    So what the relay does at intervals is waited for once. A failure says at which version.
    """

    def decorate(test: Test) -> Callable[..., Any]:
        @functools.wraps(test)
        async def at_all(*arguments: Any, **fixtures: Any) -> None:
            bound = functools.partial(test, *arguments, **fixtures)
            await _all_of([_at(version, bound) for version in versions])

        signature = inspect.signature(test)
        fixtures = [p for p in signature.parameters.values() if p.name != "version"]
        any_test: Any = at_all
        any_test.__signature__ = signature.replace(parameters=fixtures)
        decorated: Callable[..., Any] = ensureDeferred(at_all)
        return decorated

    return decorate


async def _at(version: int, test: Test) -> None:
    try:
        await test(version=version)
    except Exception as error:
        error.add_note(f"at version {version}")
        raise


async def _all_of(tests: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Waits until all have ended, then raises what the first of those that failed did."""
    running = [Deferred.fromCoroutine(test) for test in tests]
    results: list[tuple[bool, Any]] = await DeferredList(running, consumeErrors=True)
    for succeeded, failure in results:
        if not succeeded:
            failure.raiseException()
