"""Statements that go to the database together, and are waited for once.

In psycopg's own pipeline each statement is sent by itself, and after each it is looked for
answers, which costs both sides more than the statements do. Here all go out as one, prepared once
for a connection, with values and results in PostgreSQL's binary format.
"""

from __future__ import annotations

import re
import select
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from struct import Struct
from typing import Any, Final

from psycopg import Error, OperationalError, errors
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from smpd.stores.postgres_database import Connection

_INT4: Final = Struct("!i")
_INT8: Final = Struct("!q")
_ARRAY: Final = Struct("!iiIii")
_NO_ELEMENTS: Final = Struct("!iiI")
_NULL: Final = _INT4.pack(-1)
_BINARY: Final = 1
_PLACEHOLDER: Final = re.compile(r"%b::(\w+)(\[\])?")

Encoder = Callable[[Any], bytes]

_OIDS: Final = {"boolean": 16, "bytea": 17, "bigint": 20, "integer": 23, "text": 25}
_ENCODERS: Final[dict[str, Encoder]] = {
    "boolean": lambda value: b"\1" if value else b"\0",
    "bytea": bytes,
    "bigint": _INT8.pack,
    "integer": _INT4.pack,
    "text": str.encode,
}


def _read_integer(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


_DECODERS: Final[dict[int, Callable[[bytes], Any]]] = {
    16: lambda value: value == b"\1",
    17: bytes,
    20: _read_integer,
    23: _read_integer,
    25: bytes.decode,
}


def _array_of(name: str) -> Encoder:
    oid, encode = _OIDS[name], _ENCODERS[name]
    size = _INT4.pack

    def encode_all(values: Sequence[Any]) -> bytes:
        if not values:
            return _NO_ELEMENTS.pack(0, 0, oid)
        parts = [_ARRAY.pack(1, 1, oid, len(values), 1)]
        for value in values:
            if value is None:
                parts.append(_NULL)
            else:
                encoded = encode(value)
                parts.append(size(len(encoded)))
                parts.append(encoded)
        return b"".join(parts)

    return encode_all


@cache
def _understood(text: str) -> tuple[bytes, tuple[Encoder, ...]]:
    """A statement with ``%b::type`` in it, as PostgreSQL has it, and how its values are written."""
    encoders: list[Encoder] = []

    def number(found: re.Match[str]) -> str:
        name, array = found.group(1), found.group(2)
        encoders.append(_array_of(name) if array else _ENCODERS[name])
        return f"${len(encoders)}::{name}{array or ''}"

    return _PLACEHOLDER.sub(number, text).encode(), tuple(encoders)


class Answer:
    """What a statement has come to, when its journey is over."""

    __slots__ = ("result",)

    def __init__(self) -> None:
        self.result: PGresult | None = None

    def fetchall(self) -> list[tuple[Any, ...]]:
        """The rows."""
        result = self.result
        assert result is not None, "the journey is not over"
        get = result.get_value
        columns = [(each, _DECODERS[result.ftype(each)]) for each in range(result.nfields)]
        rows = []
        for row in range(result.ntuples):
            values = []
            for column, decode in columns:
                value = get(row, column)
                values.append(None if value is None else decode(value))
            rows.append(tuple(values))
        return rows


class Journeys:
    """Journeys of one connection, one after the other. It remembers what is prepared."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        # What psycopg prepares by itself it gives up with everything else that is prepared.
        connection.prepare_threshold = None
        self._prepared: dict[str, bytes] = {}
        self._names = 0
        self._new: list[str] = []
        self._answers: list[Answer | None] = []

    @contextmanager
    def together(self) -> Iterator[Journeys]:
        """Sends what is executed in the block when it is left, and waits for all of it.

        Begins a transaction if there is none. Raises `psycopg.Error`: then nothing
        after the statement that failed was done.
        """
        pgconn = self.connection.pgconn
        self._new, self._answers = [], []
        try:
            pgconn.enter_pipeline_mode()
            if pgconn.transaction_status == TransactionStatus.IDLE:
                self.execute("BEGIN")
            yield self
            pgconn.pipeline_sync()
            self._send()
            self._receive()
            pgconn.exit_pipeline_mode()
        except BaseException as error:
            # These names may be taken or not; others are used for the same statements then.
            for text in self._new:
                del self._prepared[text]
            if not isinstance(error, Error) or pgconn.pipeline_status:
                # Who knows what comes yet.
                self.connection.close()
            raise

    def execute(self, text: str, values: Sequence[Any] = ()) -> Answer:
        """Adds a statement to the journey; all its placeholders are of the form ``%b::type``."""
        pgconn = self.connection.pgconn
        answer = Answer()
        statement, encoders = _understood(text)
        if not encoders:
            # BEGIN, COMMIT: there is nothing to be prepared.
            pgconn.send_query_params(statement, None, result_format=_BINARY)
            self._answers.append(answer)
            return answer
        name = self._prepared.get(text)
        if name is None:
            self._names += 1
            name = self._prepared[text] = b"smpd_%d" % self._names
            self._new.append(text)
            pgconn.send_prepare(name, statement)
            self._answers.append(None)
        parameters = [encode(value) for encode, value in zip(encoders, values, strict=True)]
        pgconn.send_query_prepared(name, parameters, [_BINARY] * len(parameters), _BINARY)
        self._answers.append(answer)
        return answer

    def _send(self) -> None:
        pgconn = self.connection.pgconn
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN | select.POLLOUT)
        while pgconn.flush():
            ((_, events), *_) = poll.poll()
            if events & ~select.POLLOUT:
                # The server may wait for that before it takes more.
                pgconn.consume_input()

    def _receive(self) -> None:
        pgconn = self.connection.pgconn
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN)
        failed: Error | None = None
        answers = iter(self._answers)
        while True:
            while pgconn.is_busy():
                poll.poll()
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                if pgconn.status == ConnStatus.BAD:
                    raise failed or OperationalError("the connection is lost")
                # The end of one statement's results.
                continue
            if result.status == ExecStatus.PIPELINE_SYNC:
                break
            if result.status == ExecStatus.FATAL_ERROR:
                failed = failed or errors.error_from_result(result)
            if pgconn.status == ConnStatus.BAD:
                raise failed or OperationalError("the connection is lost")
            answer = next(answers)
            if answer is not None:
                answer.result = result
        if failed is not None:
            pgconn.exit_pipeline_mode()
            raise failed
