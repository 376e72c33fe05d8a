"""What the relay does at intervals: events, notifications, expiry, inactive clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Cooperator, LoopingCall, SchedulerStopped
from twisted.logger import Logger
from twisted.python.failure import Failure

from smpd.conversation import Conversations
from smpd.relay import Relay

_QUEUES_PER_STEP = 1000
"""Queues looked at in one go for expiry: about a millisecond."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Seconds between rounds, with the reference's values (docs/spec/smp-server.md §5, §6, §7).

    `inactive_ttl` None closes no connection for inactivity.
    """

    events: float = 15.0
    notifications: float = 1.5
    message_expiry: float = 7200.0
    notification_expiry: float = 3600.0
    inactive_check: float = 3600.0
    inactive_ttl: float | None = 21600.0


def _one_step() -> bool:
    """The reactor gets its turn after each step."""
    return True


class Rounds(Service):
    """Runs all rounds while the relay runs. A round that fails is logged and tried again."""

    log = Logger()

    def __init__(
        self,
        relay: Relay,
        conversations: Conversations,
        intervals: Intervals,
        reactor: IReactorTime,
    ) -> None:
        self._reactor = reactor
        self._relay = relay
        # The last part: whether the first round is at the start. What is in the store may be
        # of long ago then.
        rounds: list[tuple[float, Callable[[], Any], bool]] = [
            (intervals.events, relay.send_events, False),
            (intervals.notifications, relay.send_notifications, False),
            (intervals.message_expiry, self._expire_queues, True),
            (intervals.notification_expiry, relay.expire_notifications, True),
        ]
        ttl = intervals.inactive_ttl
        if ttl is not None:
            rounds.append((intervals.inactive_check, lambda: conversations.close_idle(ttl), False))
        self._rounds = rounds
        self._loops: list[LoopingCall] = []
        self._cooperator: Cooperator | None = None

    def startService(self) -> None:
        """Expires what is old, and does each round when its interval has passed."""
        super().startService()
        self._cooperator = Cooperator(
            terminationPredicateFactory=lambda: _one_step,
            scheduler=lambda work: self._reactor.callLater(0, work),
        )
        for interval, action, at_start in self._rounds:
            loop = LoopingCall(self._guarded, action)
            loop.clock = self._reactor
            loop.start(interval, now=at_start)
            self._loops.append(loop)

    def stopService(self) -> None:
        """Stops all rounds, also one that is under way."""
        super().stopService()
        for loop in self._loops:
            loop.stop()
        self._loops.clear()
        if self._cooperator is not None:
            self._cooperator.stop()
            self._cooperator = None

    def _guarded(self, action: Callable[[], Any]) -> Deferred[Any]:
        return maybeDeferred(action).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if not failure.check(SchedulerStopped):
            self.log.failure("a round of the relay failed", failure=failure)

    def _expire_queues(self) -> Deferred[Any] | None:
        """Goes over all queues and their messages, a few between other work."""
        if self._cooperator is None:
            return None
        steps: Iterator[None] = chain(
            self._relay.expire_messages(_QUEUES_PER_STEP),
            self._relay.expire_queues(_QUEUES_PER_STEP),
        )
        return self._cooperator.coiterate(steps)
