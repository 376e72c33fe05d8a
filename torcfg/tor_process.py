"""A tor of one's own: started, watched, and started again.

Its control socket, cookie and data are in one directory, which nobody else may enter.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from torcfg.descriptions import LONGEST_SOCKET_PATH

__all__ = ["TorProcess", "torrc"]

START_TIME: Final = 5.0
"""Seconds that connecting to its control socket waits for tor."""
_START_STEP: Final = 0.1
END_TIME: Final = 10.0
"""Seconds that tor has to end before it is killed."""
SOCKET_TIME: Final = 30.0
"""Seconds after which a tor without a control socket will not have one any more."""
_UNLINK_TIME: Final = 0.5
"""Seconds in which a tor that gives up its lock removes its sockets."""
_TORRC: Final = """\
# Written at each start of the relay.
DataDirectory {directory}/data
ControlSocket {directory}/control
CookieAuthentication 1
CookieAuthFile {directory}/control_auth_cookie
SocksPort {socks}
Log {log} stdout
ShutdownWaitLength 0
RunAsDaemon 0
"""
_SINGLE_HOP: Final = "HiddenServiceNonAnonymousMode 1\nHiddenServiceSingleHopMode 1\n"
_LOG_LINE: Final = re.compile(r"\w+ +\d+ [\d:.]+ \[(?P<level>\w+)\] (?P<text>.*)")
_LEVELS: Final = {"err": LogLevel.error, "warn": LogLevel.warn}
_restart_delay: Final = backoffPolicy(initialDelay=0.5, maxDelay=30.0, factor=2.0)
_LASTED: Final = 5.0
"""Seconds after which a tor that ends is not one that fails to start: it is started at once."""
_WITH_US: Final = ("setpriv", "--pdeathsig", "TERM", "--")
"""Has what is run end when its parent does (util-linux), however that ends."""


def torrc(directory: Path, *, socks: bool, single_hop: bool, include: Path | None = None) -> str:
    """The configuration of a tor in `directory`.

    With `socks` there is a SOCKS socket in it, too. `single_hop` lets tor hide nothing of
    its onion services, and makes it useless for anything else. `include` is a file with
    further lines. Raises `ValueError` for a path that cannot be in it.
    """
    path = str(directory)
    for each in (path, str(include or "")):
        if not each.isprintable() or set(each) & set(' "#\\'):
            raise ValueError(f"{each!r} has a character that a torrc cannot hold")
    if not path.isascii():
        # txtorcon reads where the cookie is as Latin-1, and so does not find it.
        raise ValueError(f"{path!r} has a character that is not ASCII")
    if len(os.fsencode(f"{path}/control")) > LONGEST_SOCKET_PATH:
        raise ValueError(
            f"the path of tor's directory has more than {LONGEST_SOCKET_PATH - 8} bytes"
        )
    if socks and single_hop:
        raise ValueError("a tor for single-hop services has no SOCKS port")
    text = _TORRC.format(
        directory=path,
        socks=f"unix:{path}/socks" if socks else "0",
        # Warnings about what is asked for by SOCKS: others could fill the log with them.
        log="[~app]warn" if socks else "warn",
    )
    included = "" if include is None else f"%include {include}\n"
    return text + (_SINGLE_HOP if single_hop else "") + included


class TorProcess(Service):
    """Runs `program` with its files in `directory`, which is made if it is not there.

    `include` is a file with further lines of its configuration, such as bridges. Ends with the
    relay, however that ends: the kernel sees to it, or tor, which looks every 15 seconds.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        directory: Path,
        *,
        program: str = "tor",
        socks: bool = False,
        single_hop: bool = False,
        include: Path | None = None,
    ) -> None:
        self._reactor = reactor
        self.directory = directory.absolute()
        self._program = program
        self._torrc = torrc(self.directory, socks=socks, single_hop=single_hop, include=include)
        self._transport: Any = None
        self._again: IDelayedCall | None = None
        self._kill: IDelayedCall | None = None
        self._ended: Deferred[None] | None = None
        self._failures = 0
        self._started_at = 0.0
        self._is_free = True

    @property
    def control(self) -> IStreamClientEndpoint:
        """Where its control socket is, which connecting waits for: tor takes a moment to start."""
        return _StartingEndpoint(self._reactor, self)

    @property
    def socks(self) -> Path:
        """Where its SOCKS socket is, if it has one."""
        return self.directory / "socks"

    @property
    def pid(self) -> int | None:
        """The process's number, None while there is none."""
        return None if self._transport is None else self._transport.pid

    def startService(self) -> None:
        """Starts tor; when that fails, again later."""
        super().startService()
        self._start()

    def stopService(self) -> Deferred[None] | None:
        """Ends tor; done when it has ended."""
        super().stopService()
        if self._again is not None and self._again.active():
            self._again.cancel()
        if self._transport is None:
            return None
        self._ended = Deferred()
        self._signal("TERM")
        self._kill = self._reactor.callLater(END_TIME, self._signal, "KILL")
        return self._ended

    def _write_files(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        path = self.directory / "torrc"
        path.touch(0o600)
        path.chmod(0o600)
        path.write_text(self._torrc, encoding="utf-8")

    def _start(self) -> None:
        self._again = None
        self._started_at = self._reactor.seconds()
        if shutil.which(self._program) is None:
            # In the child that would be a traceback on stderr.
            self._over(f"there is no program {self._program}")
            return
        try:
            self._write_files()
        except OSError as error:
            self._over(f"its files cannot be written: {error.filename}: {error.strerror}")
            return
        if not self._has_its_place():
            return
        arguments = (
            *(_WITH_US if shutil.which(_WITH_US[0]) else ()),
            self._program,
            # Before it has read where to log to, it would tell of its start at length.
            *("--hush", "-f", str(self.directory / "torrc"), "--defaults-torrc", "/nonexistent"),
            *("__OwningControllerProcess", str(os.getpid())),
        )
        try:
            self._transport = self._reactor.spawnProcess(
                _Watching(self), arguments[0], arguments, env={"PATH": os.environ.get("PATH", "")}
            )
        except OSError as error:
            self._over(f"it cannot be started: {error}")

    def _has_its_place(self) -> bool:
        """Whether no tor is there any more, such as one of a relay that was killed.

        That one removes its sockets when it ends, also if they are another's by then.
        """
        was_free, self._is_free = self._is_free, not _is_locked(self.directory / "data" / "lock")
        if not self._is_free:
            self._over("another tor has not ended yet, and still uses its files")
        elif not was_free:
            self._again = self._reactor.callLater(_UNLINK_TIME, self._start)
        return self._is_free and was_free

    def has_no_socket(self) -> None:
        """Ends tor, to be started again, if it has had time to make its control socket."""
        lasted = self._reactor.seconds() - self._started_at
        if self._transport is not None and self.running and lasted > SOCKET_TIME:
            self.log.error("tor: its control socket is gone; it is ended")
            self._signal("TERM")

    def _signal(self, name: str) -> None:
        try:
            self._transport.signalProcess(name)
        except ProcessExitedAlready:
            self.log.debug("tor has ended by itself")

    def said(self, line: str) -> None:
        """A line of tor's own log: warnings and errors only, in which it names no addresses."""
        found = _LOG_LINE.fullmatch(line)
        level = _LEVELS.get(found["level"], LogLevel.info) if found else LogLevel.warn
        self.log.emit(level, "tor: {line}", line=found["text"] if found else line)

    def ended(self, reason: Failure) -> None:
        """The process is over."""
        self._transport = None
        if self._kill is not None and self._kill.active():
            self._kill.cancel()
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended.callback(None)
            return
        text = "it has ended" if reason.check(ProcessDone) else reason.getErrorMessage()
        self._over(text)

    def _over(self, reason: str) -> None:
        if not self.running:
            return
        if self._reactor.seconds() - self._started_at > _LASTED:
            self._failures = 0
        delay = _restart_delay(self._failures)
        self._failures += 1
        self.log.error("tor: {reason}; it is started again later", reason=reason)
        self._again = self._reactor.callLater(delay, self._start)


def _is_locked(path: Path) -> bool:
    """Whether a process has the lock on a file."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@implementer(IStreamClientEndpoint)
class _StartingEndpoint:
    """The control socket of a tor that is about to listen on it."""

    def __init__(self, reactor: Any, tor: TorProcess) -> None:
        self._reactor = reactor
        self._tor = tor
        self._path = tor.directory / "control"
        self._endpoint = UNIXClientEndpoint(reactor, str(self._path))

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `IStreamClientEndpoint`."""
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        deadline = self._reactor.seconds() + START_TIME
        while True:
            try:
                if self._tor.pid is None:
                    # What may still be there is the socket of one that ends.
                    raise ConnectError(string="tor does not run")
                connecting: Deferred[IProtocol] = self._endpoint.connect(factory)
                return await connecting
            except ConnectError:
                if self._reactor.seconds() >= deadline:
                    if not self._path.exists():
                        self._tor.has_no_socket()
                    raise
            await deferLater(self._reactor, _START_STEP)


class _Watching(ProcessProtocol):
    """Passes on what the process says, line by line."""

    def __init__(self, tor: TorProcess) -> None:
        self._tor = tor
        self._part = b""

    def outReceived(self, data: bytes) -> None:
        *lines, self._part = (self._part + data).split(b"\n")
        for line in lines:
            self._tor.said(line.decode("utf-8", "replace").strip())

    errReceived = outReceived

    def processEnded(self, reason: Failure) -> None:
        self._tor.ended(reason)
