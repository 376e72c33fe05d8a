"""A relay for the client's tests: `smpd` itself, in this process, over real TLS sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.endpoints import TCP4ClientEndpoint

from smpd.config import load
from smpd.ctl import run
from smpd.tap import RelayService
from tests.coroutines import finish
from txsimplex.addresses import Host, RelayLocation, Scheme, ServerAddress
from txsimplex.client.smp import SMPClient, connect


@dataclass
class RunningRelay:
    """A relay that listens on 127.0.0.1."""

    service: RelayService
    address: ServerAddress
    port: int

    def endpoint(self) -> TCP4ClientEndpoint:
        """Where it listens."""
        from twisted.internet import reactor

        return TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)

    async def connect(self, **options: Any) -> SMPClient:
        """A client connected to it."""
        return await connect(self.endpoint(), self.address, **options)


@pytest.fixture(scope="session")
def relay_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a relay's configuration and certificates are."""
    directory = tmp_path_factory.mktemp("relay") / "smpd"
    arguments = ["init", "--directory", str(directory), "--host", "127.0.0.1", "--no-qr"]
    arguments += ["--listen", "tcp:0:interface=127.0.0.1"]
    assert run(arguments) == 0
    return directory


StartRelay = Callable[[str], RunningRelay]


@pytest.fixture
def start_relay(relay_directory: Path, tmp_path: Path) -> Iterator[StartRelay]:
    """Starts relays with settings of their own, added to those of `smpctl init`."""
    services: list[RelayService] = []

    def start(settings: str) -> RunningRelay:
        text = (relay_directory / "smpd.ini").read_text()
        for line in settings.splitlines():
            section, _, rest = line.partition(".")
            text = text.replace(f"[{section}]", f"[{section}]\n{rest}", 1)
        path = relay_directory / f"{tmp_path.name}-{len(services)}.ini"
        path.write_text(text)
        service = RelayService(load(path))
        service.privilegedStartService()
        service.startService()
        services.append(service)
        (listening,) = service.listener.ports
        host: Any = listening.getHost()
        port: int = host.port
        location = RelayLocation(
            (Host.parse("127.0.0.1"),), str(port), service.sessions.identity.key_hash
        )
        return RunningRelay(service, ServerAddress(Scheme.SMP, location), port)

    yield start
    for service in services:
        finish(_stop(service))


async def _stop(service: RelayService) -> None:
    await service.stopService()


@pytest.fixture
def relay(start_relay: StartRelay) -> RunningRelay:
    """A relay with ordinary settings, and short intervals for events and notifications."""
    return start_relay("delivery.end_interval = 0.1\nnotifications.delivery_interval = 0.1")
