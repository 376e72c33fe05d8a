"""The PostgreSQL server of a benchmark's relays, and what its processes use.

It is safe from power cuts, unlike that of the tests, and otherwise as PostgreSQL is configured
when nothing is said, without what serves replication and archives.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.running import (
    Cores,
    children,
    cpu_seconds,
    cpu_seconds_of_ended_children,
    given_to_write,
)

if TYPE_CHECKING:
    # It needs psycopg, which not everybody has who measures other stores.
    from bench.postgres_server import PostgresServer

_SETTINGS: Final = {"shared_buffers": "128MB", "wal_level": "replica"}
_ATTEMPTS: Final = 100


class DatabaseUnavailableError(Exception):
    """There can be no PostgreSQL server here; the text is a sentence that says why."""


def own_database_server(cores: Cores, parent: Path | None = None) -> PostgresServer:
    """A server, not started yet, below `parent`, and on the cores of the generators of load.

    So the relay's core is the relay's alone. Raises `DatabaseUnavailableError`.
    """
    try:
        from bench.postgres_server import PostgresMissingError, PostgresServer
    except ImportError as error:
        raise DatabaseUnavailableError(f"psycopg 3 is not installed ({error})") from None
    try:
        return PostgresServer(fsync=True, settings=_SETTINGS, parent=parent, cores=cores.generators)
    except PostgresMissingError as error:
        raise DatabaseUnavailableError(str(error)) from None


def why_unavailable() -> str | None:
    """Why there can be no PostgreSQL server here; None if there can."""
    try:
        own_database_server(Cores())
    except DatabaseUnavailableError as error:
        return str(error)
    return None


def database_cpu_seconds(server: PostgresServer) -> float:
    """User and system time of all processes of the server, also of those that have ended."""
    return _of_all(server.pid, lambda pid: cpu_seconds(pid) + cpu_seconds_of_ended_children(pid))


def database_written_bytes(server: PostgresServer) -> int:
    """How many bytes its processes have written to files so far.

    Those are pages of 8 KiB of tables and of its log of changes, and the zeros that new files
    begin with. They are counted as they are given to the kernel: the kernel's count of what goes to
    the disk has far more where it keeps large files in large pieces (`written_bytes`).

    The kernel adds what a process has written to what its parent has, once that has asked how
    it ended: so nothing is missed of connections that were closed and of helpers that come and go.
    """
    return int(_of_all(server.pid, given_to_write))


def _of_all(pid: int, use: Callable[[int], float]) -> float:
    """The sum over a process and its children, none of which has begun or ended meanwhile."""
    for _ in range(_ATTEMPTS):
        before = children(pid)
        try:
            used = sum(map(use, (pid, *before)))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if children(pid) == before:
            return used
    raise RuntimeError("the server's processes come and go all the time")
