"""Batches, the mark, what is taken back, failure and its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, strategies as st
from twisted.internet.task import Clock

from smpd.stores.group_commit import GroupCommit, InPlace, Steps, WriterThread
from tests.smpd.stores.disk_stores import Loop

INTERVAL = 1 / 64
TICK = INTERVAL / 2


class SlowWorker:
    """Does a job when it is told to."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, job: Callable[[], None]) -> None:
        self.jobs.append(job)

    def stop(self, seconds: float) -> bool:
        return not self.jobs

    def work(self) -> None:
        """One job."""
        self.jobs.pop(0)()


class Disk:
    """What is written, as lists of numbers."""

    def __init__(self, worker: Any = None, clock: Clock | None = None, start: int = 0) -> None:
        self.worker: Any = worker or InPlace()
        self.clock = clock or Clock()
        self.firm: list[int] = []
        self.written: list[list[int]] = []
        self.settled: list[list[int]] = []
        self.marks: list[int] = []
        self.problem: Exception | None = None
        self.commits: GroupCommit[list[int]] = GroupCommit(
            Steps(self._gather, self._write, self.settled.append, self._moved, repr),
            self.worker,
            start=start,
            interval=INTERVAL,
            call_later=self.clock.callLater,
            call_from_thread=lambda call, *arguments: call(*arguments),
        )

    def _gather(self, items: list[Any]) -> list[int]:
        firm, self.firm = self.firm, []
        return sorted([*firm, *items])

    def _write(self, batch: list[int]) -> None:
        if self.problem is not None:
            raise self.problem
        self.written.append(batch)

    def _moved(self) -> None:
        self.marks.append(self.commits.committed)

    def failure(self) -> str | None:
        """Why it cannot write now."""
        return self.commits.failure

    def note(self) -> int:
        """A change that cannot be taken back."""
        self.firm.append(number := self.commits.note())
        return number

    def item(self) -> int:
        """One that can, which is its own number."""
        number = self.commits.note_item(self.commits.noted + 1)
        assert number == self.commits.noted
        return number


def test_changes_of_a_moment_are_written_together() -> None:
    disk = Disk(start=7)
    assert disk.commits.committed == 7
    numbers = [disk.note(), disk.note(), disk.note()]
    assert numbers == [8, 9, 10]
    disk.clock.advance(TICK)
    assert disk.commits.committed == 7
    disk.clock.advance(TICK)
    assert disk.written == [numbers]
    assert disk.settled == [numbers]
    assert disk.commits.committed == 10
    assert disk.marks == [10]


def test_nothing_is_written_when_nothing_was_noted() -> None:
    disk = Disk()
    disk.note()
    disk.clock.pump([TICK] * 5)
    assert len(disk.written) == 1
    assert disk.clock.getDelayedCalls() == []


def test_a_commit_every_interval_of_what_has_waited_for_half_of_it() -> None:
    disk = Disk()
    for _ in range(6):
        disk.item()
        disk.clock.advance(TICK / 2)
        disk.item()
        disk.clock.advance(TICK / 2)
    assert disk.written == [[1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert disk.commits.committed == 10
    disk.clock.pump([TICK] * 2)
    assert disk.written[3:] == [[11, 12]]


def test_many_changes_are_committed_twice_as_often() -> None:
    disk = Disk()
    for _ in range(5):
        for _ in range(20):
            disk.item()
        disk.clock.advance(TICK)
    assert [len(batch) for batch in disk.written] == [20] * 4


def test_an_item_taken_back_is_never_written_and_frees_the_mark() -> None:
    disk = Disk()
    number = disk.item()
    assert disk.commits.withdraw(number)
    assert disk.commits.committed == number
    assert not disk.commits.withdraw(number)
    disk.clock.advance(0)
    assert disk.marks == [1]
    disk.clock.pump([TICK] * 3)
    assert disk.written == []
    assert disk.clock.getDelayedCalls() == []


def test_the_mark_stands_before_the_first_change_that_waits() -> None:
    disk = Disk()
    numbers = [disk.item() for _ in range(4)]
    for number, mark in ((2, 0), (1, 2), (4, 2), (3, 4)):
        assert disk.commits.withdraw(numbers[number - 1])
        assert disk.commits.committed == mark


def test_an_item_that_gives_way_is_safe_when_what_it_gave_way_to_is() -> None:
    disk = Disk()
    first, second = disk.item(), disk.item()
    disk.clock.advance(TICK)
    third = disk.item()
    assert disk.commits.give_way(second)
    assert disk.commits.give_way(third)
    assert not disk.commits.give_way(third)
    assert not disk.commits.withdraw(second)
    change = disk.note()
    assert disk.commits.withdraw(first)
    assert disk.commits.committed == first
    disk.clock.advance(TICK)
    assert disk.written == [[change]]
    assert disk.commits.committed == change


def test_an_item_that_is_handed_over_does_not_give_way() -> None:
    disk = Disk(worker=SlowWorker())
    number = disk.item()
    disk.clock.pump([TICK] * 2)
    assert not disk.commits.give_way(number)


def test_several_taken_back_in_one_turn_are_told_once() -> None:
    disk = Disk()
    numbers = [disk.item() for _ in range(3)]
    for number in numbers:
        disk.commits.withdraw(number)
    assert disk.marks == []
    disk.clock.advance(0)
    assert disk.marks == [3]


def test_an_item_that_is_handed_over_cannot_be_taken_back() -> None:
    disk = Disk(worker=SlowWorker())
    number = disk.item()
    disk.clock.pump([TICK] * 2)
    assert not disk.commits.withdraw(number)
    assert disk.commits.committed == 0
    disk.worker.work()
    assert disk.commits.committed == 1


def test_a_firm_change_does_not_take_an_earlier_item_along() -> None:
    disk = Disk()
    disk.note()
    disk.clock.advance(TICK)
    item = disk.item()
    firm = disk.note()
    disk.clock.advance(TICK)
    assert disk.written == [[1, firm]]
    assert disk.commits.committed == 1
    assert disk.commits.withdraw(item)
    assert disk.commits.committed == 3


def test_one_batch_at_a_time_and_the_next_one_at_once_after_it() -> None:
    disk = Disk(worker=SlowWorker())
    first = disk.note()
    disk.clock.pump([TICK] * 2)
    assert len(disk.worker.jobs) == 1
    later = [disk.note(), disk.item()]
    disk.clock.pump([TICK] * 4)
    assert len(disk.worker.jobs) == 1
    assert disk.commits.committed == 0
    disk.worker.work()
    assert disk.written == [[first]]
    assert disk.commits.committed == first
    disk.worker.work()
    assert disk.written == [[first], later]
    assert disk.commits.committed == 3
    assert disk.marks == [1, 3]


def test_a_failure_is_told_and_the_batch_tried_again_until_it_succeeds() -> None:
    disk = Disk()
    disk.problem = OSError("full")
    number = disk.note()
    disk.clock.pump([TICK] * 2)
    assert disk.failure() == "OSError('full')"
    assert disk.marks == [0]
    disk.clock.pump([1.0] * 3)
    assert disk.marks == [0]
    assert disk.written == []
    disk.problem = None
    disk.clock.advance(1.0)
    assert disk.written == [[number]]
    assert disk.failure() is None
    assert disk.commits.committed == number
    assert disk.marks == [0, 1]


def test_another_failure_is_told_too() -> None:
    disk = Disk()
    disk.problem = OSError("full")
    disk.note()
    disk.clock.pump([TICK] * 2)
    disk.problem = OSError("gone")
    disk.clock.advance(1.0)
    assert disk.failure() == "OSError('gone')"
    assert disk.marks == [0, 0]


def test_what_was_noted_before_a_failure_follows_after_it() -> None:
    disk = Disk(worker=SlowWorker())
    disk.problem = OSError("full")
    disk.note()
    disk.clock.pump([TICK] * 2)
    disk.note()
    disk.item()
    disk.worker.work()
    disk.problem = None
    disk.clock.pump([0.5] * 2)
    disk.worker.work()
    assert disk.written == [[1]]
    disk.clock.advance(TICK)
    disk.worker.work()
    assert disk.written == [[1], [2, 3]]
    assert disk.commits.committed == 3


def test_flush_commits_everything_now() -> None:
    disk = Disk()
    disk.note()
    disk.item()
    assert disk.commits.flush(1.0)
    assert disk.written == [[1, 2]]
    assert disk.commits.committed == 2
    assert disk.commits.flush(0.0)


def test_flush_waits_for_the_thread() -> None:
    loop = Loop()
    disk = Disk(worker=WriterThread(), clock=loop.clock)
    for _ in range(100):
        disk.note()
        disk.item()
        assert disk.commits.flush(10.0)
        assert disk.commits.committed == disk.commits.noted
    assert len(disk.written) == 100
    assert disk.commits.stop(10.0)


def test_flush_gives_up_at_a_failure_unless_it_is_to_persist() -> None:
    disk = Disk()
    disk.problem = OSError("full")
    disk.note()
    assert not disk.commits.flush(5.0)
    assert disk.failure() is not None
    tries = 0

    def reason(error: Exception) -> str:
        nonlocal tries
        tries += 1
        if tries == 3:
            disk.problem = None
        return "full"

    disk.commits._steps = Steps(disk._gather, disk._write, disk.settled.append, disk._moved, reason)
    assert disk.commits.flush(5.0, persist=True)
    assert disk.failure() is None
    assert disk.written == [[1]]


def test_flush_does_not_wait_for_ever() -> None:
    disk = Disk(worker=SlowWorker())
    disk.note()
    assert not disk.commits.flush(0.01)
    assert not disk.commits.stop(0.0)


@given(
    threaded=st.booleans(),
    actions=st.lists(
        st.sampled_from(["note", "item", "withdraw", "give way", "turn", "tick", "fail", "mend"]),
        max_size=60,
    ),
)
def test_the_mark_says_the_truth(threaded: bool, actions: list[str]) -> None:
    """Whatever happens: all up to the mark is written or taken back, nothing else is lost."""
    loop = Loop()
    disk = Disk(worker=WriterThread() if threaded else InPlace(), clock=loop.clock)
    disk.commits._call_from_thread = loop.call_from_thread
    withdrawn: set[int] = set()
    items: list[int] = []
    given_way: dict[int, int] = {}

    def written() -> set[int]:
        found = {number for batch in disk.written for number in batch}
        return found | {number for number, to in given_way.items() if to in found}

    for action in [*actions, "mend"]:
        if action == "note":
            disk.note()
        elif action == "item":
            items.append(disk.item())
        elif action == "withdraw" and items:
            number = items.pop()
            if disk.commits.withdraw(number):
                withdrawn.add(number)
        elif action == "give way" and items:
            number = items.pop()
            if disk.commits.give_way(number):
                given_way[number] = disk.note()
        elif action in ("turn", "tick"):
            loop.turn(TICK if action == "tick" else 0)
        elif action in ("fail", "mend"):
            disk.problem = OSError("full") if action == "fail" else None
        assert set(range(1, disk.commits.committed + 1)) <= written() | withdrawn
    loop.wait(lambda: disk.commits.committed == disk.commits.noted)
    assert written() | withdrawn == set(range(1, disk.commits.noted + 1))
    assert not written() & withdrawn
    assert disk.written == disk.settled
    flat = [number for batch in disk.written for number in batch if number in items]
    assert flat == sorted(flat)
    assert disk.commits.stop(10.0)
