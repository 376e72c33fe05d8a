"""What tests with a real tor share: tors, services that are published, and ways to them."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_twisted
from twisted.internet.endpoints import UNIXClientEndpoint, quoteStringArgument
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from txtorcon.torcontrolprotocol import TorControlProtocol, TorProtocolFactory
from zope.interface import provider

from bench.running import children
from tests.conformance import ROOT
from tests.conformance.clients import (
    Relay,
    deliver,
    make_secured_queue,
    pause,
)
from tests.conformance.relays import Credentials, RelayProcess, Settings
from torcfg.client_keys import ClientKey
from torcfg.onion_keys import OnionKey
from torcfg.onion_services import OnionService
from torcfg.publishing import OnionPublisher, State, Status
from torcfg.tor_process import TorProcess
from txsimplex.addresses import Host, ServerAddress
from txsimplex.client.errors import DisconnectedError, TimedOutError
from txsimplex.client.smp import SMPClient, connect
from txsimplex.client.socks import SocksCredentials, SocksEndpoint

BY_TOR: Final = [
    pytest.mark.slow,
    # txtorcon leaves closing it to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed file.*control_auth_cookie:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:twisted.internet.defer.Deferred.callbacks:DeprecationWarning"
    ),
]
"""The marks of tests with a real tor."""
PORT: Final = 5223
REACHED: Final = 180.0
"""Seconds in which a service is to be published, or reached."""
ATTEMPT: Final = 20.0
"""Seconds after which one tries by another circuit."""


def reactor() -> Any:
    """The reactor that the tests have."""
    from twisted.internet import reactor as installed

    return installed


def running(tor: TorProcess) -> Iterator[TorProcess]:
    """Runs a tor for a fixture."""
    tor.startService()
    try:
        yield tor
    finally:
        ended = tor.stopService()
        if ended is not None:
            pytest_twisted.blockon(ended)


@contextmanager
def logged() -> Iterator[list[str]]:
    """The lines of the log, meanwhile."""
    lines: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)


@dataclass
class Published:
    """An onion service, and what was said of it."""

    key: OnionKey
    publisher: OnionPublisher
    said: list[Status] = field(default_factory=list)

    async def becomes(self, state: State, before: int = 0) -> None:
        """Waits until it is in this state, or was since so much had been said of it."""
        waited = 0.0
        while state not in [each.state for each in self.said[before:]]:
            assert waited < REACHED, self.said[before:]
            await pause(0.05)
            waited += 0.05


@asynccontextmanager
async def publish(
    tor: TorProcess, service: OnionService, key: OnionKey | None = None, **options: Any
) -> AsyncIterator[Published]:
    """An onion service, published inside of the block."""
    key = key or OnionKey.generate(os.urandom)
    said: list[Status] = []
    publisher = OnionPublisher(reactor(), tor.control, key, service, changed=said.append, **options)
    publisher.startService()
    try:
        yield Published(key, publisher, said)
    finally:
        ended = publisher.stopService()
        assert ended is not None
        await ended
        assert publisher.status == Status(State.STOPPED)


def target(relay: Relay, **more: Any) -> OnionService:
    """The onion service of a relay."""
    return OnionService(((PORT, f"127.0.0.1:{relay.process.port}"),), **more)


def through_tor(
    user: TorProcess, address: str, circuit: str = "", port: int = PORT
) -> SocksEndpoint:
    """The way to an onion service, by the circuit of that name, or by one of its own."""
    socks = UNIXClientEndpoint(reactor(), f"{user.directory}/socks")
    apart = SocksCredentials((circuit or os.urandom(8).hex()).encode(), b"test")
    return SocksEndpoint(socks, address, port, apart)


async def reach(
    user: TorProcess, relay: Relay, address: str, circuit: str = "", port: int = PORT
) -> SMPClient:
    """A client that has connected to the relay by its onion service."""
    location = replace(relay.process.location, hosts=(Host.parse(address),), port=str(port))
    way = through_tor(user, address, circuit, port)
    client: SMPClient = await connect(way, location, timeout=ATTEMPT, command_timeout=REACHED)
    relay.connections.append(client)
    return client


async def works(user: TorProcess, relay: Relay, address: str) -> None:
    """A message of the greatest size gets from a sender to a recipient, both by Tor.

    They try again for a while, as apps do: a directory may not have heard yet, and tor remembers
    what it could not read, and where the service was before.
    """
    deadline = time.monotonic() + REACHED
    while True:
        try:
            recipient, sender = [await reach(user, relay, address) for _ in range(2)]
        except (DisconnectedError, TimedOutError):
            if time.monotonic() > deadline:
                raise
            await pause(0.5)
        else:
            break
    queue, key = await make_secured_queue(recipient)
    await deliver(sender, recipient, queue, key)


async def is_refused(user: TorProcess, relay: Relay, address: str, circuit: str = "") -> None:
    """Tor says that there is no such service; it may go on for a while with what it knew before."""
    for _ in range(int(REACHED / ATTEMPT)):
        with suppress(TimedOutError):
            with pytest.raises(DisconnectedError, match="SocksError"):
                await reach(user, relay, address, circuit)
            return
    pytest.fail("tor has not said whether the service is there")


async def use_key(control: TorControlProtocol, address: str, key: ClientKey) -> None:
    """Lets a client's tor reach a service with a client's key."""
    name, secret = address.removesuffix(".onion"), base64.b64encode(key.secret).decode()
    await control.queue_command(f"ONION_CLIENT_AUTH_ADD {name} x25519:{secret}")


async def control_of(tor: TorProcess) -> TorControlProtocol:
    """A control connection of the test's own."""
    return await control_at(tor.control)


async def control_at(control: IStreamClientEndpoint) -> TorControlProtocol:
    """The same with a tor that is not the test's."""
    connecting: Any = control.connect(TorProtocolFactory())
    protocol: TorControlProtocol = await connecting
    await protocol.post_bootstrap
    return protocol


class OnionRelay(RelayProcess):
    """A relay that is an onion service, and listens on no TCP port."""

    kind = "unix"
    """Of the endpoint that it listens on."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        super().__init__(directory, Credentials.make(), {"tor.onion": "on", **settings})
        self.socket = directory / "onion"
        self.listen = f"{self.kind}:{self.socket}:mode=600"

    def write_configuration(self) -> Path:
        """With another endpoint in the place of the port, and without hosts."""
        path = super().write_configuration()
        lines = path.read_text().splitlines()
        kept = [line for line in lines if not line.startswith(("listen =", "hosts ="))]
        kept.insert(kept.index("[server]") + 1, f"listen = {self.listen}")
        path.write_text("".join(f"{line}\n" for line in kept))
        return path

    @property
    def onion(self) -> Host:
        """The host that the relay has told of last."""
        *_, line = (line for line in self.log.splitlines() if "SMP relay ready" in line)
        (host,) = ServerAddress.parse(line.split()[-1]).location.hosts
        return host

    @property
    def listening(self) -> set[str]:
        """Inodes of TCP sockets on which it, or what it has started, listens."""
        pids = [self.pid, *children(self.pid)]
        own = {str(fd.readlink()) for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir()}
        rows = [
            row.split()
            for name in ("tcp", "tcp6")
            for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
        ]
        return {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"} & own


class EndpointRelay(OnionRelay):
    """A relay that is an onion service by its endpoint, on a tor that is there."""

    def __init__(self, directory: Path, tor: TorProcess, settings: Settings) -> None:
        super().__init__(directory, {"tor.onion": "off", **settings})
        self.listen = onion_endpoint(directory, tor)


def onion_endpoint(directory: Path, tor: TorProcess) -> str:
    """The description of an endpoint with its files in `directory`."""
    control = quoteStringArgument(f"unix:{tor.directory}/control")
    return f"onionservice:{PORT}:key={directory}/onion.key:control={control}"


def comm(pid: int) -> str:
    """The name of a process."""
    return Path(f"/proc/{pid}/comm").read_text()


def smpctl(*arguments: str) -> str:
    """What smpctl says."""
    command = (sys.executable, "-c", "import smpd.ctl, sys; sys.exit(smpd.ctl.main())", *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def without_network(directory: Path, *more: str) -> Path:
    """Further lines for a tor, beside its directory."""
    path = directory.with_suffix(".torrc")
    path.write_text("".join(f"{line}\n" for line in ("DisableNetwork 1", *more)))
    return path


def with_password(password: str) -> tuple[str, str]:
    """Further lines for a tor that lets in who has the password, and not who reads its cookie."""
    command = ("tor", "--quiet", "--hash-password", password)
    hashed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return ("CookieAuthentication 0", f"HashedControlPassword {hashed}")


@asynccontextmanager
async def alone(directory: Path, *more: str) -> AsyncIterator[TorProcess]:
    """A tor without any network."""
    tor = TorProcess(reactor(), directory, include=without_network(directory, *more))
    tor.startService()
    try:
        yield tor
    finally:
        ended = tor.stopService()
        if ended is not None:
            await ended


NOWHERE: Final = OnionService(((PORT, "127.0.0.1:1"),))
