"""A channel on a real socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from smpd.channel import HEAD_SIZE, Frame, head
from smpd.conduit import HIGH_WATER, Conduit, pair


class End:
    """One end, and what has come."""

    def __init__(self, sock: Any, *, bounded: bool = False) -> None:
        from twisted.internet import reactor

        self.frames: list[Frame] = []
        self.reads: list[int] = []
        self.events: list[str] = []
        self.sock = sock
        self.conduit = Conduit(
            reactor,
            sock,
            self._received,
            lambda: self.events.append("drained"),
            lambda: self.events.append("lost"),
            bounded=bounded,
        )

    def _received(self, frames: Sequence[Frame]) -> None:
        self.frames += frames
        self.reads.append(len(frames))


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    """Both ends of a channel; the first one is bounded."""
    one, other = pair()
    both = End(one, bounded=True), End(other)
    yield both
    for each in both:
        each.conduit.close()


async def until(done: Callable[[], object]) -> None:
    """Waits until something is so."""
    from twisted.internet import reactor

    for _ in range(500):
        if done():
            return
        await deferLater(reactor, 0.01)
    raise AssertionError("it does not come")


@ensureDeferred
async def test_frames_of_a_turn_come_together(ends: tuple[End, End]) -> None:
    one, other = ends
    for number in range(20):
        one.conduit.put(7, number, b"some ", b"bytes")
    one.conduit.put_parts(head(3, 8, 20), (b"a", b"bc"), HEAD_SIZE + 3)
    await until(lambda: len(other.frames) == 21)
    assert other.frames == [*((7, number, b"some bytes") for number in range(20)), (8, 20, b"abc")]
    assert other.reads == [21]
    other.conduit.put(1, 2)
    await until(lambda: one.frames)
    assert one.frames == [(1, 2, b"")]


@ensureDeferred
async def test_what_is_not_taken_waits_and_more_is_not_wanted(ends: tuple[End, End]) -> None:
    one, other = ends
    other.conduit._reactor.removeReader(other.conduit)
    content = bytes(16000)
    count = 6 * HIGH_WATER // len(content)
    for number in range(count):
        one.conduit.put(7, number, content)
    assert one.conduit.full
    assert one.events == []
    other.conduit._reactor.addReader(other.conduit)
    await until(lambda: len(other.frames) == count)
    await until(lambda: not one.conduit.full)
    assert [number for _, number, _ in other.frames] == list(range(count))
    assert {payload for _, _, payload in other.frames} == {content}
    assert one.events == ["drained"]


@ensureDeferred
async def test_who_takes_nothing_is_not_listened_to(ends: tuple[End, End]) -> None:
    """Only where that was asked for, since both sides might wait for each other."""
    one, other = ends
    for end, heard in ((one, False), (other, True)):
        opposite = other if end is one else one
        opposite.conduit._reactor.removeReader(opposite.conduit)
        for number in range(9 * HIGH_WATER // 100_000):
            end.conduit.put(7, number, bytes(100_000))
        opposite.conduit.put(1, 1)
        await until(lambda end=end, heard=heard: bool(end.frames) or not heard)  # type: ignore[misc]
        assert bool(end.frames) is heard
        opposite.conduit._reactor.addReader(opposite.conduit)
        await until(lambda end=end: not end.conduit.full and end.frames)  # type: ignore[misc]


@ensureDeferred
async def test_the_end_of_one_side_is_noticed_once(ends: tuple[End, End]) -> None:
    one, other = ends
    other.conduit.put(3, 4, b"the last")
    other.conduit._flush()
    other.conduit.close()
    await until(lambda: one.events)
    assert one.frames == [(3, 4, b"the last")]
    assert one.events == ["lost"]
    assert other.events == []
    one.conduit.put(1, 1)
    one.conduit.close()
    assert one.events == ["lost"]


@ensureDeferred
async def test_what_is_no_frame_ends_it(ends: tuple[End, End]) -> None:
    one, other = ends
    other.sock.send(b"\xff" * 100)
    await until(lambda: one.events)
    assert one.events == ["lost"]
    assert one.frames == []


@ensureDeferred
async def test_writing_to_who_is_gone(ends: tuple[End, End]) -> None:
    one, other = ends
    other.conduit.close()
    one.conduit.put(1, 1, bytes(200_000))
    await until(lambda: one.events)
    assert one.events == ["lost"]


@ensureDeferred
async def test_a_side_that_fails_says_why(ends: tuple[End, End]) -> None:
    one, other = ends
    for _ in range(2):
        other.conduit.put(3, 4, b"this is why")
        other.conduit.connectionLost(Failure(RuntimeError("a fault")))
    await until(lambda: one.events)
    assert one.frames == [(3, 4, b"this is why")]
    assert one.events == other.events == ["lost"]


@ensureDeferred
async def test_what_was_sent_before_the_end_is_read(ends: tuple[End, End]) -> None:
    one, other = ends
    for number in range(5):
        other.conduit.put(3, number, bytes(100_000))
    other.conduit._flush()
    one.conduit.read_rest()
    assert len(one.frames) == 5
    assert one.events == []
