"""A PostgreSQL server of one's own: temporary, and ended with the process that started it."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import SystemRandom
from socket import SO_REUSEADDR, SOL_SOCKET, socket
from types import TracebackType
from typing import Any, Final, LiteralString
from urllib.parse import quote, urlsplit

import psycopg
from psycopg import sql

from bench.running import Process, children, interruptions_held

SETTINGS: Final[Mapping[str, str]] = {
    "shared_buffers": "16MB",
    "max_connections": "100",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # Below the server's directory, so that nothing of a killed server stays in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
}
"""What a server is configured with, where it is not PostgreSQL's own default."""

WITHOUT_SYNC: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off"}
"""What is added for a server that outlives `PostgresServer.kill`, but not a power cut."""

ADMINISTRATOR: Final = "postgres"
OWNER: Final = "simplexd"
"""The role that owns the databases: it may do everything in them and nothing beside them."""

_DEBIAN: Final = Path("/usr/lib/postgresql")
_PROGRAMS: Final = ("initdb", "postgres")
_HOST: Final = "127.0.0.1"
_PORTS: Final = (20000, 30000)
"""Below those that the kernel gives to outgoing connections, since a server that is down for a
moment comes back on its port."""

_ATTEMPTS: Final = 3
_START_TIME: Final = 60.0
_STOP_TIME: Final = 30.0
_STEP: Final = 0.01
_READY: Final = "ready"
_NUMBER_LINE: Final = 0
_MEMORY_LINE: Final = 6
_STATE_LINE: Final = 7
_IPC_RMID: Final = 0
_SWEEP: Final = 'trap "" HUP INT TERM; read -r _; sleep 1; rm -rf "$1"'
"""Removes a directory when the pipe that it reads from ends, so when this process has ended."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class PostgresMissingError(Exception):
    """PostgreSQL's server programs are not installed."""


class PostgresFailedError(Exception):
    """The server did not start or did not end; the text has its log."""


class Stop(enum.Enum):
    """How a server is stopped in order."""

    FAST = signal.SIGINT
    """Transactions are rolled back and connections closed; all is written."""

    IMMEDIATE = signal.SIGQUIT
    """Nothing is finished: the next start recovers."""


def programs() -> Path:
    """The directory of `initdb` and `postgres`: the newest of Debian's packages, or in PATH.

    Raises `PostgresMissingError`.
    """
    versions = [each for each in _DEBIAN.glob("*/bin") if each.parent.name.isdecimal()]
    places = sorted(versions, key=lambda each: int(each.parent.name), reverse=True)
    found = shutil.which("postgres")
    if found is not None:
        places.append(Path(found).resolve().parent)
    for place in places:
        if all(os.access(place / name, os.X_OK) for name in _PROGRAMS):
            return place
    raise PostgresMissingError(
        f"no PostgreSQL server in {_DEBIAN}/*/bin or PATH; apt-get install postgresql brings one"
    )


class PostgresServer:
    """A PostgreSQL server in a temporary directory, which listens there and on 127.0.0.1.

    A context manager: it is started when the block is entered, and ended and removed when
    the block is left. When this process dies the kernel ends it, and a process that waits
    for that removes its directory. Its roles have passwords, made at random and needed on
    both ways.

    `fsync` makes it safe from power cuts, as a server usually is, and slow. `settings` are
    further parameters of PostgreSQL's configuration. The directory is made in `parent`,
    which the user that the server runs as must be able to enter: `postgres`, or `nobody`,
    if this process is root's. The server runs on `cores`, if they are given.
    """

    def __init__(
        self,
        *,
        fsync: bool = False,
        settings: Mapping[str, str] | None = None,
        parent: Path | None = None,
        cores: set[int] | None = None,
    ) -> None:
        self._settings = {**SETTINGS, **({} if fsync else WITHOUT_SYNC), **(settings or {})}
        self._parent = parent
        self._cores = cores or os.sched_getaffinity(0)
        self._programs = programs()
        self._user = _server_user()
        self._passwords = {role: secrets.token_urlsafe(18) for role in (ADMINISTRATOR, OWNER)}
        self._port = 0
        self._directory: Path | None = None
        self._process: Process | None = None
        self._sweeper: subprocess.Popen[bytes] | None = None
        self._paused: list[int] = []

    # -- starting and ending

    def start(self) -> None:
        """Starts it and waits until it takes connections; it may have been stopped or killed.

        It keeps its databases, its port and its passwords. The first start makes it, and
        that after `close` another.
        """
        if self.running:
            return
        if self._directory is None:
            try:
                self._make()
                self._start_on_a_free_port()
                self._make_owner()
            except BaseException:
                self.close()
                raise
        else:
            self._start()

    def stop(self, mode: Stop = Stop.FAST) -> None:
        """Stops it in order; `start` brings it back."""
        process = self._process
        if process is None:
            return
        self.go_on()
        with contextlib.suppress(ProcessLookupError):
            process.popen.send_signal(mode.value)
        try:
            process.popen.wait(_STOP_TIME)
        except subprocess.TimeoutExpired:
            self.kill()
            raise PostgresFailedError(f"the server did not end by itself:\n{self.log}") from None
        self._process = None

    def kill(self) -> None:
        """Ends all of its processes with SIGKILL, as a crash does; `start` brings it back."""
        process = self._process
        if process is None:
            return
        number = process.pid
        below = self._halt_processes()
        for each in (number, *below):
            _send(each, signal.SIGKILL)
        process.popen.wait()
        _wait_until(lambda: not any(map(_lives, below)), "killed processes live on")
        self._paused.clear()
        self._process = None

    def pause(self) -> None:
        """Stops its processes where they are: it holds its connections and answers nothing.

        New connections are taken by the kernel, and get no answer either.
        """
        if not self.running:
            raise PostgresFailedError("the server is not running")
        if not self._paused:
            self._paused = [*self._halt_processes(), self.pid]

    def go_on(self) -> None:
        """Lets its processes go on after `pause`."""
        for each in self._paused:
            _send(each, signal.SIGCONT)
        self._paused.clear()

    def close(self) -> None:
        """Ends it, and removes all there is of it."""
        directory, self._directory = self._directory, None
        try:
            self.stop(Stop.IMMEDIATE)
        finally:
            if directory is not None:
                # Of a server that was killed; one that is stopped removes it.
                _remove_shared_memory(directory)
                shutil.rmtree(directory)
            if self._sweeper is not None:
                self._sweeper.kill()
                self._sweeper.communicate()
                self._sweeper = None

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- what it is

    @property
    def running(self) -> bool:
        """Whether its main process lives."""
        return self._process is not None and self._process.popen.poll() is None

    @property
    def pid(self) -> int:
        """The number of its main process."""
        if self._process is None:
            raise PostgresFailedError("the server is not running")
        return self._process.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """The numbers of its processes, the main one first."""
        return (self.pid, *children(self.pid))

    @property
    def directory(self) -> Path:
        """Where its data, its log and its socket are."""
        if self._directory is None:
            raise PostgresFailedError("the server was not started")
        return self._directory

    @property
    def log(self) -> str:
        """All it has logged."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    # -- its databases

    @property
    def dsn(self) -> str:
        """Where the administrator connects to."""
        return self._dsn(ADMINISTRATOR, "postgres")

    def database(self, *, by_socket: bool = False) -> str:
        """Makes an empty database; returns where its owner connects to, as a URI.

        That is 127.0.0.1, or the Unix socket if `by_socket`.
        """
        name = f"{OWNER}_{secrets.token_hex(6)}"
        self._administrate("CREATE DATABASE {} TEMPLATE template0 OWNER {}", name, OWNER)
        return self._dsn(OWNER, name, by_socket=by_socket)

    def drop(self, dsn: str) -> None:
        """Removes a database that `database` has made, and cuts off who is connected to it."""
        self._administrate("DROP DATABASE {} WITH (FORCE)", urlsplit(dsn).path[1:])

    def checkpoint(self) -> None:
        """Has everything written that is only in its memory and its log of changes."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    def _dsn(self, role: str, database: str, *, by_socket: bool = False) -> str:
        login = f"{role}:{self._passwords[role]}"
        if by_socket:
            socket_directory = quote(str(self.directory), safe="")
            return f"postgresql://{login}@/{database}?host={socket_directory}&port={self._port}"
        return f"postgresql://{login}@{_HOST}:{self._port}/{database}"

    def _administrate(self, statement: LiteralString, *names: str) -> None:
        composed = sql.SQL(statement).format(*map(sql.Identifier, names))
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(composed)

    # -- how it is made and run

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _as_user(self) -> dict[str, Any]:
        """Options of a process of the server."""
        # A server wants to be able to enter the directory that it is started in.
        options: dict[str, Any] = {"cwd": self.directory, "stdin": subprocess.DEVNULL}
        if self._user is not None:
            options["user"], options["group"] = self._user.pw_uid, self._user.pw_gid
            options["extra_groups"] = []
        return options

    def _make(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="postgres-", dir=self._parent)).resolve()
        with interruptions_held():
            self._sweeper = subprocess.Popen(
                ("sh", "-c", _SWEEP, "sh", str(self._directory)),
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        password = self._directory / "password"
        password.touch(0o600)
        password.write_text(self._passwords[ADMINISTRATOR])
        if self._user is not None:
            for path in (self._directory, password):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        arguments = [str(self._programs / "initdb"), f"--pgdata={self._data}", "--no-sync"]
        arguments += [f"--username={ADMINISTRATOR}", f"--pwfile={password}"]
        arguments += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"]
        with (self._directory / "log").open("wb") as log:
            options = {**self._as_user(), "stdout": log, "stderr": subprocess.STDOUT}
            with Process(arguments, self._cores, **options) as process:
                status = process.popen.wait()
        password.unlink()
        if status:
            raise PostgresFailedError(f"initdb failed:\n{self.log}")

    def _start_on_a_free_port(self) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            self._port = _free_port()
            try:
                return self._start()
            except PostgresFailedError:
                # Another process may have taken the port in between.
                if attempt == _ATTEMPTS or "Address already in use" not in self.log:
                    raise
        raise AssertionError("unreachable")

    def _start(self) -> None:
        places = {
            "listen_addresses": _HOST,
            "port": str(self._port),
            "unix_socket_directories": str(self.directory),
        }
        arguments = [str(self._programs / "postgres"), "-D", str(self._data)]
        for name, value in {**self._settings, **places}.items():
            arguments += ["-c", f"{name}={value}"]
        with (self.directory / "log").open("ab") as log:
            self._process = Process(
                arguments,
                self._cores,
                # It takes its children with it and removes its shared memory.
                with_parent=signal.SIGQUIT,
                # What a terminal sends to the tests is not for the server.
                start_new_session=True,
                stdout=log,
                stderr=subprocess.STDOUT,
                **self._as_user(),
            )
        deadline = time.monotonic() + _START_TIME
        while not self._ready():
            if not self.running:
                self._process = None
                raise PostgresFailedError(f"the server did not start:\n{self.log}")
            if time.monotonic() > deadline:
                self.kill()
                raise PostgresFailedError(f"not ready after {_START_TIME:g} seconds:\n{self.log}")
            time.sleep(_STEP)

    def _ready(self) -> bool:
        """Whether the file in which a server says what it is, is its own and says so."""
        lines = _lock_file(self.directory)
        return (
            len(lines) > _STATE_LINE
            and lines[_NUMBER_LINE].strip() == str(self.pid)
            and lines[_STATE_LINE].strip() == _READY
        )

    def _make_owner(self) -> None:
        # A parameter cannot stand in this statement.
        password = sql.Literal(self._passwords[OWNER])
        made = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(OWNER), password)
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(made)

    def _halt_processes(self) -> list[int]:
        """Stops all of its processes; returns the numbers of those below the main one."""
        # The main one first: then there are no new ones.
        _halt([self.pid])
        below = children(self.pid)
        _halt(below)
        return below


def _server_user() -> pwd.struct_passwd | None:
    """Whom to run the server as, which refuses to run as root; None: as who runs this."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PostgresMissingError("PostgreSQL does not run as root, and there is no user for it")


def _free_port() -> int:
    ports = list(range(*_PORTS))
    SystemRandom().shuffle(ports)
    for port in ports:
        with socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            probe.bind((_HOST, port))
            return port
    raise PostgresFailedError("there is no free port")


def _lock_file(directory: Path) -> list[str]:
    try:
        return (directory / "data" / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _remove_shared_memory(directory: Path) -> None:
    lines = _lock_file(directory)
    if len(lines) > _MEMORY_LINE:
        _, number = lines[_MEMORY_LINE].split()
        _libc.shmctl(int(number), _IPC_RMID, None)


def _states(pids: list[int]) -> Iterator[str]:
    """What the living ones among the processes are doing, in the kernel's letters."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _lives(pid: int) -> bool:
    # One that has ended stays until its new parent has asked for its status.
    return any(state not in "ZX" for state in _states([pid]))


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _halt(pids: list[int]) -> None:
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    _wait_until(lambda: all(state in "TtZX" for state in _states(pids)), "processes go on")


def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _STOP_TIME
    while not condition():
        if time.monotonic() > deadline:
            raise PostgresFailedError(f"{otherwise} after {_STOP_TIME:g} seconds")
        time.sleep(_STEP)
