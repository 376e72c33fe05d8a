"""Open files: how many of a process's go to connections, and how many stay for everything else."""

from __future__ import annotations

import resource
from typing import Final

_FEWEST: Final = 64
_MOST: Final = 1024


def allow_connections() -> None:
    """Raises the soft limit of open files, one per connection, to the hard one."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections() -> int:
    """How many clients' connections this process may have, by its limit; 0 for any number."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 0 if limit == resource.RLIM_INFINITY else connections_within(limit)


def connections_within(limit: int) -> int:
    """How many connections of clients a process with so many open files may have, 1 at least.

    An eighth, 64 at least and 1,024 at most, stays for the store, connections to other relays,
    the log and what is asked for by the control socket; but never more than half.
    """
    kept = max(_FEWEST, min(_MOST, limit // 8))
    return max(1, limit - min(kept, limit // 2))
