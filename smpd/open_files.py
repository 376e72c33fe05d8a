"""Open files: how many of a process's go to connections, and how many stay for everything else."""

from __future__ import annotations

import resource
from typing import Final

_FEWEST: Final = 64
_MOST: Final = 1024
_MOST_RELAYS: Final = 10_000


def allow_connections() -> None:
    """Raises the soft limit of open files, one per connection, to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections(*, proxy: bool) -> int:
    """How many clients' connections this process may have, by its limit; 0 for any number.

    `proxy` says whether it has connections to other relays beside them.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return 0
    return connections_within(limit, relays_within(limit) if proxy else 0)


def most_relays() -> int:
    """How many other relays this process may be connected to as a proxy, by its limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_RELAYS if limit == resource.RLIM_INFINITY else relays_within(limit)


def connections_within(limit: int, relays: int = 0) -> int:
    """How many connections of clients a process with so many open files may have, 1 at least.

    An eighth, 64 at least and 1,024 at most, stays for the store, the lookup of names, the log and
    what is asked for by the control socket, but never more than half; and `relays` for other
    relays.
    """
    kept = max(_FEWEST, min(_MOST, limit // 8))
    return max(1, limit - min(kept, limit // 2) - relays)


def relays_within(limit: int) -> int:
    """How many connections to other relays such a process may have: a quarter of its open files."""
    return min(_MOST_RELAYS, limit // 4)
