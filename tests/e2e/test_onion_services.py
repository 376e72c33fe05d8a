"""Relays as onion services, on a real tor and a Tor network of the tests' own."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import UNIXClientEndpoint
from txtorcon.torcontrolprotocol import TorControlProtocol, TorProtocolFactory

from tests.conformance.clients import (
    GetRelay,
    Relay,
    deliver,
    make_secured_queue,
    pause,
    soon,
)
from tests.conftest import IN_CI
from tests.e2e.tor_network import TorMissingError, TorNetwork
from torcfg.client_keys import ClientKey
from torcfg.onion_keys import OnionKey
from torcfg.onion_services import OnionService, ProofOfWork
from torcfg.publishing import OnionPublisher, State, Status
from torcfg.tor_process import TorProcess
from txsimplex.addresses import Host
from txsimplex.client.smp import SMPClient, connect
from txsimplex.client.socks import SocksCredentials, SocksEndpoint, SocksError

pytestmark = pytest.mark.slow

PORT: Final = 5223
REACHED: Final = 60.0
"""Seconds in which a service is to be published, or reached."""


def reactor() -> Any:
    """The reactor that the tests have."""
    from twisted.internet import reactor as installed

    return installed


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorNetwork]:
    """The Tor network. Tests are skipped without tor, but not in CI."""
    try:
        with TorNetwork(tmp_path_factory.mktemp("net")) as network:
            yield network
    except TorMissingError as error:
        if IN_CI:
            raise
        pytest.skip(str(error))


def running(tor: TorProcess) -> Iterator[TorProcess]:
    """Runs a tor for a fixture."""
    tor.startService()
    try:
        yield tor
    finally:
        ended = tor.stopService()
        if ended is not None:
            pytest_twisted.blockon(ended)


@pytest.fixture(scope="module")
def host(network: TorNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorProcess]:
    """The tor of the services."""
    directory = tmp_path_factory.mktemp("tor") / "host"
    yield from running(TorProcess(reactor(), directory, more=network.lines))


@pytest.fixture(scope="module")
def user(network: TorNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorProcess]:
    """The tor of the clients."""
    directory = tmp_path_factory.mktemp("tor") / "user"
    yield from running(TorProcess(reactor(), directory, socks=True, more=network.lines))


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


def through_tor(user: TorProcess, address: str) -> SocksEndpoint:
    """The way to an onion service, with a circuit of its own."""
    socks = UNIXClientEndpoint(reactor(), f"{user.directory}/socks")
    apart = SocksCredentials(os.urandom(8).hex().encode(), b"test")
    return SocksEndpoint(socks, address, PORT, apart)


async def reach(user: TorProcess, relay: Relay, address: str) -> SMPClient:
    """A client that has connected to the relay by its onion service."""
    location = replace(relay.process.location, hosts=(Host.parse(address),), port=str(PORT))
    client = await soon(
        connect(through_tor(user, address), location, timeout=REACHED, command_timeout=REACHED),
        REACHED,
    )
    relay.connections.append(client)
    return client


async def works(user: TorProcess, relay: Relay, address: str) -> None:
    """A message of the greatest size gets from a sender to a recipient, both by Tor."""
    recipient, sender = [await reach(user, relay, address) for _ in range(2)]
    queue, key = await make_secured_queue(recipient)
    await deliver(sender, recipient, queue, key)


@ensureDeferred
async def test_a_relay_is_reached_by_its_address(
    relay: Relay, host: TorProcess, user: TorProcess
) -> None:
    async with publish(host, target(relay)) as service:
        await service.becomes(State.PUBLISHED)
        await works(user, relay, service.key.address)


@ensureDeferred
async def test_several_ports_a_limit_of_streams_and_proof_of_work(
    relay: Relay, host: TorProcess, user: TorProcess
) -> None:
    """Whether tor offers proof of work or not, it says so and nothing is lost."""
    place = f"127.0.0.1:{relay.process.port}"
    service = OnionService(((PORT, place), (443, place)), streams=8)
    async with publish(host, service) as published:
        await published.becomes(State.PUBLISHED)
        await works(user, relay, published.key.address)
    defended = replace(service, proof_of_work=ProofOfWork())
    async with publish(host, defended) as published:
        while published.publisher.status.state not in (State.PUBLISHED, State.AWAY):
            await pause(0.1)
        if published.publisher.status.state is State.AWAY:
            assert "tor refuses: 512" in published.publisher.status.detail
        else:
            await works(user, relay, published.key.address)


@ensureDeferred
async def test_it_goes_when_it_is_stopped_and_comes_back_with_its_address(
    relay: Relay, host: TorProcess, user: TorProcess
) -> None:
    key = OnionKey.generate(os.urandom)
    for _ in range(3):
        async with publish(host, target(relay), key) as service:
            await service.becomes(State.PUBLISHED)
            await works(user, relay, key.address)
        control = await control_of(host)
        assert await control.get_info_raw("onions/current") == "onions/current="
        control.transport.abortConnection()


@ensureDeferred
async def test_tor_is_killed(relay: Relay, host: TorProcess, user: TorProcess) -> None:
    """It is started again, and the service comes back by itself."""
    async with publish(host, target(relay)) as service:
        for _ in range(3):
            await service.becomes(State.PUBLISHED)
            await works(user, relay, service.key.address)
            said, pid = len(service.said), host.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await service.becomes(State.AWAY, said)
            await service.becomes(State.PUBLISHED, said)
            assert host.pid != pid
        await works(user, relay, service.key.address)


@ensureDeferred
async def test_the_control_connection_is_lost(
    relay: Relay, host: TorProcess, user: TorProcess
) -> None:
    async with publish(host, target(relay)) as service:
        await service.becomes(State.PUBLISHED)
        said = len(service.said)
        protocol = service.publisher._protocol
        assert protocol is not None
        protocol.transport.abortConnection()
        await service.becomes(State.AWAY, said)
        await service.becomes(State.PUBLISHED, said)
        await works(user, relay, service.key.address)


async def control_of(tor: TorProcess) -> TorControlProtocol:
    """A control connection of the test's own."""
    protocol: TorControlProtocol = await tor.control.connect(TorProtocolFactory())
    await protocol.post_bootstrap
    return protocol


@ensureDeferred
async def test_clients_that_are_authorized(
    relay: Relay, host: TorProcess, user: TorProcess
) -> None:
    """Only those with a key; who is removed does not get in any more."""
    keys = {name: ClientKey.generate(os.urandom) for name in ("alice", "bob")}
    allowed = ["alice"]
    options = {"clients": lambda: [keys[name].public for name in allowed]}
    async with publish(host, target(relay), **options) as service:
        await service.becomes(State.PUBLISHED)
        address = service.key.address
        with pytest.raises(SocksError):
            await reach(user, relay, address)
        control = await control_of(user)
        name = address.removesuffix(".onion")

        async def use(client: str) -> None:
            secret = base64.b64encode(keys[client].secret).decode()
            await control.queue_command(f"ONION_CLIENT_AUTH_ADD {name} x25519:{secret}")
            # Tor remembers for a while that it could not read the descriptor.
            await control.queue_command("SIGNAL NEWNYM")

        await use("alice")
        await works(user, relay, address)
        said = len(service.said)
        allowed[:] = ["bob"]
        await service.publisher.republish()
        await service.becomes(State.PUBLISHED, said)
        await control.queue_command("SIGNAL NEWNYM")
        with pytest.raises(SocksError):
            await reach(user, relay, address)
        await use("bob")
        await works(user, relay, address)
        control.transport.abortConnection()


# -- tors that do not publish anything


@asynccontextmanager
async def alone(directory: Path, *more: str) -> AsyncIterator[TorProcess]:
    """A tor without any network."""
    tor = TorProcess(reactor(), directory, more=["DisableNetwork 1", *more])
    tor.startService()
    try:
        yield tor
    finally:
        ended = tor.stopService()
        if ended is not None:
            await ended


@pytest.fixture
def need_tor() -> None:
    """Skips a test without tor, but not in CI."""
    try:
        subprocess.run(["tor", "--version"], capture_output=True, check=True)
    except FileNotFoundError:
        if IN_CI:
            raise
        pytest.skip("tor is not installed (Debian: tor)")


NOWHERE: Final = OnionService(((PORT, "127.0.0.1:1"),))


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_a_tor_without_a_network(tmp_path: Path) -> None:
    async with alone(tmp_path / "tor") as tor, publish(tor, NOWHERE) as service:
        await service.becomes(State.BOOTSTRAPPING)
        assert service.publisher.status.detail == "0 %"


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_there_is_no_tor(tmp_path: Path) -> None:
    """It is said once, and tried again."""
    tor = TorProcess(reactor(), tmp_path / "tor", more=["DisableNetwork 1"])
    async with publish(tor, NOWHERE) as service:
        await service.becomes(State.AWAY)
        assert "control socket cannot be reached" in service.publisher.status.detail
        tor.startService()
        await service.becomes(State.BOOTSTRAPPING)
        ended = tor.stopService()
        assert ended is not None
        await ended


@pytest.mark.usefixtures("need_tor")
@pytest.mark.parametrize(("given", "gets_in"), [("secret", True), ("wrong", False), (None, False)])
@ensureDeferred
async def test_a_password(tmp_path: Path, given: str | None, *, gets_in: bool) -> None:
    hashed = subprocess.run(
        ["tor", "--quiet", "--hash-password", "secret"], capture_output=True, text=True, check=True
    ).stdout.strip()
    lines = ("CookieAuthentication 0", f"HashedControlPassword {hashed}")
    async with (
        alone(tmp_path / "tor", *lines) as tor,
        publish(tor, NOWHERE, password=given) as service,
    ):
        if gets_in:
            await service.becomes(State.BOOTSTRAPPING)
        else:
            while not any("does not let us in" in each.detail for each in service.said):
                await pause(0.05)
        assert not any("secret" in str(each) or "wrong" in str(each) for each in service.said)


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_a_tor_that_cannot_start_is_tried_again(tmp_path: Path) -> None:
    tor = TorProcess(reactor(), tmp_path / "tor", more=["NoSuchOption 1"])
    lines: list[str] = []
    said: Callable[[str], None] = lines.append
    tor.said = said  # type: ignore[method-assign]
    tor.startService()
    while sum("NoSuchOption" in line for line in lines) < 2:
        await pause(0.05)
    ended = tor.stopService()
    if ended is not None:
        await ended
    assert tor.pid is None


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_the_files_of_a_tor_are_for_nobody_else(tmp_path: Path) -> None:
    async with alone(tmp_path / "tor") as tor, publish(tor, NOWHERE) as service:
        await service.becomes(State.BOOTSTRAPPING)
        assert (tmp_path / "tor").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "tor/torrc").stat().st_mode & 0o777 == 0o600


@ensureDeferred
async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    tor = TorProcess(reactor(), tmp_path / "tor", program="/nonexistent/tor")
    tor.startService()
    await pause(0.3)
    ended = tor.stopService()
    if ended is not None:
        await ended
    assert tor.pid is None


@ensureDeferred
async def test_relays_do_not_know_each_other(
    relays: GetRelay, host: TorProcess, user: TorProcess
) -> None:
    """Two services of one tor have addresses of their own, and lead to their own relays."""
    first, second = relays({}), relays({"queues.quota": 5})
    async with publish(host, target(first)) as one, publish(host, target(second)) as other:
        await gatherResults(
            [Deferred.fromCoroutine(each.becomes(State.PUBLISHED)) for each in (one, other)]
        )
        assert one.key.address != other.key.address
        await works(user, first, one.key.address)
        await works(user, second, other.key.address)
