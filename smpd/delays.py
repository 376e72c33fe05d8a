"""Delays that make it harder to compare times: both are off unless the operator turns them on.

Who watches the network of a relay sees when a block comes in and when another goes out. A
random delay before delivery hides which of them belong together; a least time of answers to
SEND hides how long the relay has worked on it (docs/private-routing.md).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from smpd.forwarding import Opened
from smpd.relay import Item, Outcome
from txsimplex.smp.commands import Send
from txsimplex.smp.transmissions import Transmission

MOST_LATE = 256
"""Blocks of answers of one connection that may wait for their time before it is not read from."""


class DeliveryDelay:
    """Calls what it is given after a random time, `most` seconds at most.

    `fraction` gives random numbers from 0 to 1, all equally likely.
    """

    def __init__(self, most: float, fraction: Callable[[], float], reactor: IReactorTime) -> None:
        self._most = most
        self._fraction = fraction
        self._call_later = reactor.callLater

    def __call__(self, deliver: Callable[[], None]) -> None:
        """Delivers some time."""
        self._call_later(self._most * self._fraction(), deliver)


def delivery_delay(most: float, reactor: IReactorTime) -> DeliveryDelay | None:
    """A delay of `most` seconds at most; None for none."""
    return DeliveryDelay(most, random.SystemRandom().random, reactor) if most else None


def has_send(items: Sequence[Item]) -> bool:
    """Whether there is a SEND in a block, directly or by way of a proxy."""
    for item in items:
        inner = item.item if type(item) is Opened else item
        if type(inner) is Transmission and type(inner.command) is Send:
            return True
    return False


class LateAnswers:
    """The answers of one connection that are given at a time, `Outcome.due`, in order.

    `answer` gives them. All of a connection wait equally long, so the first is due first.
    """

    __slots__ = ("_answer", "_call", "_reactor", "_waiting")

    def __init__(self, reactor: IReactorTime, answer: Callable[[Outcome], None]) -> None:
        self._reactor = reactor
        self._answer = answer
        self._waiting: deque[Outcome] = deque()
        self._call: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, outcome: Outcome) -> None:
        """Gives these answers when they are due."""
        self._waiting.append(outcome)
        self._plan()

    def _plan(self) -> None:
        if self._waiting and self._call is None:
            left = max(0.0, self._waiting[0].due - self._reactor.seconds())
            self._call = self._reactor.callLater(left, self._give)

    def _give(self) -> None:
        self._call = None
        now = self._reactor.seconds()
        while self._waiting and self._waiting[0].due <= now:
            self._answer(self._waiting.popleft())
        self._plan()

    def settle(self) -> None:
        """Gives all answers now."""
        while self._waiting:
            self._answer(self._waiting.popleft())
        self.forget()

    def forget(self) -> None:
        """The connection is gone."""
        self._waiting.clear()
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()
