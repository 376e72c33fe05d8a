"""What waits for the PostgreSQL store is done once, in order, and in time: without a database."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import psycopg
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from psycopg.errors import DiskFull, LockNotAvailable, UniqueViolation
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import provider

from smpd.stores.group_commit import WriterThread
from smpd.stores.interface import Wanted, What
from smpd.stores.postgres_admission import Admission
from smpd.stores.postgres_batches import LaneThread, Request
from smpd.stores.postgres_lane import ConflictError
from smpd.stores.postgres_rows import Found, Key, Query, Rows, State
from tests.smpd.stores.held_threads import Held

PATIENCE = 5.0
INTERVAL = 0.008
RETRY = 0.25
LOST = psycopg.OperationalError("the connection is lost")


def rows_of(base: dict[int, int]) -> Rows:
    """Rows in which nothing is but the queues that have changed."""
    values: dict[str, Any] = {
        each.name: {} if each.name in ("base", "notices") else [] for each in fields(Rows)
    }
    return Rows(**{**values, "batch": 1, "base": base})


class Locks:
    """The locks of a database: which lane, or other relay, has which queue."""

    def __init__(self) -> None:
        self.owners: dict[int, object] = {}

    def free(self, owner: object) -> None:
        """Takes back all that somebody has."""
        self.owners = {number: each for number, each in self.owners.items() if each is not owner}


def number_of(key: Key) -> int:
    """A queue has the same byte in all of its ids."""
    return key[1][0]


class FakeLane:
    """A lane whose transactions lock and change nothing; `fails` has what they raise next."""

    def __init__(self, locks: Locks) -> None:
        self.locks = locks
        self.fails: deque[Exception | None] = deque()
        self.done: list[str] = []
        self.open = False

    def _step(self, name: str) -> None:
        self.done.append(name)
        error = self.fails.popleft() if self.fails else None
        if error is not None:
            self._end()
            raise error

    def _end(self) -> None:
        self.open = False
        self.locks.free(self)

    def load(self, query: Query) -> Found:
        """Locks what is free."""
        assert not self.open
        self._step("load")
        self.open = True
        found = Found()
        for key in query.keys:
            number = number_of(key)
            if self.locks.owners.setdefault(number, self) is not self:
                if query.patient:
                    self._end()
                    raise LockNotAvailable
                found.busy.add(key)
            else:
                found.numbers[key] = number
                found.states[number] = State(number, 1, 0, True, 0, 0)
        return found

    def write(self, rows: Rows) -> None:
        """Commits."""
        assert self.open
        self._step("write")
        self._end()

    def again(self, rows: Rows) -> None:
        """Commits once more."""
        assert not self.open
        self._step("again")

    def leave(self) -> None:
        """Undoes nothing."""
        self._step("leave")
        self._end()

    def close(self) -> None:
        """Ends."""
        self.done.append("close")


@dataclass
class Store:
    """The store's part: knows what is locked now, and what has changed."""

    noted: int = 0
    problem: str | None = None
    locked: set[int] = field(default_factory=set)
    changed: set[int] = field(default_factory=set)
    given_up_numbers: list[set[int]] = field(default_factory=list)
    losses: list[set[int]] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    lost_answers: list[int] = field(default_factory=list)
    out_of_date: int = 0
    in_memory: bool = True
    on_moved: Callable[[], None] | None = None
    faults: set[str] = field(default_factory=set)
    """What raises an exception that nobody expects: begin, end."""

    def number_of(self, key: Key) -> int | None:
        """See `Steps`."""
        return number_of(key) if self.in_memory else None

    def query(self, requests: Sequence[Request]) -> Query:
        """See `Steps`."""
        return Query(keys={key for request in requests for key in request.keys})

    def begin(self, query: Query, found: Found) -> set[int] | None:
        """See `Steps`."""
        if "begin" in self.faults:
            raise ZeroDivisionError
        if self.out_of_date:
            self.out_of_date -= 1
            return None
        self.locked = set(found.numbers.values())
        return set(self.locked)

    def end(self) -> Rows | None:
        """See `Steps`."""
        if "end" in self.faults:
            raise ZeroDivisionError
        changed, self.changed, self.locked = self.changed, set(), set()
        return rows_of(dict.fromkeys(changed, 1)) if changed else None

    def without_store(self, reason: str, work: Callable[[], None]) -> None:
        """See `Steps`."""
        self.problem = reason
        try:
            work()
        finally:
            self.problem = None

    def end_badly(self) -> None:
        """See `Steps`."""
        self.changed, self.locked = set(), set()

    def given_up(self, numbers: set[int], rows: Rows) -> None:
        """See `Steps`."""
        self.given_up_numbers.append(numbers)

    def answers_lost(self, rows: Rows) -> None:
        """See `Steps`."""
        self.lost_answers.append(rows.batch)

    def lost(self, busy: Set[int]) -> None:
        """See `Steps`."""
        self.losses.append(set(busy))

    def moved(self, committed: int) -> None:
        """See `Steps`."""
        self.marks.append(committed)
        if self.on_moved is not None:
            self.on_moved()

    def change(self, number: int) -> int:
        """Changes a queue; the number of the change."""
        assert number in self.locked
        self.changed.add(number)
        self.noted += 1
        return self.noted


class Setting:
    """An admission with lanes that a test drives."""

    def __init__(self, lanes: int = 2) -> None:
        self.clock = Clock()
        self.locks = Locks()
        self.store = Store()
        self.lanes = [FakeLane(self.locks) for _ in range(lanes)]
        self.workers = [Held() for _ in range(lanes)]
        self.calls: deque[Callable[[], None]] = deque()
        threads: list[Any] = [
            LaneThread(lane, worker)  # type: ignore[arg-type]
            for lane, worker in zip(self.lanes, self.workers, strict=True)
        ]
        self.admission = Admission(
            self.store,
            threads,
            interval=INTERVAL,
            patience=PATIENCE,
            call_later=self.clock.callLater,
            call_from_thread=self.calls.append,
            seconds=self.clock.seconds,
            random=lambda: 0.5,
        )
        self.done: list[tuple[object, str | None]] = []
        """The names of what was done, and the reason why it was without the store."""
        self.changes: dict[object, int] = {}

    def ask(
        self,
        name: object,
        line: object,
        *numbers: int,
        change: bool = False,
        what: What = What.SENDER,
    ) -> None:
        """Has something done with queues."""

        def work() -> None:
            self.done.append((name, self.store.problem))
            if self.store.problem is None:
                assert set(numbers) <= self.store.locked
                if change:
                    for number in numbers:
                        self.changes[name] = self.store.change(number)

        self.admission.ask([Wanted(what, bytes([number])) for number in numbers], work, line)

    def listen(self, name: object) -> list[str | None]:
        """Why a change was not made, None if it was: one for each time that the mark moves."""
        said: list[str | None] = []
        self.store.on_moved = lambda: said.append(self.admission.spoiled(self.changes[name]))
        return said

    def turn(self, seconds: float = 0.0) -> None:
        """The reactor's part."""
        self.clock.advance(seconds)
        while self.calls:
            self.calls.popleft()()

    def run(self, lane: int) -> None:
        """A thread does the next thing."""
        if self.workers[lane].jobs:
            self.workers[lane].jobs.popleft()()
        self.turn()

    def settle(self, seconds: float = 0.1) -> None:
        """Everybody does what there is to do, for so long."""
        for _ in range(round(seconds / 0.005)):
            self.turn(0.005)
            for lane in range(len(self.lanes)):
                while self.workers[lane].jobs:
                    self.run(lane)

    def lock(self, *numbers: int) -> None:
        """Another relay has these queues."""
        self.locks.owners.update(dict.fromkeys(numbers, self))

    def unlock(self) -> None:
        """It has them no more."""
        self.locks.free(self)

    @property
    def names(self) -> list[object]:
        """What was done."""
        return [name for name, _ in self.done]


class Admitting(RuleBasedStateMachine):
    """Lines of work on a few queues, with lanes that fail and another relay that locks."""

    def __init__(self) -> None:
        super().__init__()
        self.setting = Setting(3)
        self.lines: list[object] = [object() for _ in range(4)]
        self.asked: list[list[object]] = [[] for _ in self.lines]
        self.since: dict[object, float] = {}

    @rule(
        line=st.integers(0, 3),
        numbers=st.lists(st.integers(0, 4), max_size=2, unique=True),
        change=st.booleans(),
        what=st.sampled_from([What.SENDER, What.RECIPIENT]),
    )
    def ask(self, line: int, numbers: list[int], change: bool, what: What) -> None:
        """Something is to be done."""
        name = (line, len(self.asked[line]))
        self.asked[line].append(name)
        self.since[name] = self.setting.clock.seconds()
        self.setting.ask(name, self.lines[line], *numbers, change=change, what=what)

    @rule(lane=st.integers(0, 2))
    def run(self, lane: int) -> None:
        """A thread goes on."""
        self.setting.run(lane)

    @rule(seconds=st.sampled_from([0.0, 0.003, 0.01, 0.3, 2.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.setting.turn(seconds)

    @rule(numbers=st.sets(st.integers(0, 4), max_size=3))
    def others_lock(self, numbers: set[int]) -> None:
        """Another relay has some queues, and those only that nobody has."""
        setting = self.setting
        setting.unlock()
        setting.lock(*(each for each in numbers if each not in setting.locks.owners))

    @rule(
        lane=st.integers(0, 2),
        error=st.sampled_from([LOST, DiskFull(), ConflictError(), UniqueViolation()]),
    )
    def fail(self, lane: int, error: Exception) -> None:
        """A lane fails the next time it does something other than leaving."""
        self.setting.lanes[lane].fails = deque([error])

    @rule(times=st.integers(0, 2))
    def out_of_date(self, times: int) -> None:
        """What was in memory is dropped."""
        self.setting.store.out_of_date = times

    @rule(whether=st.booleans())
    def forget(self, whether: bool) -> None:
        """Queues are, or are not, in memory."""
        self.setting.store.in_memory = whether

    @invariant()
    def once_and_in_order(self) -> None:
        """What was done of each line is what was asked first, each once."""
        for line, asked in enumerate(self.asked):
            done = [name for name in self.setting.names if name[0] == line]  # type: ignore[index]
            assert done == asked[: len(done)]

    @invariant()
    def each_queue_in_one_batch(self) -> None:
        """Also when a lane has lost its locks and tries it again."""
        numbers = [number for batch in self.setting.admission._batches for number in batch.numbers]
        assert len(numbers) == len(set(numbers))

    @invariant()
    def in_time(self) -> None:
        """Nothing has waited for longer than it may, checks every now and then included."""
        now = self.setting.clock.seconds()
        done = set(self.setting.names)
        for name, since in self.since.items():
            # One step of two seconds may pass before anything can be done.
            assert name in done or now - since <= PATIENCE + 0.25 + 2.0

    @invariant()
    def the_mark_goes_forward(self) -> None:
        """And never beyond what was noted."""
        marks = self.setting.store.marks
        assert marks == sorted(marks)
        assert not marks or marks[-1] <= self.setting.store.noted

    @precondition(lambda self: any(self.asked))
    @rule()
    def let_it_end(self) -> None:
        """Everything is done when nothing is in the way, and the mark is at the end."""
        setting = self.setting
        setting.unlock()
        setting.store.out_of_date = 0
        for lane in setting.lanes:
            lane.fails.clear()
        setting.settle(1.0)
        assert len(setting.done) == sum(map(len, self.asked))
        assert not any(lane.open for lane in setting.lanes)
        assert not setting.locks.owners
        if setting.store.noted:
            assert setting.store.marks[-1] == setting.store.noted

    def teardown(self) -> None:
        """As in the end."""
        if any(self.asked):
            self.let_it_end()


TestAdmitting = Admitting.TestCase
TestAdmitting.settings = settings(stateful_step_count=40)


@contextmanager
def told() -> Iterator[list[str]]:
    """What is logged about the database."""
    lines: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if str(event.get("log_format", "")).startswith("the store: "):
            lines.append(str(event.get("reason", "back")))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)


# -- one thing each


def test_work_is_gathered_while_a_lane_is_busy() -> None:
    setting = Setting(1)
    setting.ask("first", object(), 1)
    setting.turn()
    for number in range(2, 6):
        setting.ask(number, object(), number)
    setting.settle()
    assert setting.names == ["first", 2, 3, 4, 5]
    assert setting.lanes[0].done == ["load", "leave", "load", "leave"]


def test_two_batches_never_have_the_same_queue() -> None:
    """By the same id it waits; by another one the database says so, and it is asked again."""
    setting = Setting(2)
    setting.store.in_memory = False
    setting.ask("sent", object(), 1, change=True)
    setting.turn(0.01)
    lane = [bool(worker.jobs) for worker in setting.workers].index(True)
    setting.run(lane)
    setting.ask("by the same", object(), 1)
    setting.ask("by another", object(), 1, what=What.RECIPIENT)
    setting.turn(0.01)
    setting.run(1 - lane)
    assert setting.names == ["sent"]
    setting.settle()
    assert sorted(map(str, setting.names)) == ["by another", "by the same", "sent"]


def test_who_has_lost_its_locks_keeps_its_queues() -> None:
    """Until it is known what has become of them, though the database would give them to others."""
    setting = Setting(2)
    setting.store.in_memory = False
    setting.ask("sent", object(), 1, change=True)
    setting.turn(0.01)
    lane = [bool(worker.jobs) for worker in setting.workers].index(True)
    setting.lanes[lane].fails = deque([None, LOST])
    setting.run(lane)
    setting.run(lane)
    assert not setting.locks.owners
    setting.ask("by another id", object(), 1, what=What.RECIPIENT, change=True)
    setting.settle(RETRY - 0.05)
    assert setting.names == ["sent"]
    assert setting.lanes[lane].done == ["load", "write"]
    assert setting.lanes[1 - lane].done[:4] == ["load", "leave"] * 2
    setting.settle()
    assert setting.names == ["sent", "by another id"]
    assert setting.lanes[lane].done[2] == "again"


def test_what_is_late_is_done_in_the_order_of_its_line() -> None:
    """One that is being loaded comes before those behind it, however long that takes."""
    setting = Setting(2)
    line = object()
    setting.lock(1)
    setting.ask("one", line, 1)
    setting.ask("two", line, 2)
    setting.settle(PATIENCE - 0.1)
    setting.turn(1.0)
    assert setting.done == [
        ("one", "the database does not answer in time"),
        ("two", "the database does not answer in time"),
    ]


def test_a_late_one_takes_no_others_with_it() -> None:
    """It may be with others in a batch that was begun a moment ago."""
    setting = Setting(1)
    setting.lock(1)
    setting.ask("late", object(), 1)
    while setting.clock.seconds() < PATIENCE - 0.05:
        setting.settle(0.05)
    setting.ask("young", object(), 2)
    setting.turn(0.02)
    setting.turn(0.5)
    assert [name for name, _ in setting.done] == ["late"]
    setting.settle()
    assert setting.done[1:] == [("young", None)]


def test_contended_queues_keep_half_of_the_lanes() -> None:
    """A relay that is stopped in the middle of a transaction is nothing that others wait for."""
    setting = Setting(4)
    locked = range(100, 140)
    setting.lock(*locked)
    for number in locked:
        setting.ask(number, object(), number)
    setting.settle(0.1)
    # The threads of patient transactions wait from now on: they are not run.
    patient = [lane for lane in range(4) if setting.workers[lane].jobs]
    setting.turn(0.1)
    waiting = [lane for lane in range(4) if setting.workers[lane].jobs]
    assert len(waiting) <= 2, patient
    for number in range(20):
        setting.ask(number, object(), number)
    for _ in range(20):
        setting.turn(0.01)
        for lane in range(4):
            if lane not in waiting:
                setting.run(lane)
    assert set(range(20)) <= set(setting.names)


def test_one_lane_is_never_kept_by_locks() -> None:
    setting = Setting(1)
    setting.lock(1)
    setting.ask("locked", object(), 1)
    setting.settle(1.0)
    setting.ask("free", object(), 2)
    setting.settle(0.2)
    assert setting.names == ["free"]
    setting.unlock()
    setting.settle(0.2)
    assert setting.names == ["free", "locked"]


def test_a_failing_piece_of_work_is_alone(logged_failures: list[Failure]) -> None:
    setting = Setting(1)

    def fail() -> None:
        raise ZeroDivisionError

    setting.admission.ask([Wanted(What.SENDER, b"\1")], fail, object())
    setting.ask("other", object(), 1, change=True)
    setting.settle()
    assert setting.done == [("other", None)]
    assert setting.store.marks == [1]
    assert [failure.type for failure in logged_failures] == [ZeroDivisionError]
    logged_failures.clear()


@pytest.mark.parametrize("hopeless", [ConflictError(), UniqueViolation()])
def test_what_others_have_changed_is_given_up_at_once(hopeless: Exception) -> None:
    setting = Setting(1)
    setting.lanes[0].fails = deque([None, LOST, hopeless])
    setting.ask("changed", object(), 1, change=True)
    said = setting.listen("changed")
    setting.settle(0.5)
    assert said == ["another relay was faster"]
    assert setting.store.given_up_numbers == [{1}]
    assert setting.store.lost_answers == [1]
    assert setting.lanes[0].done == ["load", "write", "again"]


def test_in_doubt_it_is_tried_again_until_patience_ends() -> None:
    setting = Setting(1)
    setting.lanes[0].fails = deque([None, *[LOST] * 100])
    setting.ask("changed", object(), 1, change=True)
    said = setting.listen("changed")
    setting.settle(PATIENCE - 0.5)
    assert said == []
    setting.settle(1.0)
    assert said == ["the database cannot be reached"]
    assert 15 <= setting.lanes[0].done.count("again") <= 25
    setting.lanes[0].fails.clear()
    setting.ask("next", object(), 1, change=True)
    setting.settle(0.5)
    assert said == ["the database cannot be reached", None]


def test_who_was_told_an_error_is_looked_at_when_it_was_written_after_all() -> None:
    setting = Setting(1)
    setting.ask("changed", object(), 1, change=True)
    said = setting.listen("changed")
    setting.turn()
    setting.run(0)
    assert setting.lanes[0].done == ["load"]
    setting.turn(PATIENCE + 0.5)
    setting.turn()
    assert said == ["the database does not answer in time"]
    assert setting.store.lost_answers == []
    setting.settle()
    assert setting.lanes[0].done == ["load", "write"]
    assert (setting.store.lost_answers, setting.store.given_up_numbers) == ([1], [])


def test_one_line_for_a_database_that_fails_and_one_when_it_is_back() -> None:
    """A full disk: transactions begin well, and cannot be committed."""
    setting = Setting(1)
    with told() as lines:
        for number in range(10):
            setting.lanes[0].fails = deque([None, DiskFull(), DiskFull(), ConflictError()])
            setting.ask(number, object(), number, change=True)
            setting.settle(1.0)
        assert lines == ["the database has no room"]
        setting.ask("better", object(), 1, change=True)
        setting.settle(0.5)
        assert lines == ["the database has no room", "back"]


def test_a_lock_that_is_not_to_be_had_is_no_trouble_of_the_database() -> None:
    setting = Setting(4)
    with told() as lines:
        setting.lock(1)
        setting.ask("locked", object(), 1)
        setting.settle(1.0)
        setting.unlock()
        setting.settle(0.5)
    assert setting.done == [("locked", None)]
    assert not lines


def test_a_relay_that_was_held_up_reads_again() -> None:
    """The database may have ended its transaction meanwhile, and others have changed the queue."""
    setting = Setting(1)
    setting.ask("read", object(), 1)
    setting.turn()
    setting.workers[0].jobs.popleft()()
    # The process was stopped; what threads have left is the first thing when it goes on.
    setting.clock.rightNow += 6.0
    while setting.calls:
        setting.calls.popleft()()
    assert setting.done == []
    setting.settle(0.5)
    assert setting.done == [("read", "the database does not answer in time")]
    assert setting.lanes[0].done[:2] == ["load", "leave"]


# -- the end


def test_flush_does_what_waits_and_waits_for_it() -> None:
    """In the reactor's thread, where no time passes for others."""
    setting = Setting(2)
    for lane in setting.admission._lanes:
        lane.worker = WriterThread()
    setting.lanes[0].fails = deque([LOST])
    for number in range(10):
        setting.ask(number, "line", number, change=True)
    assert setting.admission.flush(5.0)
    assert setting.names == list(range(10))
    assert setting.store.marks[-1] == 10
    setting.admission.stop(1.0)


def test_giving_up_answers_everything_in_order() -> None:
    setting = Setting(1)
    line = object()
    setting.ask("loading", line, 1)
    setting.turn()
    setting.ask("waiting", line, 2)
    assert not setting.admission.flush(0.05)
    setting.admission.give_up("the relay is stopping")
    assert setting.done == [
        ("loading", "the relay is stopping"),
        ("waiting", "the relay is stopping"),
    ]
    setting.settle()
    assert len(setting.done) == 2
    setting.admission.stop(0.1)


def test_giving_up_spoils_what_is_being_written() -> None:
    setting = Setting(1)
    setting.ask("changed", object(), 1, change=True)
    setting.turn()
    setting.run(0)
    said = setting.listen("changed")
    setting.admission.give_up("the relay is stopping")
    assert said == ["the relay is stopping"]


def expect_fault(failures: list[Failure]) -> None:
    """One failure was logged, that of the store."""
    assert [each.type for each in failures] == [ZeroDivisionError]
    failures.clear()


def test_work_is_done_without_a_store_that_cannot_begin(logged_failures: list[Failure]) -> None:
    setting = Setting(1)
    setting.store.faults = {"begin"}
    setting.ask("a", "line", 1, change=True)
    setting.settle()
    assert setting.done == [("a", "an error of the store itself")]
    expect_fault(logged_failures)
    setting.store.faults = set()
    setting.ask("b", "line", 1, change=True)
    setting.settle()
    assert setting.done[1:] == [("b", None)]
    assert setting.store.marks[-1] == setting.store.noted


def test_what_a_store_cannot_end_is_spoiled_and_done_once(logged_failures: list[Failure]) -> None:
    setting = Setting(1)
    setting.store.faults = {"end"}
    setting.ask("a", "line", 1, change=True)
    said = setting.listen("a")
    setting.settle()
    assert setting.done == [("a", None)]
    assert said == ["an error of the store itself"]
    expect_fault(logged_failures)
    setting.store.faults = set()
    setting.ask("b", "line", 1)
    setting.settle()
    assert setting.done[1:] == [("b", None)]
