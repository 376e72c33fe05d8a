"""Many changes in one commit, made by a thread of its own (docs/architecture.md).

Changes are numbered. Those of a moment are gathered into a batch, which a writer's
thread makes safe while the reactor goes on; when it has, the mark moves past their
numbers. Some changes can be taken back while they wait, such as a message that is
acknowledged at once: they wait for at least half of the interval, so that there is
time for that, and are never written then. A commit costs some hundred microseconds
whatever is in it, which is why it waits for others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

B = TypeVar("B")

CallLater = Callable[..., IDelayedCall]
"""`IReactorTime.callLater`."""
CallFromThread = Callable[..., Any]
"""`IReactorFromThreads.callFromThread`."""

_MANY = 16
"""Changes for which a commit is worth its fixed costs."""
_RETRY = 1.0
"""Seconds until a commit that failed is tried again."""


class Worker(Protocol):
    """Where commits are made."""

    def submit(self, job: Callable[[], None]) -> None:
        """Does `job` after those submitted before. It raises nothing."""

    def stop(self, seconds: float) -> bool:
        """Ends after the last job; False when that took longer than it may."""


class WriterThread:
    """Jobs one after the other in a thread."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # It must not keep a process alive whose disk does not answer.
        self._thread = Thread(target=self._run, name="store writer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def submit(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def stop(self, seconds: float) -> bool:
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()


class InPlace:
    """Jobs at once, in the thread that submits them; those of a job after it."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        if len(self._jobs) == 1:
            while self._jobs:
                self._jobs[0]()
                self._jobs.popleft()

    def stop(self, seconds: float) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Steps(Generic[B]):
    """What a store does for its commits.

    `gather` makes a batch of all changes that cannot be taken back, and of the items given,
    in the order of their numbers. `write` makes a batch safe, or raises and has changed
    nothing; the writer's thread calls it, again with the same batch after it has failed.
    `settle` is told of a batch that is safe. `moved` is called when the mark has moved or
    the failure has changed. `reason` says in a few words why `write` failed: no ids, no paths.
    """

    gather: Callable[[list[Any]], B]
    write: Callable[[B], None]
    settle: Callable[[B], None]
    moved: Callable[[], None]
    reason: Callable[[Exception], str]


class _Flight(Generic[B]):
    """A batch that the writer's thread has."""

    __slots__ = ("batch", "done", "error", "first")

    def __init__(self, first: int, batch: B) -> None:
        self.first = first
        self.batch = batch
        self.error: Exception | None = None
        self.done = Event()


class GroupCommit(Generic[B]):
    """Numbers changes, has them committed together, and keeps the mark.

    `start` is the number of the last change of earlier runs. The writer's thread is given a
    batch every `interval` seconds, or twice as often when there is much; one at a time.
    Changes that can be taken back are in it when they have waited for half of that.
    """

    log = Logger()

    def __init__(
        self,
        steps: Steps[B],
        worker: Worker,
        *,
        start: int,
        interval: float,
        call_later: CallLater,
        call_from_thread: CallFromThread,
    ) -> None:
        self.noted = self.committed = start
        self.failure: str | None = None
        self._steps = steps
        self._worker = worker
        self._tick_time = interval / 2
        self._call_later = call_later
        self._call_from_thread = call_from_thread
        self._firm = 0
        self._young: dict[int, Any] = {}
        self._old: dict[int, Any] = {}
        self._flight: _Flight[B] | None = None
        self._due = False
        self._rested = False
        self._timer: IDelayedCall | None = None
        self._retry: IDelayedCall | None = None
        self._notice: IDelayedCall | None = None

    # -- changes

    def note(self) -> int:
        """Notes a change that cannot be taken back; its number."""
        self.noted += 1
        if not self._firm:
            self._firm = self.noted
        if self._timer is None:
            self._wait()
        return self.noted

    def note_item(self, item: object) -> int:
        """Notes a change that can be taken back; its number."""
        self.noted += 1
        self._young[self.noted] = item
        if self._timer is None:
            self._wait()
        return self.noted

    def withdraw(self, number: int) -> bool:
        """Takes back the change with this number; False when it is not there to be taken back."""
        if self._young.pop(number, None) is None and self._old.pop(number, None) is None:
            return False
        if self._move() and self._notice is None:
            # Once for all that are taken back in this turn of the reactor.
            self._notice = self._call_later(0, self._notify)
        return True

    def give_way(self, number: int) -> bool:
        """Takes back a change because of one that cannot be taken back, and is noted next.

        Neither is safe before the other: without that one this would have to be there. False when
        it is not there to be taken back.
        """
        if self._young.pop(number, None) is None and self._old.pop(number, None) is None:
            return False
        if not self._firm or number < self._firm:
            self._firm = number
        return True

    def _notify(self) -> None:
        self._notice = None
        self._steps.moved()

    def _move(self) -> bool:
        """Moves the mark to where everything is safe; whether it has moved."""
        mark = self.noted
        if self._flight is not None:
            mark = self._flight.first - 1
        if self._firm and self._firm <= mark:
            mark = self._firm - 1
        for items in (self._old, self._young):
            if items:
                first = next(iter(items))
                if first <= mark:
                    mark = first - 1
        if mark == self.committed:
            return False
        self.committed = mark
        return True

    # -- batches

    @property
    def _anything(self) -> bool:
        return bool(self._firm or self._old or self._young)

    def _tick(self) -> None:
        self._timer = None
        if self._flight is not None:
            self._age()
            self._due = True
        elif self._rested or len(self._old) >= _MANY:
            self._turn_over()
        elif self._anything:
            self._age()
            self._rested = True
            self._wait()

    def _turn_over(self) -> None:
        """Hands over what has waited for a tick at least."""
        ready, self._old = self._old, {}
        self._age()
        self._rested = False
        if self._firm or ready:
            self._hand_over(ready)
        if self._anything:
            self._wait()

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self._call_later(self._tick_time, self._tick)

    def _age(self) -> None:
        if self._old:
            self._old.update(self._young)
        else:
            self._old = self._young
        self._young = {}

    def _hand_over(self, items: dict[int, Any]) -> None:
        first = next(iter(items), self.noted + 1)
        if self._firm:
            first = min(first, self._firm)
        self._firm = 0
        self._flight = _Flight(first, self._steps.gather(list(items.values())))
        self._launch(self._flight)

    def _launch(self, flight: _Flight[B]) -> None:
        flight.error = None
        flight.done.clear()
        self._worker.submit(lambda: self._fly(flight))

    def _fly(self, flight: _Flight[B]) -> None:
        """In the writer's thread."""
        try:
            self._steps.write(flight.batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, the batch is not safe
            flight.error = error
        flight.done.set()
        self._call_from_thread(self._landed, flight)

    def _landed(self, flight: _Flight[B]) -> None:
        # `flush` may have seen to it already, and even to a second flight of it.
        if flight is not self._flight or not flight.done.is_set() or self._retry is not None:
            return
        if flight.error is not None:
            self._failed(flight.error)
            return
        self._flight = None
        self._steps.settle(flight.batch)
        changed = self._move()
        if self.failure is not None:
            self.failure = None
            changed = True
            self.log.info("the store can write again; nothing was lost")
        if changed:
            self._steps.moved()
        if self._due:
            # The disk is slow, and that has been time enough to take something back.
            self._due = False
            self._age()
            self._turn_over()

    # -- failure

    def _failed(self, error: Exception) -> None:
        self._retry = self._call_later(_RETRY, self._try_again)
        reason = self._steps.reason(error)
        if reason != self.failure:
            self.log.error(
                "the store cannot write: {reason}; it is tried again every second", reason=reason
            )
            self.failure = reason
            self._steps.moved()

    def _try_again(self) -> None:
        self._retry = None
        if self._flight is not None:
            self._launch(self._flight)

    # -- now

    def flush(self, patience: float, *, persist: bool = False) -> bool:
        """Commits all that is noted and waits for it; False when that failed.

        Waits `patience` seconds for a disk that does not answer. With `persist` it tries
        for that long, and otherwise once.
        """
        deadline = time.monotonic() + patience
        tried = False
        while True:
            flight = self._flight
            if flight is None:
                if not self._anything:
                    return True
                self._age()
                ready, self._old = self._old, {}
                self._hand_over(ready)
                continue
            if self._retry is not None:
                left = deadline - time.monotonic()
                if left <= 0 or (tried and not persist):
                    return False
                if tried:
                    time.sleep(min(left, _RETRY / 10))
                self._retry.cancel()
                self._try_again()
            tried = True
            if not flight.done.wait(max(0.0, deadline - time.monotonic())):
                return False
            self._landed(flight)

    def submit(self, job: Callable[[], None]) -> None:
        """Has the writer's thread do something between commits. It raises nothing."""
        self._worker.submit(job)

    def stop(self, patience: float) -> bool:
        """Ends the writer's thread after what it was given; False if it does not end."""
        for timer in (self._timer, self._retry, self._notice):
            if timer is not None and timer.active():
                timer.cancel()
        return self._worker.stop(patience)
