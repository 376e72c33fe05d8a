"""A way to a PostgreSQL server that is cut, or leads nowhere, at chosen moments."""

from __future__ import annotations

import contextlib
import enum
import selectors
import socket
from threading import Lock, Thread
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

_ROOM = 1 << 16


class Lose(enum.Enum):
    """What is lost with a connection, when the next COMMIT goes over it."""

    REQUEST = "request"
    """The server never sees it."""
    ANSWER = "answer"
    """The server does it, and nobody is told."""


class Proxy:
    """A context manager: takes connections on 127.0.0.1 for the server of `dsn`.

    Its threads are its own, so it goes on whatever the reactor does.
    """

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._parts = parts
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._answers_lost: set[socket.socket] = set()
        self._lock = Lock()
        self.lose: Lose | None = None
        self.refuses = False
        self.holds = False
        """Whether nothing goes through, in either direction."""
        self.lost = 0

    @property
    def dsn(self) -> str:
        """Where to connect to instead of the server."""
        login = self._parts.netloc.rpartition("@")[0]
        port = self._listening.getsockname()[1]
        return urlunsplit(self._parts._replace(netloc=f"{login}@127.0.0.1:{port}"))

    def __enter__(self) -> Proxy:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            # `close` alone does not wake up who waits in `accept`.
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """Ends all connections."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            _end(pair)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.refuses:
                client.close()
                continue
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._pairs.append((client, server))
            Thread(target=self._carry, args=(client, server), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        pair = (client, server)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(client, selectors.EVENT_READ)
                selector.register(server, selectors.EVENT_READ)
                going_on = True
                while going_on:
                    for ready, _ in selector.select(0.02):
                        if self.holds:
                            selector.select(0.005)
                            continue
                        going_on = self._pass_on(client, server, ready.fileobj is client)
                        if not going_on:
                            break
        except (OSError, ValueError):
            # One of them was closed.
            pass
        finally:
            with self._lock:
                self._pairs.remove(pair)
            for each in pair:
                _end((each,))
                each.close()

    def _pass_on(self, client: socket.socket, server: socket.socket, to_server: bool) -> bool:
        """Passes on what has come; False when that was the end."""
        data = (client if to_server else server).recv(_ROOM)
        if not data:
            return False
        if to_server and self.lose is not None and b"COMMIT" in data:
            lose, self.lose = self.lose, None
            self.lost += 1
            if lose is Lose.REQUEST:
                return False
            self._answers_lost.add(server)
        if not to_server and server in self._answers_lost:
            # It answers when it has done all of it.
            self._answers_lost.discard(server)
            return False
        (server if to_server else client).sendall(data)
        return True


def _end(sockets: tuple[socket.socket, ...]) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
