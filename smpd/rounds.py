"""What the relay does at intervals: events, notifications, expiry, inactive clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import Cooperator, LoopingCall
from twisted.logger import Logger

from smpd.relay import Relay
from smpd.session import SessionFactory

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


class Rounds(Service):
    """Runs all rounds while the relay runs. A round that fails is logged and tried again."""

    log = Logger()

    def __init__(
        self, relay: Relay, sessions: SessionFactory, intervals: Intervals, reactor: IReactorTime
    ) -> None:
        self._reactor = reactor
        self._relay = relay
        rounds: list[tuple[float, Callable[[], Any]]] = [
            (intervals.events, relay.send_events),
            (intervals.notifications, relay.send_notifications),
            (intervals.message_expiry, self._expire_messages),
            (intervals.notification_expiry, relay.expire_notifications),
        ]
        ttl = intervals.inactive_ttl
        if ttl is not None:
            rounds.append((intervals.inactive_check, lambda: sessions.close_idle(ttl)))
        self._rounds = rounds
        self._loops: list[LoopingCall] = []

    def startService(self) -> None:
        """Starts each round after its first interval."""
        super().startService()
        for interval, action in self._rounds:
            loop = LoopingCall(self._guarded, action)
            loop.clock = self._reactor
            loop.start(interval, now=False)
            self._loops.append(loop)

    def stopService(self) -> None:
        """Stops all rounds."""
        super().stopService()
        for loop in self._loops:
            loop.stop()
        self._loops.clear()

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception:  # noqa: BLE001 (the next round may go well)
            self.log.failure("a round of the relay failed")
            return None

    def _expire_messages(self) -> Deferred[Any]:
        """Goes over all queues, a few between other work."""
        cooperator = Cooperator(
            scheduler=lambda work: self._reactor.callLater(0, work), started=True
        )
        steps: Iterator[None] = self._relay.expire_messages(_QUEUES_PER_STEP)
        return cooperator.coiterate(steps)
