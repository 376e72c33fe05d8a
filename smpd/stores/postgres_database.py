"""The PostgreSQL database of a store: connections to it, and the steps of its schema.

Everything here waits for the database: it is for threads and for commands.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from typing import Any, Final

import psycopg
from psycopg import sql, waiting
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from smpd.stores.interface import StoreUnusable

SCHEMA: Final = "smpd"
"""Where all tables are; a database may have others of something else."""

_CONNECT_TIME: Final = 10
"""Seconds for one attempt to connect."""
_DEAD_AFTER_MS: Final = 10_000
_UPGRADES: Final = 0x736D7064
"""The advisory lock of those who change the schema."""

# A machine that is gone is noticed, though it says nothing.
PARAMETERS: Final[dict[str, Any]] = {
    "connect_timeout": _CONNECT_TIME,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": _DEAD_AFTER_MS,
    "application_name": "smpd",
}

# Who waits for longest is a relay that was stopped in the middle of a transaction: it must not keep
# locks from others. Plans must not be made for tables that were empty when they were made.
_SETTINGS: Final = (
    f"SET search_path = {SCHEMA}",
    "SET idle_in_transaction_session_timeout = '10s'",
    "SET lock_timeout = '5s'",
    # Each statement sees what others have committed before it.
    "SET default_transaction_isolation = 'read committed'",
    "SET enable_seqscan = off",
    "SET enable_hashjoin = off",
    "SET enable_mergejoin = off",
    "SET jit = off",
    "SET plan_cache_mode = force_generic_plan",
)

_STATES: Final = {
    "25006": "the database is read-only",
    "25P03": "the relay was held up for too long",
}
_CLASSES: Final = {
    "08": "the database cannot be reached",
    "28": "the database refuses the relay",
    "53": "the database has no room",
    "57": "the database is stopping",
}

# It logs what is left of connections that were lost. The store logs what matters, once.
logging.getLogger("psycopg").setLevel(logging.CRITICAL)

# Psycopg 3.1 waits with `select` where it has no C part. That takes no numbers from 1024 on, and a
# busy relay has more connections than that: it could never connect to its database again.
if waiting.wait is waiting.wait_select:
    waiting.wait = waiting.wait_epoll

Connection = psycopg.Connection[Any]


def failure_reason(error: Exception) -> str:
    """Why the database did not do it, in a few words without names, addresses or ids."""
    if isinstance(error, psycopg.Error):
        state = error.sqlstate
        if state is None:
            return "the database cannot be reached"
        return _STATES.get(state) or _CLASSES.get(
            state[:2], f"the database reports an error ({state})"
        )
    return f"an error of the store itself ({type(error).__name__})"


def is_lost(error: Exception) -> bool:
    """Whether an error is the end of a connection."""
    if not isinstance(error, psycopg.Error):
        return False
    return error.sqlstate is None or error.sqlstate[:2] in ("08", "57")


def connect(database: str) -> Connection:
    """A connection in autocommit mode. Raises `StoreUnusable`."""
    _check_understood(database)
    try:
        return psycopg.connect(database, autocommit=True, **PARAMETERS)
    except psycopg.Error as error:
        raise unusable(error) from None


def unusable(error: Exception) -> StoreUnusable:
    """What is told when a database cannot be used because of an error."""
    return StoreUnusable(f"cannot use the database: {first_line(error)}")


def _check_understood(database: str) -> None:
    """Raises `StoreUnusable` for what libpq takes apart in another way than was meant.

    It would show the pieces in its messages, and a piece of the password may be among them.
    """
    try:
        parts = conninfo_to_dict(database)
    except psycopg.Error:
        parts = {"port": "?"}
    hosts, ports = str(parts.get("host") or ""), str(parts.get("port") or "")
    if "@" in hosts.lstrip("@") or ports.replace(",", "").strip("0123456789"):
        raise StoreUnusable(
            "cannot use the database: where it is cannot be understood; in a URL, such characters "
            "of a password as @ : / % are written as %40 %3A %2F %25"
        )


def first_line(error: Exception) -> str:
    """What libpq or the server says, without details that may name ids."""
    # What libpq says names host, port and user, but no password.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class KeptConnection:
    """One connection for one thread, made when it is needed, and again when it was lost.

    Not a pool of psycopg's: that waits longer and longer between its attempts, and each of
    the store's threads has one transaction at a time.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._connection: Connection | None = None

    def get(self) -> Connection:
        """The connection, in no transaction. Raises `psycopg.Error`."""
        connection = self._connection
        if connection is not None and connection.closed:
            connection = None
        if connection is None:
            connection = psycopg.connect(self._database, autocommit=True, **PARAMETERS)
            try:
                _configure(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return connection

    def undo(self) -> None:
        """Ends the transaction that there may be, with what was not committed undone."""
        connection = self._connection
        if connection is None or connection.info.transaction_status is TransactionStatus.IDLE:
            return
        try:
            connection.rollback()
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        """Ends the connection; another one is made when it is needed again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def _configure(connection: Connection) -> None:
    """Makes a connection ready for the store's statements."""
    for setting in _SETTINGS:
        connection.execute(sql.SQL(setting))
    if _shown(connection, "synchronous_commit") == "off":
        # What is answered has to be safe.
        connection.execute("SET synchronous_commit = on")
    connection.autocommit = False


def is_reckless(connection: Connection) -> bool:
    """Whether a power failure would take what the database has committed."""
    return "off" in (_shown(connection, "fsync"), _shown(connection, "full_page_writes"))


def _shown(connection: Connection, setting: str) -> str:
    row = connection.execute(f"SHOW {setting}").fetchone()
    return "" if row is None else str(row[0])


# -- the schema


def schema_steps() -> Sequence[str]:
    """The steps of the schema, each as SQL, the first one first."""
    folder = resources.files("smpd.stores") / "postgres_schema"
    names = sorted(each.name for each in folder.iterdir() if each.name.endswith(".sql"))
    return [(folder / name).read_text("utf-8") for name in names]


def schema_version(connection: Connection) -> int | None:
    """How many steps the database has; None without a schema of the store.

    Raises `psycopg.Error`.
    """
    there = connection.execute("SELECT to_regclass('smpd.schema_version')").fetchone()
    if there is None or there[0] is None:
        return None
    row = connection.execute("SELECT version FROM smpd.schema_version").fetchone()
    return None if row is None else int(row[0])


def upgrade(connection: Connection, steps: Sequence[str] | None = None) -> tuple[int, int]:
    """Takes the steps that a database lacks; the versions before and after.

    All together in one transaction, one at a time of all who try. Raises `StoreUnusable`.
    """
    if steps is None:
        steps = schema_steps()
    try:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (_UPGRADES,))
            before = schema_version(connection)
            _check_known(before, steps)
            if before is None:
                _check_free(connection)
                connection.execute("CREATE SCHEMA IF NOT EXISTS smpd")
                connection.execute("CREATE TABLE smpd.schema_version (version integer NOT NULL)")
                connection.execute("INSERT INTO smpd.schema_version VALUES (0)")
            connection.execute("SET LOCAL search_path = smpd")
            for step in steps[before or 0 :]:
                connection.execute(step)
            connection.execute("UPDATE smpd.schema_version SET version = %s", (len(steps),))
    except psycopg.Error as error:
        raise StoreUnusable(f"cannot make the tables: {first_line(error)}") from None
    return before or 0, len(steps)


def _check_free(connection: Connection) -> None:
    """Raises `StoreUnusable` when something else has the name of the schema."""
    there = connection.execute(
        "SELECT FROM pg_class WHERE relnamespace = to_regnamespace(%s) LIMIT 1", (SCHEMA,)
    ).fetchone()
    if there is not None:
        raise StoreUnusable(
            f'cannot make the tables: the schema "{SCHEMA}" of the database has those of '
            "something else"
        )


def known_version(connection: Connection) -> int | None:
    """As `schema_version`, of tables that this program knows. Raises `StoreUnusable`."""
    try:
        version = schema_version(connection)
    except psycopg.Error as error:
        raise unusable(error) from None
    _check_known(version, schema_steps())
    return version


def check_schema(connection: Connection) -> None:
    """Raises `StoreUnusable` when the database is not one that this version can use."""
    steps, version = schema_steps(), known_version(connection)
    if version is None:
        raise StoreUnusable(
            'the database has no tables of this relay: "smpctl database create" makes them'
        )
    if version < len(steps):
        raise StoreUnusable(
            "the tables are of an older version of this program: "
            '"smpctl database upgrade" brings them up to date'
        )


def _check_known(version: int | None, steps: Sequence[str]) -> None:
    if version is not None and version > len(steps):
        raise StoreUnusable(
            "cannot use the database: it was written by a newer version of this program"
        )
