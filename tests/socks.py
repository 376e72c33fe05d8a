"""A SOCKS 5 server of one's own for tests: microsocks, a process on 127.0.0.1."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Final

from bench.running import Process

_PROGRAM: Final = "microsocks"
_ADDRESS: Final = "127.0.0.1"
_START_TIME: Final = 10.0
_STEP: Final = 0.02


class SocksMissingError(Exception):
    """The program is not installed."""


class SocksFailedError(Exception):
    """The server did not start; the text has its log."""


class SocksServer:
    """The server, running: a context manager. `directory` is where its log is.

    With `credentials`, a name and a password, it takes nobody who has others or none; without,
    it takes nobody who offers nothing but credentials.
    """

    def __init__(self, directory: Path, credentials: tuple[str, str] | None = None) -> None:
        self._log = directory / "socks.log"
        self._credentials = credentials
        self._process: Process | None = None
        self.port = 0

    def start(self) -> None:
        """Starts it. Raises `SocksMissingError` and `SocksFailedError`."""
        program = shutil.which(_PROGRAM)
        if program is None:
            raise SocksMissingError(f"there is no {_PROGRAM}")
        with socket.create_server((_ADDRESS, 0)) as probe:
            self.port = probe.getsockname()[1]
        arguments = [program, "-i", _ADDRESS, "-p", str(self.port)]
        if self._credentials is not None:
            arguments += ["-u", self._credentials[0], "-P", self._credentials[1]]
        with self._log.open("wb") as log:
            self._process = Process(
                arguments,
                os.sched_getaffinity(0),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._wait_until_ready(self._process)

    def _wait_until_ready(self, process: Process) -> None:
        deadline = time.monotonic() + _START_TIME
        while process.popen.poll() is None and time.monotonic() < deadline:
            try:
                socket.create_connection((_ADDRESS, self.port), _STEP).close()
            except OSError:
                time.sleep(_STEP)
            else:
                return
        process.end()
        raise SocksFailedError(f"{_PROGRAM} did not start:\n{self._log.read_text()}")

    def end(self) -> None:
        """Ends it, with all connections through it."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def __enter__(self) -> SocksServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def connected(self) -> list[str]:
        """Where it has connected to so far: ``host:port`` each, as it was asked for the host."""
        lines = self._log.read_text().splitlines()
        parts = [line.partition(": connected to ") for line in lines]
        return [place for _, found, place in parts if found]
