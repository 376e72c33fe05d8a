"""Paths of Unix sockets that a process has left behind that was killed."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from socket import AF_UNIX, socket as Socket


def remove_stale(path: str | bytes) -> None:
    """Remove a socket on which nobody listens, so that one can listen there again.

    Whoever listens is found by connecting. A file with a process id, as Twisted's ``lockfile``, is
    wrong when that id is another process's now, as it often is in containers.

    :param path: of the socket. Whatever else is there stays, and so does what cannot be tried.
    """
    place = Path(os.fsdecode(path))
    # The name of an abstract socket has a null byte, which no path has.
    with suppress(OSError, ValueError):
        if stat.S_ISSOCK(place.lstat().st_mode) and _is_stale(place):
            place.unlink()


def make_room(path: str | bytes) -> None:
    """Remove such a socket, and see to it that there is nothing else.

    Twisted's own port, when it cannot have a path, leaves a socket open.

    :param path: of the socket.
    :raises OSError: somebody listens there, it is no socket, or there is no such directory.
    """
    remove_stale(path)
    Path(os.fsdecode(path)).parent.stat()
    if os.path.lexists(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _is_stale(place: Path) -> bool:
    with Socket(AF_UNIX) as client:
        # A listener with a full queue must not keep one waiting.
        client.setblocking(False)
        try:
            client.connect(str(place))
        except ConnectionRefusedError:
            return True
    return False
