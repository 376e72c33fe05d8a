"""The buffer of events and its bound."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from txsimplex.client.events import EventBuffer
from txsimplex.smp.messages import End
from txsimplex.smp.transmissions import Received


def event(number: int) -> Received:
    return Received(b"", bytes([number]), End())


class Log(list[str]):
    def buffer(self, limit: int) -> EventBuffer:
        return EventBuffer(limit, lambda: self.append("pause"), lambda: self.append("resume"))


def read(buffer: EventBuffer) -> Deferred[Received]:
    return Deferred.fromCoroutine(buffer.__anext__())


def taken(deferred: Deferred[Received]) -> int:
    results: list[Received] = []
    deferred.addCallback(results.append)
    return results[0].entity_id[0]


def test_events_wait_in_order() -> None:
    buffer = Log().buffer(10)
    for number in range(5):
        buffer.put(event(number))
    assert len(buffer) == 5
    assert [taken(read(buffer)) for _ in range(5)] == [0, 1, 2, 3, 4]


def test_readers_wait_in_order() -> None:
    buffer = Log().buffer(10)
    readers = [read(buffer), read(buffer)]
    assert not any(reader.called for reader in readers)
    buffer.put(event(1))
    buffer.put(event(2))
    assert [taken(reader) for reader in readers] == [1, 2]


def test_a_cancelled_reader_takes_nothing() -> None:
    buffer = Log().buffer(10)
    gone, there = read(buffer), read(buffer)
    gone.cancel()
    results: list[object] = []
    gone.addBoth(results.append)
    assert isinstance(results[0], Failure)
    assert isinstance(results[0].value, CancelledError)
    buffer.put(event(7))
    assert taken(there) == 7


def test_it_ends_when_closed_and_empty() -> None:
    buffer = Log().buffer(10)
    buffer.put(event(1))
    buffer.close()

    async def everything() -> list[int]:
        return [each.entity_id[0] async for each in buffer]

    results: list[list[int]] = []
    Deferred.fromCoroutine(everything()).addCallback(results.append)
    assert results == [[1]]


def test_closing_ends_those_who_wait() -> None:
    buffer = Log().buffer(10)

    async def everything() -> list[Received]:
        return [each async for each in buffer]

    results: list[list[Received]] = []
    for _ in range(2):
        Deferred.fromCoroutine(everything()).addCallback(results.append)
    assert results == []
    buffer.close()
    assert results == [[], []]


def test_pause_at_the_limit_resume_at_half() -> None:
    log = Log()
    buffer = log.buffer(4)
    for number in range(6):
        buffer.put(event(number))
    assert log == ["pause"]
    for _ in range(3):
        read(buffer)
    assert log == ["pause"]
    read(buffer)
    assert log == ["pause", "resume"]


def test_no_resume_of_what_is_closed() -> None:
    log = Log()
    buffer = log.buffer(1)
    buffer.put(event(1))
    buffer.close()
    assert taken(read(buffer)) == 1
    assert log == ["pause"]


def test_a_limit_is_positive() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Log().buffer(0)


@given(st.integers(1, 20), st.lists(st.booleans(), max_size=200))
def test_paused_exactly_while_too_many_wait(limit: int, steps: list[bool]) -> None:
    log = Log()
    buffer = log.buffer(limit)
    for number, put in enumerate(steps):
        if put:
            buffer.put(event(number))
        elif len(buffer):
            read(buffer)
        paused = bool(log) and log[-1] == "pause"
        assert paused or len(buffer) < limit
        assert not paused or len(buffer) * 2 > limit
    assert log[::2] == ["pause"] * len(log[::2])
    assert log[1::2] == ["resume"] * len(log[1::2])
