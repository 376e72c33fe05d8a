"""The server that a benchmark drives: one of its own, or any other by address and process."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from types import TracebackType
from typing import TYPE_CHECKING

from bench.database_server import own_database_server
from bench.running import (
    ROOT,
    Cores,
    Process,
    children,
    cpu_seconds,
    open_files,
    python,
    resident_kib,
    waited_seconds,
    written_bytes,
)
from smpd.ini import filled_in
from txsimplex.addresses import DEFAULT_SMP_PORT, Scheme, ServerAddress

if TYPE_CHECKING:
    from bench.postgres_server import PostgresServer

STORES = ("memory", "sqlite", "postgres")
"""The stores that a relay can have, as its configuration names them."""

CONFIGURATION = "smpd.ini"
"""The name of a relay's configuration in its directory."""

_READY = "SMP relay ready: "
_START_TIME = 15.0
_READY_STEP = 0.02
_COMPLAINT = re.compile(r"Traceback|#(?:error|critical)\]")
_TWISTD = "import sys; from twisted.scripts.twistd import run; sys.exit(run())"
_SMPCTL = "import sys; from smpd.ctl import main; sys.exit(main())"


class ServerFailedError(Exception):
    """The server could not be started."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server under load: its address, and its processes if they can be measured.

    `database` is what its store is in, if that is PostgreSQL. Unless said otherwise, it is not
    part of what is measured.
    """

    address: ServerAddress
    pids: tuple[int, ...]
    database: PostgresServer | None = None

    @property
    def host(self) -> str:
        """Where to connect."""
        return self.address.hosts[0].text

    @property
    def port(self) -> int:
        """Where to connect."""
        return int(self.address.port or DEFAULT_SMP_PORT)

    def cpu_seconds(self) -> float:
        """User and system time used so far, in seconds."""
        return sum(map(cpu_seconds, self.pids))

    def waited_seconds(self) -> float:
        """How long it was ready to run while others had its core, in seconds."""
        return sum(map(waited_seconds, self.pids))

    def resident_kib(self) -> int:
        """Resident memory in KiB."""
        return sum(map(resident_kib, self.pids))

    def written_bytes(self) -> int:
        """How many bytes it has had written to disks so far."""
        return sum(map(written_bytes, self.pids))

    def open_files(self) -> int:
        """How many file descriptors are open."""
        return sum(map(open_files, self.pids))


class Installation:
    """A relay's directory on this machine, temporary, and the process that is started on it.

    A context manager. The process, ``twistd -n smpd`` on 127.0.0.1, can be started and
    ended several times on the same directory, and ends with the installation. `store` is
    one of `STORES`; one that keeps something on disk does so in `store_path`, below
    `parent` if that is given. For ``postgres`` it has a database of its own, in a server of
    its own, or in `database_server`; or it shares that of `sharing`, another installation.
    `settings` are further keys of the configuration.
    """

    def __init__(
        self,
        cores: Cores,
        twistd_options: Sequence[str] = (),
        *,
        store: str = "memory",
        parent: Path | None = None,
        settings: Mapping[tuple[str, str], str] | None = None,
        database_server: PostgresServer | None = None,
        sharing: Installation | None = None,
    ) -> None:
        self._cores = cores
        self._twistd_options = twistd_options
        self._store = store
        self._parent = parent
        self._settings = dict(settings or {})
        self._sharing = sharing
        if sharing is not None:
            database_server = sharing.database_server
        self.database_server: PostgresServer | None = database_server
        """Where its database is, for ``postgres``."""
        self.database: str | None = None
        """Where its relay connects to, for ``postgres``."""
        self._stack = ExitStack()
        self._directory = Path()
        self._process: Process | None = None

    @property
    def store_path(self) -> Path:
        """The directory of the store."""
        return self._directory / "store"

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    @property
    def _configuration(self) -> Path:
        return self._directory / CONFIGURATION

    def _place_in_database(self, stack: ExitStack) -> str:
        if self._sharing is not None:
            assert self._sharing.database is not None
            return self._sharing.database
        if self.database_server is None:
            server = own_database_server(self._cores, self._parent)
            self.database_server = stack.enter_context(server)
        return self.database_server.database()

    def __enter__(self) -> Installation:
        with ExitStack() as stack:
            made = tempfile.TemporaryDirectory(prefix="bench-", dir=self._parent)
            self._directory = Path(stack.enter_context(made)).resolve()
            self._settings[("store", "kind")] = self._store
            if self._store == "postgres":
                self.database = self._place_in_database(stack)
                self._settings[("store", "database")] = self.database
            elif self._store != "memory":
                self._settings[("store", "path")] = str(self.store_path)
            _install(self._directory, self._settings)
            if self._store == "postgres" and self._sharing is None:
                _smpctl("--config", str(self._configuration), "database", "create")
            stack.callback(self.end)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def launch(self) -> int:
        """Starts the process, which is then not ready yet; its number."""
        self.end()
        arguments = ("-n", "--pidfile=", *self._twistd_options, "smpd", "--config")
        with self._log.open("wb") as log:
            self._process = Process(
                python("-c", _TWISTD, *arguments, str(self._configuration)),
                self._cores.server,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self._process.pid

    def ready(self, within: float = _START_TIME) -> Server:
        """Waits `within` seconds for the relay to say that it is ready."""
        process = self._process
        if process is None:
            raise ServerFailedError("the relay was not started")
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for line in self._log.read_text().splitlines():
                _, found, address = line.partition(_READY)
                if found:
                    parsed = ServerAddress.parse(address.strip(), Scheme.SMP)
                    pids = (process.pid, *children(process.pid))
                    return Server(parsed, pids, self.database_server)
            if process.popen.poll() is not None:
                text = self._log.read_text().strip()
                raise ServerFailedError(f"the relay did not start:\n{text}")
            time.sleep(_READY_STEP)
        raise ServerFailedError(f"the relay was not ready within {within:g} seconds")

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ends the process, if there is one, and waits until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.end(by)

    def complaints(self) -> list[str]:
        """The lines of the log since the last start that tell of an error."""
        if not self._log.exists():
            return []
        return [line for line in self._log.read_text().splitlines() if _COMPLAINT.search(line)]


class OwnServer:
    """An `Installation` whose relay runs; a context manager that gives the `Server`."""

    def __init__(
        self,
        cores: Cores,
        twistd_options: Sequence[str] = (),
        *,
        store: str = "memory",
        parent: Path | None = None,
    ) -> None:
        self._installation = Installation(cores, twistd_options, store=store, parent=parent)

    def __enter__(self) -> Server:
        with ExitStack() as stack:
            installation = stack.enter_context(self._installation)
            installation.launch()
            server = installation.ready()
            stack.pop_all()
        return server

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._installation.__exit__(kind, error, traceback)


def _install(directory: Path, settings: Mapping[tuple[str, str], str]) -> None:
    with socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    arguments = ["--directory", str(directory), "--host", "127.0.0.1", "--no-qr"]
    _smpctl("init", *arguments, "--listen", f"tcp:{port}:interface=127.0.0.1")
    if settings:
        configuration = directory / CONFIGURATION
        configuration.write_text(filled_in(configuration.read_text(), settings))


def _smpctl(*arguments: str) -> None:
    made = subprocess.run(
        python("-c", _SMPCTL, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise ServerFailedError(f"smpctl failed: {made.stderr.strip()}")
