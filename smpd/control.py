"""The relay's control socket: what the sysadmin's commands ask of a relay that runs.

A Unix socket for the relay's user alone. A request and its answer are a line of JSON each, objects
both, and several may follow each other on one connection:

```
  {"request": "status"}
  {"answer": {"running": 12.5, ...}}
  {"request": "nonsense"}
  {"error": "there is no request of that name"}
```
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

from torcfg.descriptions import LONGEST_SOCKET_PATH
from txsimplex.stale_sockets import make_room

Answer = Mapping[str, Any]
Request = Callable[[], Awaitable[Answer]]

_MODE: Final = 0o600
_NOT_WRITABLE: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_LONGEST: Final = 16_384
"""Bytes of a request."""


class RequestFailed(Exception):
    """What was asked for cannot be done; the text says why."""


class Requests:
    """What can be asked for, by name."""

    log = Logger()

    def __init__(self, requests: Mapping[str, Request]) -> None:
        self._requests = requests

    async def answer(self, line: bytes) -> bytes:
        """The answer to a line; whatever is in it, there is one."""
        try:
            return _encoded("answer", await self._asked(line))
        except RequestFailed as error:
            return _encoded("error", str(error))
        except Exception:  # noqa: BLE001
            # The sysadmin has asked, and is told where to look; the relay goes on.
            self.log.failure("a request by the control socket has failed")
            return _encoded("error", "the relay has failed, its log says more")

    async def _asked(self, line: bytes) -> Answer:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            raise RequestFailed("a request is a line of JSON") from None
        name = said.get("request") if isinstance(said, dict) else None
        if not isinstance(name, str):
            raise RequestFailed('a request is an object with a "request"')
        request = self._requests.get(name)
        if request is None:
            raise RequestFailed("there is no request of that name")
        return await request()


def _encoded(kind: str, content: Any) -> bytes:
    return json.dumps({kind: content}, separators=(",", ":")).encode("ascii")


class _Connection(LineReceiver):
    """Answers one request after the other."""

    delimiter = b"\n"
    MAX_LENGTH = _LONGEST
    transport: Any

    def __init__(self, requests: Requests, connections: set[_Connection]) -> None:
        self._requests = requests
        self._connections = connections

    def connectionMade(self) -> None:
        """Somebody has come."""
        self._connections.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """He has left; what he had asked for is done all the same."""
        self._connections.discard(self)

    def lineReceived(self, line: bytes) -> None:
        """A request."""
        self.pauseProducing()
        answering = Deferred.fromCoroutine(self._requests.answer(line))
        answering.addCallback(self._answer)

    def lineLengthExceeded(self, line: bytes) -> None:
        """No request is so long."""
        self.sendLine(_encoded("error", f"a request has at most {_LONGEST} bytes"))
        self.transport.loseConnection()

    def _answer(self, answer: bytes) -> None:
        if self in self._connections:
            self.sendLine(answer)
            self.resumeProducing()


class _Connections(Factory):
    noisy = False

    def logPrefix(self) -> str:
        """The name of the port in Twisted's own messages."""
        return "control socket"

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self.connections: set[_Connection] = set()

    def buildProtocol(self, addr: IAddress | None) -> _Connection:
        return _Connection(self._requests, self.connections)


def _is_gone(failure: Failure) -> None:
    """A socket that somebody has removed already does not have to be."""
    failure.trap(FileNotFoundError)


class ControlSocket(Service):
    """Listens at a path while the relay runs."""

    log = Logger()

    def __init__(self, reactor: Any, path: Path, requests: Mapping[str, Request]) -> None:
        self._reactor = reactor
        self._path = path
        self._factory = _Connections(Requests(requests))
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        """Listens, or ends the process with the reason.

        Where no socket can be, that ends nothing: the configuration may be in a directory that the
        relay's user cannot write to, or far down.
        """
        super().startService()
        path = str(self._path)
        if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
            self._go_without(f"{path} has more than {LONGEST_SOCKET_PATH} bytes")
            return
        try:
            make_room(path)
            self._port = self._reactor.listenUNIX(path, self._factory, mode=_MODE)
        except (OSError, CannotListenError) as error:
            why = error.socketError if isinstance(error, CannotListenError) else error
            if why.errno not in _NOT_WRITABLE:
                raise SystemExit(f"cannot listen on the control socket {path}: {why}") from None
            self._go_without(f"{path} cannot be made ({why.strerror})")

    def _go_without(self, reason: str) -> None:
        self.log.warn(  # noqa: G010 (the name Twisted gives it)
            "there is no control socket, since {reason}: set socket in [control]", reason=reason
        )

    def stopService(self) -> Deferred[Any] | None:
        """Closes it, and all connections."""
        super().stopService()
        for connection in list(self._factory.connections):
            connection.transport.loseConnection()
        port, self._port = self._port, None
        return None if port is None else maybeDeferred(port.stopListening).addErrback(_is_gone)
