"""The server that a benchmark drives: one of its own, or any other by address and process."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from types import TracebackType

from bench.processes import (
    ROOT,
    Cores,
    Process,
    cpu_seconds,
    open_files,
    python,
    resident_kib,
    waited_seconds,
)
from txsimplex.addresses import DEFAULT_SMP_PORT, Scheme, ServerAddress

_READY = "SMP relay ready: "
_START_TIME = 15.0
_TWISTD = "import sys; from twisted.scripts.twistd import run; sys.exit(run())"
_SMPCTL = "import sys; from smpd.ctl import main; sys.exit(main())"


class ServerFailedError(Exception):
    """The server could not be started."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server under load: its address, and its processes if they can be measured."""

    address: ServerAddress
    pids: tuple[int, ...]

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

    def open_files(self) -> int:
        """How many file descriptors are open."""
        return sum(map(open_files, self.pids))


class OwnServer:
    """``twistd -n smpd`` with the memory store, in a temporary directory, on 127.0.0.1.

    A context manager that gives the `Server` when it is ready.
    """

    def __init__(self, cores: Cores, twistd_options: Sequence[str] = ()) -> None:
        self._cores = cores
        self._twistd_options = twistd_options
        self._stack = ExitStack()

    def __enter__(self) -> Server:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            _install(directory)
            log = directory / "log"
            process = stack.enter_context(
                Process(
                    python(
                        "-c",
                        _TWISTD,
                        "-n",
                        "--pidfile=",
                        *self._twistd_options,
                        "smpd",
                        "--config",
                        str(directory / "smpd.ini"),
                    ),
                    self._cores.server,
                    stdin=subprocess.DEVNULL,
                    stdout=stack.enter_context(log.open("wb")),
                    stderr=subprocess.STDOUT,
                )
            )
            server = Server(_address(process, log), (process.pid,))
            self._stack = stack.pop_all()
        return server

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()


def _install(directory: Path) -> None:
    with socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    arguments = ["--directory", str(directory), "--host", "127.0.0.1", "--no-qr"]
    arguments += ["--listen", f"tcp:{port}:interface=127.0.0.1"]
    made = subprocess.run(
        python("-c", _SMPCTL, "init", *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise ServerFailedError(f"smpctl init failed: {made.stderr.strip()}")


def _address(process: Process, log: Path) -> ServerAddress:
    deadline = time.monotonic() + _START_TIME
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            _, found, address = line.partition(_READY)
            if found:
                return ServerAddress.parse(address.strip(), Scheme.SMP)
        if process.popen.poll() is not None:
            raise ServerFailedError(f"the relay did not start:\n{log.read_text().strip()}")
        time.sleep(0.05)
    raise ServerFailedError(f"the relay was not ready within {_START_TIME:g} seconds")
