"""The directory of the SQLite store: its lock, its database and the steps of its schema."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import stat
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from smpd.stores.bodies import MessageBodies, Place
from smpd.stores.interface import StoreUnusable
from smpd.stores.rows import DamagedRow
from smpd.stores.sqlite_rows import decode_places

DATABASE: Final = "relay.sqlite"
LOCK: Final = "lock"
BODIES: Final = "messages"
_PAGE_SIZE: Final = 1024
"""Bytes. Rows are small, and each commit writes whole pages."""
_LOG_SIZE: Final = 1000
"""Pages in the log of the database after which they are moved to their place."""
_CACHE_SIZE: Final = 16384
"""KiB of pages in memory for reading: the upper levels of the trees of a million queues."""
_OLDEST_SQLITE: Final = (3, 37)
"""The first with STRICT tables."""

_DAMAGED: Final = "the database is damaged"
_FULL: Final = "the disk is full"
_READ_ONLY: Final = "the disk is read-only"
_BROKEN: Final = "the disk reports errors"
_ERRNO: Final = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _READ_ONLY,
}
_CODES: Final = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _READ_ONLY,
    sqlite3.SQLITE_IOERR: _BROKEN,
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: _DAMAGED,
    sqlite3.SQLITE_BUSY: "the database is used by another process",
    sqlite3.SQLITE_LOCKED: "the database is used by another process",
}


def failure_reason(error: Exception) -> str:
    """Why reading or writing failed, in a few words without paths or ids."""
    if isinstance(error, sqlite3.Error):
        # The upper bytes of a code tell more of the same.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        return _CODES.get(code, f"the database fails ({name})")
    if isinstance(error, DamagedRow):
        return _DAMAGED
    if isinstance(error, OSError):
        return _ERRNO.get(error.errno or 0, _BROKEN)
    return f"an error of the store itself ({type(error).__name__})"


@dataclass(slots=True)
class StoreFiles:
    """What is open in the directory, and what was read at the start.

    `reader` is for the reactor's thread, `writer` for the thread that writes.
    `to_wipe` are the places noted by earlier runs, up to the note `wipe_note`.
    """

    reader: sqlite3.Connection
    writer: sqlite3.Connection
    bodies: MessageBodies
    noted: int
    queue_count: int
    live: Counter[int]
    to_wipe: list[Place]
    wipe_note: int
    lock: int

    def close(self) -> None:
        """Closes all; another process may open it then."""
        self.bodies.close()
        self.reader.close()
        self.writer.close()
        os.close(self.lock)


def is_store(directory: Path) -> bool:
    """Whether there is a store in a directory. Raises `StoreUnusable` when that cannot be seen."""
    path = directory / DATABASE
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreUnusable(f"cannot use the store {path}: {_start_reason(error)}") from error


def open_files(directory: Path) -> StoreFiles:
    """Opens the store in a directory, which is made if it is not there.

    Raises `StoreUnusable`.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StoreUnusable(f"SQLite {sqlite3.sqlite_version} is too old: 3.37 is needed")
    path = directory / DATABASE
    try:
        with ExitStack() as stack:
            files = _open(directory, path, stack)
            stack.pop_all()
    except (sqlite3.Error, OSError, DamagedRow) as error:
        what = getattr(error, "filename", None) or path
        raise StoreUnusable(f"cannot use the store {what}: {_start_reason(error)}") from error
    return files


def _start_reason(error: Exception) -> str:
    """As `failure_reason`, with the system's own words where there are any."""
    reason = failure_reason(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return reason


def _open(directory: Path, path: Path, stack: ExitStack) -> StoreFiles:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, lock)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreUnusable(f"the store {directory} is used by another process") from None
    # SQLite gives its other files the permissions of this one.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    writer = _connect(path)
    stack.callback(writer.close)
    writer.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
    writer.execute("PRAGMA journal_mode = WAL").fetchall()
    writer.execute("PRAGMA synchronous = FULL")
    writer.execute("PRAGMA secure_delete = ON").fetchall()
    writer.execute(f"PRAGMA wal_autocheckpoint = {_LOG_SIZE}").fetchall()
    upgrade(writer, path)
    reader = _connect(path)
    stack.callback(reader.close)
    reader.execute("PRAGMA query_only = ON")
    reader.execute(f"PRAGMA cache_size = -{_CACHE_SIZE}")
    noted, queue_count = reader.execute("SELECT noted, queues FROM state").fetchall()[0]
    rows = reader.execute("SELECT number, size, live FROM body_file").fetchall()
    sizes = {number: size for number, size, _ in rows}
    live = Counter({number: count for number, _, count in rows})
    notes = reader.execute("SELECT number, places FROM wipe ORDER BY number").fetchall()
    to_wipe = [place for _, places in notes for place in decode_places(places)]
    bodies = MessageBodies(directory / BODIES, sizes, live, noted=to_wipe)
    stack.callback(bodies.close)
    return StoreFiles(
        reader=reader,
        writer=writer,
        bodies=bodies,
        noted=noted,
        queue_count=queue_count,
        live=live,
        to_wipe=to_wipe,
        wipe_note=notes[-1][0] if notes else 0,
        lock=lock,
    )


def _connect(path: Path) -> sqlite3.Connection:
    # Each connection is used by one thread at a time; the writer is opened by another one.
    return sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)


def schema_steps() -> Sequence[str]:
    """The steps of the schema, each as SQL, the first one first."""
    folder = resources.files("smpd.stores") / "schema"
    names = sorted(each.name for each in folder.iterdir() if each.name.endswith(".sql"))
    return [(folder / name).read_text("utf-8") for name in names]


def upgrade(connection: sqlite3.Connection, path: Path, steps: Sequence[str] | None = None) -> None:
    """Takes the steps that a database lacks, each in a transaction of its own.

    Raises `StoreUnusable` for a database of a newer version, and `sqlite3.Error`.
    """
    if steps is None:
        steps = schema_steps()
    (version,) = connection.execute("PRAGMA user_version").fetchall()[0]
    if version > len(steps):
        raise StoreUnusable(
            f"cannot use the store {path}: it was written by a newer version of this program"
        )
    if version == 0 and connection.execute("SELECT 1 FROM sqlite_schema").fetchall():
        raise StoreUnusable(f"cannot use the store {path}: it is a database of something else")
    for number, step in enumerate(steps[version:], version + 1):
        try:
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{step}\nPRAGMA user_version = {number};\nCOMMIT;"
            )
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    # A disk that cannot be written to is better noticed now.
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("ROLLBACK")
