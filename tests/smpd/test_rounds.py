"""What the relay does at intervals (docs/spec/smp-server.md §2, §5.2, §6.1, §7.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from smpd.conversation import Conversations
from smpd.relay import Relay
from smpd.rounds import Intervals, Rounds
from smpd.stores.interface import StoreError

INTERVALS = Intervals(
    events=15,
    notifications=1.5,
    message_expiry=100,
    notification_expiry=50,
    inactive_check=40,
    inactive_ttl=30,
)


class Calls:
    """A relay and its sessions, as far as rounds know them: what was asked of them, and when."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.made: list[tuple[str, float]] = []
        self.problem: Exception | None = None
        self.steps: list[Callable[[], object]] = []
        """What happens between the steps of an expiry."""

    def _note(self, name: str) -> None:
        self.made.append((name, self.clock.seconds()))
        if self.problem is not None:
            raise self.problem

    def send_events(self) -> None:
        """A round."""
        self._note("events")

    def send_notifications(self) -> None:
        """A round."""
        self._note("notifications")

    def expire_notifications(self) -> None:
        """A round."""
        self._note("expire_notifications")

    def close_idle(self, ttl: float) -> None:
        """A round."""
        self._note(f"close_idle {ttl}")

    def expire_messages(self, step: int) -> Iterator[None]:
        """A round of several steps."""
        assert step > 0
        self.made.append(("expire_messages", self.clock.seconds()))
        for between in self.steps:
            if self.problem is not None:
                raise self.problem
            self.made.append(("step", self.clock.seconds()))
            self.clock.callLater(0, between)
            yield
        self.made.append(("expired", self.clock.seconds()))

    def expire_queues(self, step: int) -> Iterator[None]:
        """A round of one step, behind that of messages."""
        assert step > 0
        self.made.append(("expire_queues", self.clock.seconds()))
        yield

    def times(self, name: str) -> list[float]:
        """When it was called."""
        return [time for called, time in self.made if called == name]


@pytest.fixture
def clock() -> Clock:
    """The reactor's time."""
    return Clock()


@pytest.fixture
def calls(clock: Clock) -> Calls:
    """What rounds call."""
    return Calls(clock)


def rounds(calls: Calls, intervals: Intervals = INTERVALS) -> Rounds:
    """Rounds over what notes its calls."""
    return Rounds(cast(Relay, calls), cast(Conversations, calls), intervals, calls.clock)


def started(calls: Calls, intervals: Intervals = INTERVALS) -> Rounds:
    """Rounds that have started, and are through with what they do at the start."""
    service = rounds(calls, intervals)
    service.startService()
    calls.clock.advance(0)
    calls.made.clear()
    return service


def test_each_round_has_its_interval(clock: Clock, calls: Calls) -> None:
    service = started(calls)
    assert service.running
    clock.pump([0.5] * 240)
    assert calls.times("events") == [15.0 * number for number in range(1, 9)]
    assert calls.times("notifications") == [1.5 * number for number in range(1, 81)]
    assert calls.times("close_idle 30") == [40.0, 80.0, 120.0]
    assert calls.times("expire_notifications") == [50.0, 100.0]
    assert calls.times("expire_messages") == [100.0]
    assert len(calls.times("expired")) == 1
    service.stopService()
    assert not service.running
    made = list(calls.made)
    clock.pump([1] * 200)
    assert calls.made == made
    assert clock.getDelayedCalls() == []


def test_what_is_old_is_expired_at_the_start(clock: Clock, calls: Calls) -> None:
    """Before anybody is connected, or with the reactor's first turns (§6.1)."""
    service = rounds(calls)
    service.startService()
    assert calls.made == [("expire_notifications", 0.0)]
    clock.advance(0)
    names = ["expire_notifications", "expire_messages", "expired", "expire_queues"]
    assert calls.made == [(name, 0.0) for name in names]
    service.stopService()


def test_the_reference_has_these_intervals() -> None:
    assert Intervals() == Intervals(15, 1.5, 7200, 3600, 3600, 21600)


def test_inactive_clients_may_stay(clock: Clock, calls: Calls) -> None:
    service = started(calls, Intervals(inactive_check=1, inactive_ttl=None))
    clock.pump([1] * 10)
    assert [name for name, _ in calls.made if name.startswith("close_idle")] == []
    service.stopService()


def test_a_round_that_fails_is_logged_and_tried_again(
    clock: Clock, calls: Calls, logged_failures: list[Failure]
) -> None:
    service = started(calls)
    calls.problem = StoreError("the disk is full")
    clock.pump([1.5] * 2)
    assert calls.times("notifications") == [1.5, 3.0]
    assert [failure.check(StoreError) for failure in logged_failures] == [StoreError] * 2
    logged_failures.clear()
    calls.problem = None
    clock.pump([1.5] * 2)
    assert calls.times("notifications") == [1.5, 3.0, 4.5, 6.0]
    service.stopService()


def test_a_failed_expiry_of_messages_is_logged_and_tried_again(
    clock: Clock, calls: Calls, logged_failures: list[Failure]
) -> None:
    service = started(calls, Intervals(message_expiry=100, inactive_ttl=None))

    def fail() -> None:
        calls.problem = StoreError("the disk is full")

    calls.steps = [fail, fail]
    clock.advance(100)
    assert calls.times("step") == [100.0]
    assert [failure.check(StoreError) for failure in logged_failures] == [StoreError]
    logged_failures.clear()
    calls.problem, calls.steps = None, []
    clock.advance(100)
    assert calls.times("expire_messages") == [100.0, 200.0]
    assert calls.times("expired") == [200.0]
    service.stopService()


def test_other_work_is_done_between_steps_of_expiry(clock: Clock, calls: Calls) -> None:
    service = started(calls, Intervals(message_expiry=100, inactive_ttl=None))
    calls.steps = [lambda: calls.made.append(("other work", clock.seconds()))] * 3
    clock.advance(14)
    clock.advance(86)
    made = [name for name, _ in calls.made]
    expiry = made[made.index("expire_messages") :]
    assert [name for name in expiry if name not in ("events", "notifications")] == [
        "expire_messages",
        *["step", "other work"] * 3,
        "expired",
        "expire_queues",
    ]
    service.stopService()


def test_expiry_that_takes_longer_than_its_interval_is_not_begun_twice(
    clock: Clock, calls: Calls
) -> None:
    service = started(calls, Intervals(message_expiry=100, inactive_ttl=None))

    def take_long() -> None:
        clock.rightNow += 60

    calls.steps = [take_long] * 3
    clock.advance(100)
    assert calls.times("expire_messages") == [100.0]
    assert calls.times("expired") == [280.0]
    calls.steps = []
    clock.advance(20)
    assert calls.times("expire_messages") == [100.0, 300.0]
    service.stopService()


def test_stopping_ends_an_expiry_under_way(clock: Clock, calls: Calls) -> None:
    """The store may be closed then."""
    service = started(calls, Intervals(message_expiry=100, inactive_ttl=None))
    calls.steps = [lambda: None, service.stopService, lambda: None]
    clock.advance(100)
    assert calls.times("step") == [100.0, 100.0]
    clock.pump([1] * 20)
    assert len(calls.times("step")) == 2
    assert calls.times("expired") == []
    assert clock.getDelayedCalls() == []


def test_rounds_can_be_started_again(clock: Clock, calls: Calls) -> None:
    service = started(calls)
    service.stopService()
    service.startService()
    clock.pump([1.5] * 67)
    assert len(calls.times("notifications")) == 67
    assert len(calls.times("expired")) == 2
    service.stopService()
