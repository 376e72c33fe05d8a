"""The client's end of a connection: blocks asked for, handed on, and held back."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from txsimplex.client.blocks import BlockConnection
from txsimplex.client.errors import DisconnectedError


class Transport:
    """Takes down what is done with it, and says pause after `room` blocks."""

    def __init__(self, connection: BlockConnection, room: int = 1000) -> None:
        self.connection = connection
        self.room = room
        self.log: list[Any] = []

    def sendBlock(self, block: bytes) -> None:
        self.log.append(block)
        self.room -= 1
        if self.room == 0:
            self.connection.pauseProducing()

    def __getattr__(self, name: str) -> Any:
        return lambda: self.log.append(name)


def connected(room: int = 1000) -> tuple[BlockConnection, Transport]:
    connection = BlockConnection()
    transport: Any = Transport(connection, room)
    connection.secured(transport)
    return connection, transport


def lose(connection: BlockConnection) -> None:
    connection.connectionLost(Failure(ConnectionDone()))


def result_of(deferred: Deferred[Any]) -> Any:
    """The result, or the exception; fails when there is neither yet."""
    results: list[Any] = []
    deferred.addBoth(results.append)
    (result,) = results
    return result.value if isinstance(result, Failure) else result


def test_blocks_asked_for() -> None:
    connection, _ = connected()
    connection.blockReceived(b"1")
    waiting = [Deferred.fromCoroutine(connection.next_block()) for _ in range(2)]
    assert result_of(waiting[0]) == b"1"
    assert not waiting[1].called
    connection.blockReceived(b"2")
    assert result_of(waiting[1]) == b"2"


def test_blocks_handed_on_those_that_wait_first() -> None:
    connection, _ = connected()
    connection.blockReceived(b"1")
    taken: list[bytes] = []
    connection.deliver_to(taken.append)
    connection.blockReceived(b"2")
    assert taken == [b"1", b"2"]


def test_reading_pauses_when_nobody_asks() -> None:
    connection, transport = connected()
    for number in range(20):
        connection.blockReceived(b"%d" % number)
    assert transport.log == ["pauseReading"]
    for number in range(20):
        assert result_of(Deferred.fromCoroutine(connection.next_block())) == b"%d" % number
    assert transport.log == ["pauseReading", "resumeReading"]


def test_what_is_sent_waits_for_room_and_is_sealed_then() -> None:
    connection, transport = connected(room=2)
    sealed: list[bytes] = []

    def seal(content: bytes) -> bytes:
        sealed.append(content)
        return content.upper()

    for content in (b"a", b"b", b"c", b"d"):
        connection.send(content, seal)
    assert transport.log == [b"A", b"B"]
    assert sealed == [b"a", b"b"]
    transport.room = 1000
    connection.resumeProducing()
    assert transport.log == [b"A", b"B", b"C", b"D"]


def test_who_sends_learns_of_room() -> None:
    connection, transport = connected(room=2)
    told: list[bool] = []

    def room() -> None:
        told.append(connection.writable)
        for content in (b"d", b"e"):
            if connection.writable:
                connection.send(content)

    connection.when_room(room)
    for content in (b"a", b"b"):
        assert connection.writable
        connection.send(content)
    assert not connection.writable
    connection.send(b"c")
    transport.room = 1
    connection.resumeProducing()
    assert transport.log == [b"a", b"b", b"c"]
    assert told == []
    transport.room = 1
    connection.resumeProducing()
    assert transport.log == [b"a", b"b", b"c", b"d"]
    assert told == [True]
    lose(connection)
    connection.resumeProducing()
    assert told == [True]


def test_blocks_before_the_end_can_still_be_taken() -> None:
    connection, _ = connected()
    connection.blockReceived(b"1")
    lose(connection)
    assert not connection.connected
    assert result_of(Deferred.fromCoroutine(connection.next_block())) == b"1"
    assert isinstance(result_of(Deferred.fromCoroutine(connection.next_block())), DisconnectedError)


def test_those_who_wait_learn_of_the_end() -> None:
    connection, _ = connected()
    reader = Deferred.fromCoroutine(connection.next_block())
    lost = [Deferred.fromCoroutine(connection.lost()) for _ in range(2)]
    watched: list[DisconnectedError] = []
    connection.when_lost(watched.append)
    assert not reader.called
    lose(connection)
    assert isinstance(result_of(reader), DisconnectedError)
    assert [result_of(each) for each in lost] == [None, None]
    assert len(watched) == 1
    connection.when_lost(watched.append)
    assert len(watched) == 2
    assert result_of(Deferred.fromCoroutine(connection.lost())) is None


def test_nothing_is_done_with_what_is_lost() -> None:
    connection, transport = connected()
    lose(connection)
    connection.send(b"a")
    connection.close()
    connection.abort()
    connection.pause_reading()
    connection.resume_reading()
    assert transport.log == []


def test_tls_that_cannot_be_set_up() -> None:
    connection = BlockConnection()
    lose(connection)
    assert isinstance(result_of(connection.when_secured), DisconnectedError)
    with pytest.raises(DisconnectedError):
        _ = connection.transport
