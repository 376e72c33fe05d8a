"""Rows of stores with databases: every record comes back, and nothing else is taken for one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hypothesis import given, strategies as st

from smpd.queues import Messages, Queue
from smpd.stores.interface import Service
from smpd.stores.rows import (
    LINK_COLUMNS,
    QUEUE_COLUMNS,
    SERVICE_COLUMNS,
    DamagedRow,
    link_row,
    queue_from_row,
    queue_row,
    service_from_row,
    service_row,
)
from tests.smpd.stores import arbitrary

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


def test_columns_are_those_of_the_protocols_records() -> None:
    """A queue's row and its link's are read together."""
    assert LINK_COLUMNS[0] == "queue"
    assert QUEUE_COLUMNS[0] == "number"
