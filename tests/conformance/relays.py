"""Relays under test: processes of `twistd smpd` on 127.0.0.1, one per configuration."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Self

from tests import postgres
from tests.conformance import ROOT
from txsimplex import pem
from txsimplex.addresses import Host, RelayLocation
from txsimplex.certificates import fingerprint
from txsimplex.issuing import make_authority, make_online
from txsimplex.keys import Algorithm, PrivateKey

Settings = Mapping[str, object]
"""Values of the configuration by "section.key"."""

REFERENCE_TEST_SETTINGS: Final[Settings] = {
    "queues.quota": 4,
    "delivery.end_interval": 0.5,
    "notifications.delivery_interval": 0.2,
}
"""What the reference's own tests set (smp-conformance.md, introduction)."""

PROCESSES: Final = "SIMPLEXD_TEST_PROCESSES"
"""The variable of the environment that gives relays so many edge processes."""

STORE: Final = os.environ.get("SIMPLEXD_TEST_STORE", "sqlite")
"""The store of relays whose test does not ask for another: sqlite, memory or postgres."""

_TWISTD: Final = "import sys; from twisted.scripts.twistd import run; sys.exit(run())"
_SMPCTL: Final = "import sys; from smpd.ctl import main; sys.exit(main())"
_OPTIONS: Final = ("-n", "--pidfile=", "smpd")
_READY: Final = "SMP relay ready"
_START_TIME: Final = 30.0
_END_TIME: Final = 15.0
_ATTEMPTS: Final = 3
_PR_SET_PDEATHSIG: Final = 1
_SIGNS_OF_FAULTS: Final = ("Traceback", "Unhandled", "[critical]", "#critical", "#error")
_libc: Final = ctypes.CDLL(None)


@dataclass(frozen=True)
class Credentials:
    """The identity of a relay and its online certificate, made for the tests."""

    authority: bytes
    authority_key: PrivateKey = field(repr=False)
    online: bytes
    online_key: PrivateKey = field(repr=False)

    @classmethod
    def make(cls, algorithm: Algorithm = Algorithm.ED25519) -> Credentials:
        """New ones, valid since yesterday."""
        since = datetime.now(UTC) - timedelta(days=1)
        authority_key = PrivateKey.generate(algorithm, os.urandom)
        online_key = PrivateKey.generate(algorithm, os.urandom)
        authority = make_authority(authority_key, since, os.urandom)
        online = make_online(
            "localhost", online_key.public, authority, authority_key, since, os.urandom
        )
        return cls(authority, authority_key, online, online_key)

    @property
    def key_hash(self) -> bytes:
        """What stands in the relay's address."""
        return fingerprint(self.authority)

    def write(self, directory: Path) -> None:
        """Writes the files that the relay reads."""
        (directory / "ca.crt").write_bytes(pem.encode_certificates([self.authority]))
        (directory / "server.crt").write_bytes(pem.encode_certificates([self.online]))
        key = directory / "server.key"
        key.touch(0o600)
        key.write_bytes(pem.encode_key(self.online_key))


class RelayFailedError(Exception):
    """A relay did not start or did not end; the text has its log."""


class ConfiguredRelay:
    """A relay's identity and settings in `directory`, which must be empty, and its address.

    `settings` are added to `REFERENCE_TEST_SETTINGS`. A relay whose store is in PostgreSQL
    gets a database of its own, and keeps it, unless `store.database` says which one it has.
    """

    def __init__(
        self, directory: Path, credentials: Credentials, settings: Settings | None = None
    ) -> None:
        self._directory = directory
        self.credentials = credentials
        self.settings = {**REFERENCE_TEST_SETTINGS, "store.kind": STORE, **(settings or {})}
        self.port = 0
        self._database: str | None = None

    @property
    def location(self) -> RelayLocation:
        """Its address, without a password."""
        hosts = (Host.parse("127.0.0.1"),)
        return RelayLocation(hosts, str(self.port), self.credentials.key_hash)

    def write_configuration(self) -> Path:
        """Writes its files, to listen on `port`; returns the path of the configuration.

        The first time it makes its database, if it has one.
        """
        self.credentials.write(self._directory)
        places = {
            "server.listen": f"tcp:{self.port}:interface=127.0.0.1",
            "server.hosts": "127.0.0.1",
        }
        made = self._database is not None
        if self.settings["store.kind"] == "postgres" and "store.database" not in self.settings:
            self._database = self._database or postgres.server().database()
            places["store.database"] = self._database
        path = self._directory / "smpd.ini"
        path.touch(0o600)
        path.write_text(_ini({**self.settings, **places}))
        if self._database is not None and not made:
            self._create_schema(path)
        return path

    def _create_schema(self, configuration: Path) -> None:
        run = subprocess.run(
            (sys.executable, "-c", _SMPCTL, "--config", configuration, "database", "create"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise RelayFailedError(f"smpctl made no database:\n{run.stdout}{run.stderr}")


class RelayProcess(ConfiguredRelay):
    """A relay in a process of its own.

    A context manager: the process is ended, by its number, when the block is left, and by
    the kernel when the tests die.
    """

    def __init__(
        self, directory: Path, credentials: Credentials, settings: Settings | None = None
    ) -> None:
        several = {"server.processes": os.environ[PROCESSES]} if PROCESSES in os.environ else {}
        super().__init__(directory, credentials, {**several, **(settings or {})})
        self._log = directory / "log"
        self._started = 0
        self._checked = 0
        self._process: subprocess.Popen[bytes] | None = None

    # -- starting and ending

    def start(self) -> Self:
        """Starts the process and waits until it listens, each time on another port."""
        for attempt in range(1, _ATTEMPTS + 1):
            self.port = _free_port()
            self._run()
            try:
                self._wait_until_ready()
            except RelayFailedError:
                self.end()
                # Another process may have taken the port in between.
                if attempt == _ATTEMPTS or "in use" not in self._log_since_start:
                    raise
            else:
                return self
        raise AssertionError("unreachable")

    def start_again(self, location: RelayLocation) -> None:
        """Starts the process where it was before."""
        self.port = int(location.port)
        self._run()
        self._wait_until_ready()

    def _run(self) -> None:
        configuration = self.write_configuration()
        self._started = len(self.log)
        # Like the environment of a service: nothing of the tests' own options.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-c", _TWISTD, *_OPTIONS, "--config", str(configuration)),
                cwd=self._directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  (no other thread holds a lock it needs)
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIME
        while _READY not in (log := self._log_since_start):
            if not self.running:
                raise RelayFailedError(f"the relay did not start:\n{log}")
            if time.monotonic() > deadline:
                raise RelayFailedError(f"not ready after {_START_TIME:g} seconds:\n{log}")
            time.sleep(0.02)

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ends the process: SIGTERM as systemd does, and by force when that does not help."""
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(by)
        try:
            process.wait(_END_TIME)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RelayFailedError(f"the relay did not end by itself:\n{self.log}") from None
        finally:
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.end()

    # -- what it is and uses

    @property
    def pid(self) -> int:
        """The number of the process."""
        if self._process is None:
            raise RelayFailedError("the relay is not running")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> int | None:
        """With which exit status it has ended by itself; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def resident_kib(self) -> int:
        """Resident memory in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmRSS":
                return int(value.split()[0])
        raise RelayFailedError("the process has no memory any more")

    @property
    def open_files(self) -> int:
        """How many file descriptors are open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    # -- its log

    @property
    def _log_since_start(self) -> str:
        return self.log[self._started :]

    @property
    def log(self) -> str:
        """All it has logged, also before it was started again."""
        if not self._log.exists():
            return ""
        return self._log.read_text(errors="replace")

    def new_faults(self) -> str:
        """What it has logged since the last call, if there are tracebacks or errors in it."""
        log = self.log
        new, self._checked = log[self._checked :], len(log)
        return new if any(sign in new for sign in _SIGNS_OF_FAULTS) else ""


class Relays:
    """The relays of a test session: each configuration is started once, when it is asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._relays: dict[tuple[object, ...], RelayProcess] = {}
        self._credentials: dict[Algorithm, Credentials] = {}

    def get(self, settings: Settings, algorithm: Algorithm = Algorithm.ED25519) -> RelayProcess:
        """The relay with these settings and certificates of this algorithm, running."""
        key = (algorithm, *sorted((name, str(value)) for name, value in settings.items()))
        relay = self._relays.get(key)
        if relay is None:
            if algorithm not in self._credentials:
                self._credentials[algorithm] = Credentials.make(algorithm)
            directory = self._directory / f"relay-{len(self._relays)}"
            directory.mkdir(mode=0o700)
            relay = RelayProcess(directory, self._credentials[algorithm], settings)
            self._relays[key] = relay.start()
        return relay

    def new_faults(self) -> str:
        """What any of them has logged since the last call, if it is a fault."""
        return "".join(relay.new_faults() for relay in self._relays.values())

    def end(self) -> None:
        """Ends all of them."""
        with contextlib.ExitStack() as stack:
            for relay in self._relays.values():
                stack.callback(relay.end)
        self._relays.clear()


def _ini(settings: Settings) -> str:
    sections: dict[str, list[str]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, []).append(f"{key} = {value}\n")
    return "\n".join(f"[{section}]\n{''.join(lines)}" for section, lines in sections.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
