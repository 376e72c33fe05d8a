"""The PostgreSQL servers of a test session, each started when the first test asks for it."""

from __future__ import annotations

import contextlib
from typing import Final

from bench.postgres_server import PostgresServer

SHARED: Final = "shared"
"""The one that has databases for all tests, and has to go on running."""

MORTAL: Final = "mortal"
"""The one that tests stop, kill and pause."""

# Relays of a session live until its end, each with connections of its own.
_SETTINGS: Final = {"max_connections": "400"}
_servers: Final[dict[str, PostgresServer]] = {}


def server(name: str = SHARED) -> PostgresServer:
    """The server of that name. Raises `PostgresMissingError` where there can be none."""
    if name not in _servers:
        made = PostgresServer(settings=_SETTINGS)
        made.start()
        _servers[name] = made
    return _servers[name]


def end() -> None:
    """Ends all servers and removes what they kept."""
    with contextlib.ExitStack() as stack:
        for each in _servers.values():
            stack.callback(each.close)
    _servers.clear()
