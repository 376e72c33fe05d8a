"""Who uses a PostgreSQL store: relays, or a command that wants it for itself.

A relay holds the advisory lock of its number while it runs (`smpd.stores.postgres_notices`).
Number 0 is no relay's, and its lock is held by whoever wants the store without any.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import psycopg

from smpd.stores.interface import StoreUnusable
from smpd.stores.postgres_database import Connection, unusable
from smpd.stores.postgres_notices import PRESENCE

_ALONE: Final = 0
_TAKEN: Final = "the database is being converted or upgraded by smpctl"
_MOMENT: Final = 1.0
"""Seconds that a session of somebody who is gone may still be there."""
_LOOKS: Final = 20
_PRESENT: Final = """
    SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2
    AND classid = %s::bigint::oid
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


def _present(connection: Connection) -> set[int]:
    try:
        rows = connection.execute(_PRESENT, (PRESENCE,)).fetchall()
    except psycopg.Error as error:
        raise unusable(error) from None
    return {row[0] for row in rows}


def _waits(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes to hold within a moment: sessions end later than processes."""
    for _ in range(_LOOKS):
        if condition():
            return True
        time.sleep(_MOMENT / _LOOKS)
    return condition()


def check_not_taken(connection: Connection) -> None:
    """Raises `StoreUnusable` while a command wants the store without relays."""
    if not _waits(lambda: _ALONE not in _present(connection)):
        raise StoreUnusable(_TAKEN)


def check_no_relays(connection: Connection) -> None:
    """Raises `StoreUnusable` while a relay runs on the store."""
    if not _waits(lambda: _present(connection) <= {_ALONE}):
        raise StoreUnusable("the database is used by a running relay: stop all relays first")


def take_alone(connection: Connection) -> None:
    """Keeps relays from starting on the store until the connection is closed.

    Raises `StoreUnusable` when one runs, or when another command has it.
    """

    def take() -> bool:
        try:
            row = connection.execute(
                "SELECT pg_try_advisory_lock(%s, %s)", (PRESENCE, _ALONE)
            ).fetchone()
        except psycopg.Error as error:
            raise unusable(error) from None
        return row is not None and bool(row[0])

    if not _waits(take):
        raise StoreUnusable(_TAKEN)
    check_no_relays(connection)
