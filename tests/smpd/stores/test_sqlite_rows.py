"""Rows of messages of the SQLite store: they come back, and so do places of bodies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from smpd.queues import Message
from smpd.stores.bodies import Place
from smpd.stores.rows import DamagedRow
from smpd.stores.sqlite_rows import (
    MESSAGE_COLUMNS,
    StoredMessage,
    decode_places,
    encode_places,
)
from tests.smpd.stores import arbitrary

places = st.builds(
    Place, st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1)
)


@given(st.lists(places))
def test_places_come_back(some: list[Place]) -> None:
    assert decode_places(encode_places(some)) == some


@given(st.binary(max_size=70))
def test_other_bytes_are_no_places(data: bytes) -> None:
    try:
        assert encode_places(decode_places(data)) == data
    except DamagedRow:
        assert len(data) % 16


@given(arbitrary.messages, st.integers(1), st.integers(1), places)
def test_messages_come_back(message: Message, queue: int, number: int, place: Place) -> None:
    bodies: dict[Place, bytes] = {}
    stored = StoredMessage(message, queue, bodies.__getitem__)
    stored.number = number
    assert stored == message
    assert message == stored
    assert stored.is_quota is message.is_quota
    row = stored.row(None if message.body is None else place)
    assert len(row) == len(MESSAGE_COLUMNS)
    assert row[0] == queue
    found = StoredMessage.from_row(row[1:], queue, bodies.__getitem__)
    assert found.is_quota is message.is_quota
    if message.body is not None:
        with pytest.raises(KeyError):
            assert found.body is None
        bodies[place] = message.body
    assert found == message
    assert found.whole() == message
    assert type(found.whole()) is Message
    assert found.number == number
    assert found.safe


def test_messages_that_differ_are_not_equal() -> None:
    message = Message(b"id", 1, False, b"body")
    stored = StoredMessage(message, 1, lambda _: b"")
    for other in (
        replace(message, msg_id=b"other"),
        replace(message, timestamp=2),
        replace(message, notify=True),
        replace(message, body=None),
    ):
        assert stored != other
    assert stored != "a message"
    stored.body = b"other"
    assert stored != message


def test_no_repr_tells_of_users() -> None:
    stored = StoredMessage(Message(b"secret id", 1, False, b"secret body"), 1, lambda _: b"")
    assert "secret" not in repr(stored)
