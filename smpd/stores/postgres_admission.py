"""Work that waits for queues which relays share, and the transactions that it is done in.

```
   ask ──▶ waiting ──▶ loading ──▶ work is done ──▶ writing ──▶ committed
              ▲        (thread)    (reactor)   │    (thread)
              └── locked by another relay ◀────┘ nothing changed: left
```

All that waits when a lane is free makes a batch: one transaction. Each lane has a thread and
a transaction; two lanes have never the same queue. Nothing waits for ever: work that cannot
be admitted within `patience` seconds is done without a store, and a batch that cannot be
written by then is given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from random import random
from typing import Any, Final

from psycopg import Error, IntegrityError
from psycopg.errors import LockNotAvailable
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from smpd.stores.group_commit import CallFromThread, CallLater
from smpd.stores.interface import Wanted
from smpd.stores.postgres_batches import Batch, LaneThread, Request, Steps, is_locked
from smpd.stores.postgres_database import failure_reason, is_lost
from smpd.stores.postgres_lane import ConflictError
from smpd.stores.postgres_rows import Found, Key, Query

_MOST: Final = 200
"""Requests in one batch: what comes later has to wait for all of it."""
_CONTENDED: Final = 0.005
"""Seconds, more or less, until what another relay had locked is tried again."""
_ATTEMPTS: Final = 3
"""How often that is done before it is waited for, in a transaction apart."""
_RETRY: Final = 0.25
"""Seconds until a database that failed is tried again."""
_TRUE_FOR: Final = 5.0
"""Seconds for which locks are surely kept; the database takes them after 10 (`_SETTINGS`)."""
_WATCH: Final = 0.25
"""How often it is checked, in seconds, whether something waits for too long."""
_FAULTY: Final = "an error of the store itself"
_SLOW: Final = "the database does not answer in time"


class Admission:
    """What waits, what is under way, and what is safe.

    `interval`: how long requests are gathered while others are under way, in seconds;
    `patience`: how long anything may wait for the database.
    """

    log = Logger()

    def __init__(
        self,
        steps: Steps,
        lanes: Sequence[LaneThread],
        *,
        interval: float,
        patience: float,
        call_later: CallLater,
        call_from_thread: CallFromThread,
        seconds: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random,
    ) -> None:
        self._random = random
        self._steps = steps
        self._free = list(lanes)
        self._lanes = list(lanes)
        self._interval = interval
        self._patience = patience
        self._call_later = call_later
        self._call_from_thread = call_from_thread
        self._seconds = seconds
        self._waiting: list[Request] = []
        self._batches: list[Batch] = []
        self._busy_keys: set[Key] = set()
        self._busy_numbers: set[int] = set()
        self._spoiled: list[tuple[int, int, str]] = []
        self._committed = steps.noted
        self._trouble: str | None = None
        self._trouble_with_writing = False
        self._not_before = 0.0
        self._results: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._starting: IDelayedCall | None = None
        self._watching: IDelayedCall | None = None
        self._stopped = False

    def ask(self, wanted: Sequence[Wanted], work: Callable[[], None], line: object) -> None:
        """Has `work` done when what it looks at is locked; see `Store.admit`."""
        self._waiting.append(Request(wanted, work, line, self._seconds()))
        if self._starting is None and self._free:
            self._start_later()

    def spoiled(self, number: int) -> str | None:
        """Why a change that the mark has passed was not made; None if it was."""
        for first, last, reason in self._spoiled:
            if first <= number <= last:
                return reason
        return None

    def claims(self, service_id: bytes) -> bool:
        """Whether a service is claimed by a batch that is under way."""
        return any(
            batch.rows is not None and service_id in batch.rows.claims for batch in self._batches
        )

    # -- batches begin

    def _start_later(self) -> None:
        """Starts a batch: at once when nothing is under way, or when enough may have come."""
        if self._starting is not None or self._stopped or not self._waiting or not self._free:
            return
        now = self._seconds()
        at = self._not_before
        if self._batches:
            at = max(at, self._waiting[0].since + self._interval)
        self._starting = self._call_later(max(0.0, at - now), self._start)
        if self._watching is None:
            self._watching = self._call_later(_WATCH, self._watch)

    def _start(self) -> None:
        self._starting = None
        while self._free and self._waiting:
            chosen = self._choose()
            if not chosen:
                break
            self._launch(chosen)

    def _launch(self, chosen: list[Request]) -> None:
        patient = self._is_patient(chosen[0])
        batch = Batch(self._free.pop(), chosen, self._seconds(), patient)
        self._batches.append(batch)
        self._busy_keys |= batch.keys
        query = self._steps.query(chosen)
        query.patient = patient

        def load() -> Found:
            found = batch.lane.lane.load(query)
            found.at = self._seconds()
            return found

        self._submit(batch.lane, load, self._loaded, batch, query)

    def _choose(self) -> list[Request]:
        """What can be in one batch now: nothing of it is waited for by what came before."""
        chosen: list[Request] = []
        left: list[Request] = []
        lines = {
            id(request.line)
            for batch in self._batches
            if not batch.executed
            for request in batch.requests
        }
        keys: set[Key] = set()
        most = _MOST
        # What other relays have locked keeps half of the lanes at most.
        patient_ones = sum(batch.patient for batch in self._batches)
        may_be_patient = patient_ones < len(self._lanes) // 2
        for request in self._waiting:
            patient = self._is_patient(request)
            if (
                len(chosen) < (int(may_be_patient) if patient else most)
                and id(request.line) not in lines
                and not self._is_busy(request, keys)
            ):
                chosen.append(request)
                if patient:
                    # It waits for locks: with others it would keep them waiting, too.
                    most = 1
            else:
                left.append(request)
                lines.add(id(request.line))
                keys.update(request.keys)
        self._waiting = left
        return chosen

    def _is_patient(self, request: Request) -> bool:
        """Whether it is to wait for locks, if that leaves lanes for others."""
        return request.attempts >= _ATTEMPTS and len(self._lanes) > 1

    def _is_busy(self, request: Request, keys: set[Key]) -> bool:
        for key in request.keys:
            if key in self._busy_keys or key in keys:
                return True
            if self._busy_numbers:
                number = self._steps.number_of(key)
                if number is not None and number in self._busy_numbers:
                    return True
        return False

    # -- threads

    def _submit(
        self, lane: LaneThread, action: Callable[[], Any], then: Callable[..., None], *more: Any
    ) -> None:
        """Has a lane's thread do something, and `then` called with the result or the error."""

        def job() -> None:
            result: Any = None
            failed: Exception | None = None
            try:
                result = action()
            except Exception as error:  # noqa: BLE001 - whatever it is, it was not done
                failed = error
            self._results.put(lambda: then(result, failed, *more))
            self._call_from_thread(self._take_results)

        lane.worker.submit(job)

    def _take_results(self) -> None:
        while True:
            try:
                result = self._results.get_nowait()
            except Empty:
                return
            result()

    # -- batches are executed

    def _loaded(
        self, found: Found | None, error: Exception | None, batch: Batch, query: Query
    ) -> None:
        if batch.spoiled is not None:
            # Its work was done without a store meanwhile.
            self._leave(batch)
            return
        if found is None:
            assert error is not None
            if not isinstance(error, LockNotAvailable):
                self._note_trouble(error)
                self._not_before = self._seconds() + _RETRY
            self._wait_again(batch)
            self._finish(batch)
            return
        self._end_trouble()
        if self._seconds() - found.at >= _TRUE_FOR:
            # The relay was held up, and the database may have given its locks to others.
            self._wait_again(batch)
            self._leave(batch)
            return
        if not self._busy_numbers.isdisjoint(found.states):
            self._keep_for_others(batch, found)
            return
        before = self._steps.noted
        try:
            numbers = self._steps.begin(query, found)
        except Exception:  # noqa: BLE001
            self._fail(batch)
            return
        if numbers is None:
            self._wait_again(batch)
            self._leave(batch)
            return
        batch.numbers = numbers
        self._busy_numbers |= numbers
        again = self._execute(batch.requests, found)
        batch.executed = True
        batch.requests = []
        if again:
            self._waiting[:0] = again
            # Not in step with the other relay, which may be in the same situation.
            self._not_before = self._seconds() + _CONTENDED * (0.5 + self._random())
        try:
            batch.rows = self._steps.end()
        except Exception:  # noqa: BLE001
            self._spoiled.append((before + 1, self._steps.noted, _FAULTY))
            self._fail(batch)
            return
        if batch.rows is None:
            self._leave(batch)
            return
        batch.first, batch.last = before + 1, self._steps.noted
        rows = batch.rows
        # With those that are new.
        batch.numbers |= rows.base.keys()
        self._busy_numbers |= batch.numbers
        self._submit(batch.lane, lambda: batch.lane.lane.write(rows), self._written, batch)
        self._start_later()

    def _fail(self, batch: Batch) -> None:
        """Ends a transaction that has failed by no fault of a connection, but of the store."""
        self.log.failure("a transaction of the store has failed")
        self._steps.end_badly()
        batch.spoiled = _FAULTY
        requests, batch.requests = batch.requests, []
        self._do_without(requests, _FAULTY)
        self._leave(batch)

    def _keep_for_others(self, batch: Batch, found: Found) -> None:
        """Lets a batch wait for others that have its queues.

        They have lost their locks with their connections, and may have to be made again. What
        is in memory of these queues is theirs until then: their versions may be another relay's.
        """
        for request in batch.requests:
            numbers = (found.numbers.get(key) for key in request.keys)
            request.attempts += any(number in self._busy_numbers for number in numbers)
        self._not_before = self._seconds() + _CONTENDED
        self._wait_again(batch)
        self._leave(batch)

    def _wait_again(self, batch: Batch) -> None:
        """Puts what is in a batch back to where it came from."""
        self._waiting[:0] = batch.requests
        batch.requests = []

    def _execute(self, requests: Sequence[Request], found: Found) -> list[Request]:
        """Does the work of those of which nothing is locked by others; the rest."""
        again: list[Request] = []
        lines: set[int] = set()
        for request in requests:
            if id(request.line) in lines or is_locked(request, found):
                request.attempts += 1
                again.append(request)
                lines.add(id(request.line))
                continue
            try:
                request.work()
            except Exception:  # noqa: BLE001
                # Of one connection; the others have nothing to do with it.
                self.log.failure("work on the store has failed")
        return again

    def _leave(self, batch: Batch) -> None:
        self._submit(batch.lane, batch.lane.lane.leave, self._left, batch)

    def _left(self, result: None, error: Exception | None, batch: Batch) -> None:
        self._finish(batch)

    def _finish(self, batch: Batch) -> None:
        self._batches.remove(batch)
        self._busy_keys -= batch.keys
        self._busy_numbers -= batch.numbers
        self._free.append(batch.lane)
        self._move()
        self._start_later()

    # -- batches end

    def _written(self, result: None, error: Exception | None, batch: Batch) -> None:
        assert batch.rows is not None
        if error is None:
            self._end_trouble(by_writing=True)
            if batch.spoiled is not None:
                # They were told that it was not done.
                self._steps.answers_lost(batch.rows)
            self._finish(batch)
            return
        hopeless = isinstance(error, (ConflictError, IntegrityError))
        if not hopeless:
            # The database may answer everything else.
            self._trouble_with_writing = isinstance(error, Error) and error.sqlstate is not None
            self._note_trouble(error)
        if hopeless or self._seconds() - batch.since >= self._patience:
            reason = failure_reason(error) if not hopeless else "another relay was faster"
            self._spoil(batch, reason)
            self._steps.given_up(batch.numbers, batch.rows)
            self._steps.answers_lost(batch.rows)
            self._finish(batch)
        else:
            self._call_later(_RETRY, self._write_again, batch)

    def _write_again(self, batch: Batch) -> None:
        if not self._stopped and batch.rows is not None:
            rows = batch.rows
            self._submit(batch.lane, lambda: batch.lane.lane.again(rows), self._written, batch)

    def _spoil(self, batch: Batch, reason: str) -> None:
        """Lets the answers to what is in a batch become errors."""
        if batch.spoiled is None:
            batch.spoiled = reason
            if batch.rows is not None:
                self._spoiled.append((batch.first, batch.last, reason))

    def _move(self) -> None:
        """Moves the mark to where everything is safe or spoiled."""
        pending = [
            batch.first
            for batch in self._batches
            if batch.rows is not None and batch.spoiled is None
        ]
        mark = min(pending) - 1 if pending else self._steps.noted
        if mark > self._committed:
            self._committed = mark
            self._steps.moved(mark)
            self._spoiled = [each for each in self._spoiled if each[1] > mark]

    # -- trouble

    def _note_trouble(self, error: Exception) -> None:
        if is_lost(error):
            self._steps.lost(self._busy_numbers)
        reason = failure_reason(error)
        if reason != self._trouble:
            self._trouble = reason
            self.log.error("the store: {reason}; it is tried again and again", reason=reason)

    def _end_trouble(self, *, by_writing: bool = False) -> None:
        if self._trouble is not None and (by_writing or not self._trouble_with_writing):
            self._trouble = None
            self._trouble_with_writing = False
            self.log.info("the store: the database answers again")

    def _watch(self) -> None:
        """Ends the waiting of what has waited for too long."""
        self._watching = None
        before = self._seconds() - self._patience
        reason = self._trouble or _SLOW
        # First what is in a batch: of each line it came earlier than what waits.
        for batch in self._batches:
            late, batch.requests = _parted(batch.requests, before)
            self._do_without(late, reason)
            if batch.spoiled is None and batch.since <= before:
                self._spoil(batch, reason)
        late, self._waiting = _parted(self._waiting, before)
        self._do_without(late, reason)
        self._move()
        if (self._waiting or self._batches) and not self._stopped:
            self._watching = self._call_later(_WATCH, self._watch)

    def _do_without(self, requests: Sequence[Request], reason: str) -> None:
        for request in requests:
            try:
                self._steps.without_store(reason, request.work)
            except Exception:  # noqa: BLE001
                self.log.failure("work without the store has failed")

    # -- now

    def flush(self, patience: float) -> bool:
        """Does all that waits, and waits for it; False if that took longer than it may."""
        deadline = time.monotonic() + patience
        while self._waiting or self._batches:
            if self._waiting and self._free:
                if self._starting is not None:
                    self._starting.cancel()
                self._start()
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            try:
                result = self._results.get(timeout=min(left, _CONTENDED if self._waiting else left))
            except Empty:
                continue
            result()
        return True

    def give_up(self, reason: str) -> None:
        """Does without the database what waits, and takes what is under way for lost."""
        for batch in self._batches:
            self._spoil(batch, reason)
            requests, batch.requests = batch.requests, []
            self._do_without(requests, reason)
        waiting, self._waiting = self._waiting, []
        self._do_without(waiting, reason)
        self._move()

    def stop(self, seconds: float) -> None:
        """Ends the threads, after what they have under way."""
        self._stopped = True
        for timer in (self._starting, self._watching):
            if timer is not None and timer.active():
                timer.cancel()
        for lane in self._lanes:
            lane.worker.submit(lane.lane.close)
        for lane in self._lanes:
            lane.worker.stop(seconds)


def _parted(requests: list[Request], before: float) -> tuple[list[Request], list[Request]]:
    """Those of before `before`, and the others."""
    late = [each for each in requests if each.since <= before]
    return (late, [each for each in requests if each.since > before]) if late else (late, requests)
