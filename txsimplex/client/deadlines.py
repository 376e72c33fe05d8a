"""Time limits for what is waited for."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from txsimplex.client.errors import TimedOutError

T = TypeVar("T")


async def within(seconds: float | None, waited_for: Deferred[T], clock: IReactorTime) -> T:
    """What `waited_for` gives within `seconds`, without a limit where that is None.

    After them it is cancelled and `TimedOutError` raised.
    """
    if seconds is not None:
        waited_for.addTimeout(seconds, clock, onTimeoutCancel=_timed_out)
    return await waited_for


def _timed_out(_: Any, seconds: float) -> NoReturn:
    raise TimedOutError(f"nothing within {seconds:g} seconds")
