"""Rows of the SQLite store: every record comes back, and nothing else is taken for one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from smpd.queues import Message, Messages, Queue
from smpd.stores.bodies import Place
from smpd.stores.interface import Service
from smpd.stores.sqlite_rows import (
    LINK_COLUMNS,
    MESSAGE_COLUMNS,
    QUEUE_COLUMNS,
    SERVICE_COLUMNS,
    DamagedRow,
    StoredMessage,
    decode_places,
    encode_places,
    link_row,
    queue_from_row,
    queue_row,
    service_from_row,
    service_row,
)
from tests.smpd.stores import arbitrary

places = st.builds(
    Place, st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1)
)
values = {bytes: st.binary(max_size=80), str: st.text(max_size=8), int: st.integers()}
"""What a column may hold; the tables are STRICT."""


def damaged(row: tuple[object, ...], data: st.DataObject) -> tuple[object, ...]:
    """The row with another value in one of its columns."""
    number = data.draw(st.sampled_from([n for n, value in enumerate(row) if value is not None]))
    value = data.draw(values[type(row[number])])
    return (*row[:number], value, *row[number + 1 :])


def fields(queue: Queue) -> list[object]:
    """All that a row has to bring back."""
    return [
        getattr(queue, name)
        for name in Queue.__slots__
        if name not in ("messages", "_box", "__weakref__")
    ]


@given(arbitrary.queues, st.integers(1, 2**63 - 1))
def test_queues_come_back(queue: Queue, number: int) -> None:
    queue.number = number
    row = queue_row(queue)
    assert len(row) == len(QUEUE_COLUMNS)
    link = (None,) * 3 if queue.link is None else link_row(queue, queue.link)[1:]
    found = queue_from_row((*row, *link))
    assert fields(found) == fields(replace(queue, messages=Messages()))


@given(arbitrary.queues, st.data())
def test_a_row_with_another_value_is_damaged_or_a_queue(queue: Queue, data: st.DataObject) -> None:
    row = damaged((*queue_row(queue), None, None, None), data)
    with suppress(DamagedRow):
        assert isinstance(queue_from_row(row), Queue)


@given(arbitrary.services, st.integers(0, 1000))
def test_services_come_back(service: Service, notifiers: int) -> None:
    row = service_row(service, notifiers)
    assert len(row) == len(SERVICE_COLUMNS)
    assert row[-1] == notifiers
    assert service_from_row(row) == service


@given(arbitrary.services, st.data())
def test_a_service_with_another_value_is_damaged_or_one(
    service: Service, data: st.DataObject
) -> None:
    row = damaged(service_row(service, 0), data)
    with suppress(DamagedRow):
        assert isinstance(service_from_row(row), Service)


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


def test_columns_are_those_of_the_protocols_records() -> None:
    """A queue's row and its link's are read together."""
    assert LINK_COLUMNS[0] == "queue"
    assert QUEUE_COLUMNS[0] == "number"
