"""A process killed at any moment: what it said was safe is there, in order, and nothing else."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@dataclass
class History:
    """What may have become of one value: each with the number of its change."""

    values: list[tuple[int | None, Any]]

    def possible(self, mark: int) -> list[Any]:
        """Those that may be there: the last one that is safe, and all later ones."""
        safe = max(
            index
            for index, (number, _) in enumerate(self.values)
            if number is not None and number <= mark
        )
        return [value for _, value in self.values[safe:]]


@dataclass
class QueueHistory:
    """A queue as the process told of it. A number that is None never came."""

    exists: History
    status: History
    key: History
    link: History
    messages: list[str] = field(default_factory=list)
    written: dict[str, int | None] = field(default_factory=dict)
    removed: dict[str, int | None] = field(default_factory=dict)
    markers: set[str] = field(default_factory=set)


def new_history(exists: History, status: Any, key: Any, link: Any) -> QueueHistory:
    """That of a queue that is new, or was found at the start."""
    return QueueHistory(exists, History([(0, status)]), History([(0, key)]), History([(0, link)]))


class Account:
    """Follows the lines of a process, and says what has to be there after its end."""

    def __init__(self, start: int) -> None:
        self.queues: dict[str, QueueHistory] = {}
        self.mark = start
        self.kept = self.ended = 0
        self._open: Any = None

    def follow(self, lines: list[list[Any]]) -> None:
        """All lines of one process."""
        for name, *rest in lines:
            getattr(self, "_" + name)(*rest)

    def _found(self, recipient_id: str, state: list[Any]) -> None:
        status, key, link, messages = state
        queue = self.queues[recipient_id] = new_history(History([(0, True)]), status, key, link)
        for msg_id, is_marker in messages:
            queue.messages.append(msg_id)
            queue.written[msg_id] = 0
            if is_marker:
                queue.markers.add(msg_id)

    def _count(self, count: int) -> None:
        assert count == len(self.queues)

    def _ready(self, mark: int) -> None:
        self._mark(mark)

    def _mark(self, mark: int) -> None:
        self.mark = max(self.mark, mark)

    def _add(self, recipient_id: str) -> None:
        exists = History([(0, False), (None, True)])
        self.queues[recipient_id] = new_history(exists, "active", None, None)
        self._open = exists.values

    def _delete(self, recipient_id: str) -> None:
        self._change(self.queues[recipient_id].exists, False)

    def _status(self, recipient_id: str, status: str) -> None:
        self._change(self.queues[recipient_id].status, status)

    def _key(self, recipient_id: str, key: str) -> None:
        self._change(self.queues[recipient_id].key, key)

    def _link(self, recipient_id: str, link_id: str | None) -> None:
        self._change(self.queues[recipient_id].link, link_id)

    def _change(self, history: History, value: Any) -> None:
        history.values.append((None, value))
        self._open = history.values

    def _write(self, recipient_id: str, msg_id: str) -> None:
        queue = self.queues[recipient_id]
        queue.messages.append(msg_id)
        queue.written[msg_id] = None
        self._open = (queue, queue.written, msg_id)

    def _remove(self, recipient_id: str, msg_id: str) -> None:
        queue = self.queues[recipient_id]
        queue.removed[msg_id] = None
        self._open = (queue, queue.removed, msg_id)

    def _marker(self) -> None:
        queue, _, msg_id = self._open
        queue.markers.add(msg_id)

    def _refused(self) -> None:
        if isinstance(self._open, list):
            self._open.pop()
        else:
            queue, written, msg_id = self._open
            queue.messages.remove(msg_id)
            del written[msg_id]
        self._open = None

    def _done(self, number: int) -> None:
        if isinstance(self._open, list):
            self._open[-1] = (number, self._open[-1][1])
        elif self._open is not None:
            _, numbers, msg_id = self._open
            numbers[msg_id] = number
        self._open = None

    # -- after the end

    def check(self, found: dict[str, list[Any]]) -> None:
        """Compares with what the next process has found."""
        assert found.keys() <= self.queues.keys()
        for recipient_id, queue in self.queues.items():
            state = found.get(recipient_id)
            assert (state is not None) in queue.exists.possible(self.mark)
            if state is not None:
                self._check_queue(queue, state)

    def _check_queue(self, queue: QueueHistory, state: list[Any]) -> None:
        status, key, link, messages = state
        assert status in queue.status.possible(self.mark)
        assert key in queue.key.possible(self.mark)
        assert link in queue.link.possible(self.mark)
        there = [msg_id for msg_id, _ in messages]
        assert {msg_id for msg_id, is_marker in messages if is_marker} <= queue.markers
        order = [msg_id for msg_id in queue.messages if msg_id in set(there)]
        assert there == order, "out of order, twice or unknown"
        left = []
        for msg_id in queue.messages:
            written = queue.written[msg_id]
            removed = queue.removed.get(msg_id, -1)
            if removed == -1:
                left.append(msg_id)
                if written is not None and written <= self.mark:
                    assert msg_id in there, "lost"
                    self.kept += 1
            elif removed is not None and removed <= self.mark:
                assert msg_id not in there, "again after it was acknowledged"
                self.ended += 1
        present = [msg_id in there for msg_id in left]
        assert present == sorted(present, reverse=True), "a gap"


def run_and_kill(directory: Path, seed: int, changes: int, seconds: float) -> list[list[Any]]:
    """The lines of a process that lived so long after it had said that so many changes are safe.

    By its own account, not by the clock: on a slow machine it lives longer, and does as much.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.smpd.stores.crashing", str(directory), str(seed)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    lines: list[list[Any]] = []
    killer = threading.Timer(seconds, process.kill)
    enough: int | None = None
    try:
        for line in process.stdout:
            name, *rest = json.loads(line)
            lines.append([name, *rest])
            if name == "ready":
                enough = rest[0] + changes
            if enough is not None and name in ("ready", "mark") and rest[0] >= enough:
                enough = None
                killer.start()
    finally:
        killer.cancel()
        process.kill()
        process.stdout.close()
        process.wait()
    assert process.returncode == -9, "it ended by itself"
    return lines


@pytest.mark.parametrize(("seed", "rounds"), [(1, 4), pytest.param(2, 60, marks=pytest.mark.slow)])
def test_killed_again_and_again(tmp_path: Path, seed: int, rounds: int) -> None:
    choice = random.Random(seed)
    former: Account | None = None
    kept = ended = 0
    for number in range(rounds):
        # Now and then one that is killed when it has hardly begun.
        changes = choice.randrange(40) if number % 4 == 3 else choice.randrange(40, 240)
        seconds = choice.uniform(0, 0.02)
        lines = run_and_kill(tmp_path / "store", seed * 1000 + number, changes, seconds)
        if former is not None:
            former.check({line[1]: line[2] for line in lines if line[0] == "found"})
            kept += former.kept
            ended += former.ended
        former = Account(0)
        former.follow(lines)
    assert kept > rounds * 3
    assert ended > rounds * 3
