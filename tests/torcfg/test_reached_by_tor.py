"""Relays as onion services, on a real tor and a Tor network of the tests' own."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from txtorcon.torcontrolprotocol import TorControlProtocol, TorProtocolFactory
from zope.interface import provider

from bench.running import children
from tests.conformance import ROOT
from tests.conformance.clients import (
    Connection,
    GetRelay,
    Relay,
    close_all,
    deliver,
    make_secured_queue,
    pause,
    refused,
)
from tests.conformance.relays import Credentials, RelayFailedError, RelayProcess, Settings
from tests.conformance.versions import at_versions
from tests.conftest import IN_CI
from tests.e2e.tor_network import TorMissingError, TorNetwork, free_ports
from torcfg.client_keys import ClientKey
from torcfg.onion_keys import OnionKey
from torcfg.onion_services import OnionService, ProofOfWork
from torcfg.publishing import OnionPublisher, State, Status
from torcfg.tor_process import TorProcess
from txsimplex.addresses import Host, ServerAddress
from txsimplex.client.errors import DisconnectedError, TimedOutError
from txsimplex.client.proxied import through
from txsimplex.client.smp import SMPClient, connect
from txsimplex.client.socks import SocksCredentials, SocksEndpoint

pytestmark = [
    pytest.mark.slow,
    # txtorcon leaves closing it to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed file.*control_auth_cookie:ResourceWarning"),
    pytest.mark.filterwarnings(
        "ignore:twisted.internet.defer.Deferred.callbacks:DeprecationWarning"
    ),
]

PORT: Final = 5223
REACHED: Final = 180.0
"""Seconds in which a service is to be published, or reached."""
ATTEMPT: Final = 20.0
"""Seconds after which one tries by another circuit."""


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
    yield from running(TorProcess(reactor(), directory, include=network.torrc))


@pytest.fixture(scope="module")
def user(network: TorNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorProcess]:
    """The tor of the clients."""
    directory = tmp_path_factory.mktemp("tor") / "user"
    yield from running(TorProcess(reactor(), directory, socks=True, include=network.torrc))


@pytest.fixture(scope="module")
def socks_port(network: TorNetwork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a proxy reaches Tor: the port of a tor of its own, as Debian's has one."""
    directory = tmp_path_factory.mktemp("tor") / "proxy"
    (port,) = free_ports(1)
    include = directory.with_suffix(".torrc")
    include.write_text(f"{network.torrc.read_text()}SocksPort 127.0.0.1:{port}\n")
    for _ in running(TorProcess(reactor(), directory, include=include, socks=True)):
        yield port


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
    way = through_tor(user, address)
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


@at_versions(8, 14, 18)
async def test_a_proxy_reaches_a_relay_that_is_an_onion_service_only(
    relays: GetRelay, host: TorProcess, socks_port: int, version: int
) -> None:
    """smp-proxy.md §5.2, over a real Tor network; without one nothing is looked up."""
    relay, proxy = relays({}), relays({"proxy.socks_proxy": f"127.0.0.1:{socks_port}"})
    without = relays({})
    async with publish(host, target(relay)) as service:
        await service.becomes(State.PUBLISHED)
        where = replace(
            relay.process.location, hosts=(Host.parse(service.key.address),), port=str(PORT)
        )
        recipient, client = await relay.connect(), await proxy.connect(version)
        routed = await through(client, where)
        queue, key = await make_secured_queue(recipient)
        await deliver(routed, recipient, queue, key)
        with refused("PROXY BROKER NETWORK"):
            await through(await without.connect(version), where)


@ensureDeferred
async def test_clients_that_are_authorized(
    relay: Relay, host: TorProcess, user: TorProcess
) -> None:
    """Only those with a key; who is removed does not get in any more."""
    keys = {name: ClientKey.generate(os.urandom) for name in ("alice", "bob")}
    allowed = ["alice"]

    def clients() -> list[str]:
        return [keys[name].public for name in allowed]

    async with publish(host, target(relay), clients=clients) as service:
        await service.becomes(State.PUBLISHED)
        address = service.key.address
        with pytest.raises(DisconnectedError, match="SocksError"):
            await reach(user, relay, address)
        control = await control_of(user)
        name = address.removesuffix(".onion")

        async def use(client: str) -> None:
            secret = base64.b64encode(keys[client].secret).decode()
            await control.queue_command(f"ONION_CLIENT_AUTH_ADD {name} x25519:{secret}")

        await use("alice")
        await works(user, relay, address)
        said = len(service.said)
        allowed[:] = ["bob"]
        await service.publisher.republish()
        await service.becomes(State.PUBLISHED, said)
        await control.queue_command("SIGNAL NEWNYM")
        with pytest.raises(DisconnectedError, match="SocksError"):
            await reach(user, relay, address)
        await use("bob")
        await works(user, relay, address)
        control.transport.abortConnection()


# -- relays that publish themselves


class OnionRelay(RelayProcess):
    """A relay that is an onion service, and listens on no TCP port."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        super().__init__(directory, Credentials.make(), {"tor.onion": "on", **settings})
        self.socket = directory / "onion"

    def write_configuration(self) -> Path:
        """With a Unix socket in the place of the port, and without hosts."""
        path = super().write_configuration()
        lines = path.read_text().splitlines()
        kept = [line for line in lines if not line.startswith(("listen =", "hosts ="))]
        kept.insert(kept.index("[server]") + 1, f"listen = unix:{self.socket}:mode=600")
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


@ensureDeferred
async def test_a_relay_without_any_tcp_port(
    network: TorNetwork, user: TorProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It runs its own tor; stopped and started again, it has its address again."""
    directory = tmp_path_factory.mktemp("relay")
    settings = {"tor.control": "own", "tor.include": network.torrc}
    connections: list[Connection] = []
    with OnionRelay(directory, settings) as process:
        relay = Relay(process, connections)
        onion = process.onion
        await works(user, relay, onion.text)
        assert process.listening == set()
        (tor,) = [pid for pid in children(process.pid) if "tor" in comm(pid)]
        await close_all(connections)
        await deferToThread(process.end)
        assert not Path(f"/proc/{tor}").exists()
        await deferToThread(process.start)
        assert process.onion == onion
        await works(user, relay, onion.text)
        await close_all(connections)
        # Killed, it leaves no tor behind.
        (tor,) = [pid for pid in children(process.pid) if "tor" in comm(pid)]
        await deferToThread(process.end, signal.SIGKILL)
        waited = 0.0
        while Path(f"/proc/{tor}").exists():
            assert waited < REACHED
            await pause(0.5)
            waited += 0.5


def comm(pid: int) -> str:
    """The name of a process."""
    return Path(f"/proc/{pid}/comm").read_text()


@ensureDeferred
async def test_a_relay_on_a_tor_that_is_there(
    host: TorProcess, user: TorProcess, tmp_path: Path
) -> None:
    """As with Debian's tor; with edge processes, too, whose socket tor connects to."""
    settings = {"tor.control": f"unix:{host.directory}/control", "server.processes": 2}
    connections: list[Connection] = []
    with OnionRelay(tmp_path, settings) as process:
        await works(user, Relay(process, connections), process.onion.text)
        assert (tmp_path / "onion.key").stat().st_mode & 0o777 == 0o600
        assert process.onion.text == OnionKey.decode((tmp_path / "onion.key").read_bytes()).address
        printed = await deferToThread(smpctl, "--config", str(tmp_path / "smpd.ini"), "address")
        assert ServerAddress.parse(printed.strip()).location.hosts == (process.onion,)
        assert not any(line in process.log for line in ("ADD_ONION", "ED25519-V3"))
        await close_all(connections)


def smpctl(*arguments: str) -> str:
    """What smpctl says."""
    command = (sys.executable, "-c", "import smpd.ctl, sys; sys.exit(smpd.ctl.main())", *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@ensureDeferred
async def test_a_tor_of_its_own_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RelayFailedError, match="tor is not installed"):
        await deferToThread(OnionRelay(tmp_path, {"tor.control": "own"}).start)


@ensureDeferred
async def test_a_key_that_cannot_be_used(tmp_path: Path) -> None:
    """The relay does not start with another one: the address would be lost."""
    key = tmp_path / "onion.key"
    key.touch(0o600)
    for content, mode, says in (
        (b"nonsense", 0o600, "cannot be used: not a file hs_ed25519_secret_key of tor"),
        (OnionKey.generate(os.urandom).encode(), 0o640, "may be read by others"),
    ):
        key.write_bytes(content)
        key.chmod(mode)
        with pytest.raises(RelayFailedError, match=says):
            await deferToThread(OnionRelay(tmp_path, {}).start)
        assert key.read_bytes() == content


# -- tors that do not publish anything


def without_network(directory: Path, *more: str) -> Path:
    """Further lines for a tor, beside its directory."""
    path = directory.with_suffix(".torrc")
    path.write_text("".join(f"{line}\n" for line in ("DisableNetwork 1", *more)))
    return path


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
    tor = TorProcess(reactor(), tmp_path / "tor", include=without_network(tmp_path / "tor"))
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
    lines: list[str] = []

    class Watched(TorProcess):
        def said(self, line: str) -> None:
            lines.append(line)

    tor = Watched(
        reactor(), tmp_path / "tor", include=without_network(tmp_path / "tor", "NoSuchOption 1")
    )
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


@pytest.mark.parametrize(
    ("program", "place", "says"),
    [
        ("/nonexistent/tor", "tor", "there is no program /nonexistent/tor"),
        ("true", "file/tor", "its files cannot be written: {}/file/tor: Not a directory"),
        ("false", "tor", "exit code 1"),
    ],
)
@ensureDeferred
async def test_a_tor_that_cannot_be_started(
    tmp_path: Path, program: str, place: str, says: str
) -> None:
    """That is said in a line, and tried again."""
    (tmp_path / "file").touch()
    lines: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    tor = TorProcess(reactor(), tmp_path / place, program=program)
    globalLogPublisher.addObserver(observe)
    try:
        tor.startService()
        await pause(0.3)
        ended = tor.stopService()
        if ended is not None:
            await ended
    finally:
        globalLogPublisher.removeObserver(observe)
    assert tor.pid is None
    (line,) = (line for line in lines if line.startswith("tor: "))
    assert says.format(tmp_path) in line
    assert line.endswith("; it is started again later")


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
