"""An onion service in tor's own configuration, which tells the relay of circuits."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from tests.conformance import ROOT
from tests.conformance.clients import (
    Connection,
    Relay,
    close_all,
    deliver,
    make_secured_queue,
    pause,
)
from tests.conformance.relays import RelayFailedError
from tests.e2e.tor_network import TorNetwork
from tests.torcfg.tors import BY_TOR, REACHED, OnionRelay, reach, reactor, running, smpctl
from torcfg.tor_process import TorProcess
from txsimplex.addresses import ServerAddress
from txsimplex.client.errors import DisconnectedError, TimedOutError
from txsimplex.client.smp import SMPClient

pytestmark = BY_TOR
SHIPPED = (ROOT / "etc/torrc.smpd").read_text()


class CountingRelay(OnionRelay):
    """A relay that tor tells of circuits."""

    kind = "haproxy:unix"


def torrc(directory: Path, socket: Path) -> str:
    """The lines that are shipped, for this HiddenServiceDir and this socket."""
    text = SHIPPED.replace("/run/smpd/onion.sock", str(socket))
    return text.replace("/var/lib/tor/smpd", str(directory))


@pytest.fixture
def place(network: TorNetwork, tmp_path: Path) -> Iterator[Path]:
    """The HiddenServiceDir of a tor of its own, which leads to `onion` beside it."""
    include = tmp_path / "torrc"
    lines = torrc(tmp_path / "service", tmp_path / "onion")
    include.write_text(network.torrc.read_text() + lines)
    for _ in running(TorProcess(reactor(), tmp_path / "tor", include=include)):
        yield tmp_path / "service"


class Clients:
    """Clients of a relay by Tor: those of one name have one circuit."""

    def __init__(self, user: TorProcess, relay: Relay, address: str) -> None:
        self._user = user
        self._relay = relay
        self._address = address

    async def connect(self, who: str) -> SMPClient:
        """One more."""
        return await reach(self._user, self._relay, self._address, who)

    async def connect_at_last(self, who: str) -> SMPClient:
        """The same, again and again: until the service is known, or another has left."""
        deadline = time.monotonic() + REACHED
        while True:
            try:
                return await self.connect(who)
            except (DisconnectedError, TimedOutError):
                if time.monotonic() > deadline:
                    raise
                await pause(0.2)

    async def is_refused(self, who: str) -> None:
        """One more does not get in."""
        with pytest.raises(DisconnectedError):
            await self.connect(who)


@ensureDeferred
async def test_connections_are_counted_by_circuit(place: Path, user: TorProcess) -> None:
    """A circuit that has enough gets no more, and others do, as long as not all have enough."""
    settings = {
        "tor.service_directory": place,
        "tor.most_streams": 3,
        "tor.most_connections": 5,
        "server.processes": 1,
    }
    while not (place / "hostname").exists():
        await pause(0.05)
    connections: list[Connection] = []
    with CountingRelay(place.parent, settings) as process:
        name = (place / "hostname").read_text().strip()
        assert process.onion.text == name
        printed = await deferToThread(smpctl, "--config", str(place.parent / "smpd.ini"), "address")
        assert ServerAddress.parse(printed.strip()).location.hosts == (process.onion,)
        clients = Clients(user, Relay(process, connections), name)
        alice = [await clients.connect_at_last("alice")]
        alice += [await clients.connect("alice") for _ in range(2)]
        await clients.is_refused("alice")
        bob = [await clients.connect_at_last("bob"), await clients.connect("bob")]
        queue, key = await make_secured_queue(alice[0])
        await deliver(bob[0], alice[0], queue, key)
        # Of all there are enough.
        await clients.is_refused("bob")
        alice.pop().abort()
        bob.append(await clients.connect_at_last("bob"))
        await clients.is_refused("carol")
        for client in alice + bob:
            await client.ping()
        assert "PROXY TCP" not in process.log
        assert "dead:beef" not in process.log
        await close_all(connections)
    assert not (place.parent / "onion.key").exists()
    await deferToThread(brought_in, place, name)


def brought_in(place: Path, name: str) -> None:
    """A relay takes over the key, which tor itself has made, and so the name."""
    configuration = place.parent / "own.ini"
    configuration.write_text("[tor]\nonion = on\n")
    arguments = ("--config", str(configuration), "onion")
    assert smpctl(*arguments, "restore", str(place)).strip() == name
    assert smpctl(*arguments, "show").strip() == name
    key = place.parent / "onion.key"
    assert key.read_bytes() == (place / "hs_ed25519_secret_key").read_bytes()


@ensureDeferred
async def test_tor_has_not_written_the_name(tmp_path: Path) -> None:
    """The relay does not start: it would have another address than others know."""
    settings = {"tor.service_directory": tmp_path, "server.processes": 1}
    with pytest.raises(RelayFailedError, match="hostname cannot be read: No such file"):
        await deferToThread(CountingRelay(tmp_path, settings).start)


@pytest.mark.usefixtures("need_tor")
@pytest.mark.parametrize("all_lines", [False, True], ids=["as it is", "with what is commented"])
def test_tor_takes_what_is_shipped(tmp_path: Path, *, all_lines: bool) -> None:
    path = tmp_path / "torrc"
    lines = torrc(tmp_path / "service", tmp_path / "onion").splitlines()
    path.write_text(
        "".join(
            line.removeprefix("#" if all_lines and not line.startswith("# ") else "") + "\n"
            for line in lines
        )
    )
    said = subprocess.run(
        [
            *("tor", "--verify-config", "-f", str(path), "--defaults-torrc", "/nonexistent"),
            *("--DataDirectory", str(tmp_path / "data")),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "Configuration was valid" in said
