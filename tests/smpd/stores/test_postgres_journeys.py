"""Statements that go to the database together."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings, strategies as st
from psycopg import OperationalError, errors
from psycopg.pq import TransactionStatus

from smpd.stores.postgres_database import Connection, KeptConnection
from smpd.stores.postgres_journeys import Answer, Journeys
from tests.conftest import postgres_server_or_skip
from tests.postgres import SHARED

UNNESTED = """
    SELECT * FROM unnest(%b::bigint[], %b::integer[], %b::boolean[], %b::bytea[], %b::text[])"""
VALUES = st.lists(
    st.tuples(
        st.integers(-(2**63), 2**63 - 1),
        st.integers(-(2**31), 2**31 - 1),
        st.booleans(),
        st.none() | st.binary(),
        st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    )
)


class Travelling:
    """A connection that is kept, and its journeys."""

    def __init__(self, database: str) -> None:
        self.kept = KeptConnection(database)
        self._journeys: Journeys | None = None

    @property
    def connection(self) -> Connection:
        return self.kept.get()

    @property
    def state(self) -> TransactionStatus:
        return self.connection.info.transaction_status

    def run(self, *statements: tuple[str, Sequence[object]]) -> list[Answer]:
        """One journey."""
        if self._journeys is None or self._journeys.connection is not self.connection:
            self._journeys = Journeys(self.connection)
        with self._journeys.together() as journey:
            return [journey.execute(text, values) for text, values in statements]


@pytest.fixture(scope="module")
def place() -> Iterator[Travelling]:
    server = postgres_server_or_skip(SHARED)
    dsn = server.database()
    travelling = Travelling(dsn)
    yield travelling
    travelling.kept.close()
    server.drop(dsn)


@pytest.fixture
def travelling(place: Travelling) -> Iterator[Travelling]:
    yield place
    place.kept.undo()


@settings(deadline=None)
@given(rows=VALUES)
def test_what_goes_out_comes_back(place: Travelling, rows: list[tuple[object, ...]]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * 5
    (answer,) = place.run((UNNESTED, columns))
    assert answer.fetchall() == rows
    place.kept.undo()


@given(number=st.integers(-(2**63), 2**63 - 1), data=st.binary(), flag=st.booleans())
@settings(deadline=None)
def test_single_values(place: Travelling, number: int, data: bytes, flag: bool) -> None:
    text = "SELECT %b::bigint, %b::bytea, %b::boolean, %b::text, NULL::integer"
    (answer,) = place.run((text, (number, data, flag, "text")))
    assert answer.fetchall() == [(number, data, flag, "text", None)]
    place.kept.undo()


def test_a_transaction_is_begun_and_ends_with_commit(travelling: Travelling) -> None:
    travelling.run(("CREATE TEMPORARY TABLE kept (number bigint PRIMARY KEY)", ()))
    assert travelling.state is TransactionStatus.INTRANS
    travelling.run(
        ("INSERT INTO kept SELECT * FROM unnest(%b::bigint[])", ([1, 2],)), ("COMMIT", ())
    )
    travelling.kept.undo()
    (answer,) = travelling.run(("SELECT number FROM kept ORDER BY number", ()))
    assert answer.fetchall() == [(1,), (2,)]


def test_nothing_is_done_of_what_fails(travelling: Travelling) -> None:
    travelling.run(
        ("CREATE TEMPORARY TABLE failing (number bigint PRIMARY KEY)", ()), ("COMMIT", ())
    )
    insert = "INSERT INTO failing VALUES (%b::bigint)"
    connection = travelling.connection
    for _ in range(3):
        with pytest.raises(errors.UniqueViolation):
            travelling.run((insert, (1,)), (insert, (1,)), ("COMMIT", ()))
        assert travelling.state is TransactionStatus.INERROR
        travelling.kept.undo()
        assert travelling.connection is connection
    answer, _ = travelling.run(("SELECT count(*) FROM failing", ()), (insert, (1,)))
    assert answer.fetchall() == [(0,)]


def test_other_statements_of_the_connection_do_no_harm(travelling: Travelling) -> None:
    """psycopg prepares what comes often, and gives up all that is prepared with a ROLLBACK."""
    for _ in range(12):
        travelling.connection.execute("SELECT %b::integer", (1,), binary=True)
        travelling.kept.undo()
        (answer,) = travelling.run(("SELECT %b::integer", (1,)))
        assert answer.fetchall() == [(1,)]
        travelling.kept.undo()


def test_much_goes_both_ways_at_the_same_time(travelling: Travelling) -> None:
    data = bytes(1 << 20)
    answers = travelling.run(*[("SELECT %b::bytea", (data,))] * 20)
    assert all(answer.fetchall() == [(data,)] for answer in answers)


@pytest.mark.parametrize("values", [(1 << 40,), (1, 2), ("text",)], ids=str)
def test_values_that_cannot_be_written(travelling: Travelling, values: Sequence[object]) -> None:
    """The connection is not used any more, since some of the journey may be under way."""
    connection = travelling.connection
    with pytest.raises((struct.error, ValueError)):
        travelling.run(("SELECT %b::integer", (1,)), ("SELECT %b::integer", values))
    assert connection.closed
    (answer,) = travelling.run(("SELECT %b::integer", (1,)))
    assert answer.fetchall() == [(1,)]


def test_a_connection_that_is_lost(travelling: Travelling) -> None:
    connection = travelling.connection
    ends = ("SELECT pg_terminate_backend(pg_backend_pid())", ())
    with pytest.raises(OperationalError):
        travelling.run(ends, ("SELECT %b::integer", (1,)))
    assert connection.closed
    (answer,) = travelling.run(("SELECT %b::integer", (1,)))
    assert answer.fetchall() == [(1,)]
