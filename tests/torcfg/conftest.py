"""Fixtures: those of the conformance tests, a Tor network, and the tors of both ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.conformance.conftest import connections, relay, relay_processes, relays
from tests.conftest import IN_CI
from tests.e2e.tor_network import TorMissingError, TorNetwork, free_ports
from tests.torcfg.tors import reactor, running
from torcfg.tor_process import TorProcess

__all__ = ["connections", "relay", "relay_processes", "relays"]


@pytest.fixture(scope="package")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorNetwork]:
    """The Tor network. Tests are skipped without tor, but not in CI."""
    try:
        with TorNetwork(tmp_path_factory.mktemp("net")) as network:
            yield network
    except TorMissingError as error:
        if IN_CI:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="package")
def host(network: TorNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorProcess]:
    """The tor of the services."""
    directory = tmp_path_factory.mktemp("tor") / "host"
    yield from running(TorProcess(reactor(), directory, include=network.torrc))


@pytest.fixture(scope="package")
def user(network: TorNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorProcess]:
    """The tor of the clients."""
    directory = tmp_path_factory.mktemp("tor") / "user"
    yield from running(TorProcess(reactor(), directory, socks=True, include=network.torrc))


@pytest.fixture(scope="package")
def socks_port(network: TorNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a proxy reaches Tor: the port of a tor of its own, as Debian's has one."""
    directory = tmp_path_factory.mktemp("tor") / "proxy"
    (port,) = free_ports(1)
    include = directory.with_suffix(".torrc")
    include.write_text(f"{network.torrc.read_text()}SocksPort 127.0.0.1:{port}\n")
    for _ in running(TorProcess(reactor(), directory, include=include, socks=True)):
        yield port


@pytest.fixture
def need_tor() -> None:
    """Skips a test without tor, but not in CI."""
    try:
        subprocess.run(["tor", "--version"], capture_output=True, check=True)
    except FileNotFoundError:
        if IN_CI:
            raise
        pytest.skip("tor is not installed (Debian: tor)")
