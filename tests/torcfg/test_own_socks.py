"""Relays whose proxy reaches others by the tor that they run themselves."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.endpoints import UNIXClientEndpoint
from txtorcon.torcontrolprotocol import TorControlProtocol

from bench.running import children
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
from tests.conformance.relays import RelayProcess
from tests.e2e.tor_network import TorNetwork
from tests.torcfg.tors import (
    BY_TOR,
    PORT,
    REACHED,
    OnionRelay,
    comm,
    control_at,
    publish,
    reactor,
    target,
    without_network,
    works,
)
from torcfg.publishing import State
from torcfg.tor_process import TorProcess
from txsimplex.addresses import Host, RelayLocation
from txsimplex.client.errors import ProxyError
from txsimplex.client.proxied import through
from txsimplex.client.smp import SMPClient, connect

pytestmark = BY_TOR

NETWORK = "PROXY BROKER NETWORK"
NO_SESSION = "PROXY NO_SESSION"


def tors(process: RelayProcess) -> list[int]:
    """The tors that a relay runs."""
    return [pid for pid in children(process.pid) if comm(pid).strip() == "tor"]


def at(relay: OnionRelay, port: int = PORT) -> RelayLocation:
    """The relay as an onion service."""
    return replace(relay.location, hosts=(relay.onion,), port=str(port))


async def published(relay: OnionRelay) -> None:
    """Who asks for it before that has to wait longer."""
    waited = 0.0
    while "the onion service: published" not in relay.log:
        assert waited < REACHED
        await pause(0.1)
        waited += 0.1


async def beside(relay: OnionRelay, connections: list[Connection]) -> SMPClient:
    """A client on the same machine, for which Tor need not be waited for."""
    way = UNIXClientEndpoint(reactor(), str(relay.socket))
    client: SMPClient = await connect(way, relay.location)
    connections.append(client)
    return client


async def circuits(control: TorControlProtocol) -> dict[str, str]:
    """The circuit of each stream of a tor, by the stream's port."""
    said = await control.get_info_raw("stream-status")
    streams = [line.split() for line in said.partition("=")[2].splitlines() if line.strip()]
    return {place.rpartition(":")[2]: circuit for _, _, circuit, place in streams}


@ensureDeferred
async def test_an_onion_service_forwards_to_another(
    network: TorNetwork,
    host: TorProcess,
    user: TorProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Both have no TCP port; one tor does all for the proxy, and nothing goes past it."""
    here, there = tmp_path_factory.mktemp("proxy"), tmp_path_factory.mktemp("relay")
    settings = {
        "tor.control": "own",
        "tor.include": network.torrc,
        "proxy.socks_proxy": "own",
        "proxy.socks_mode": "always",
        "proxy.local_networks": "on",
    }
    elsewhere = {"tor.control": f"unix:{host.directory}/control", "tor.onion_ports": f"{PORT} 443"}
    connections: list[Connection] = []
    with OnionRelay(there, elsewhere) as relay, OnionRelay(here, settings) as proxy:
        for each in (relay, proxy):
            await published(each)
        await works(user, Relay(proxy, connections), proxy.onion.text)
        client = await beside(proxy, connections)
        recipient = await beside(relay, connections)
        queue, key = await make_secured_queue(recipient)
        await deliver(await through(client, at(relay), timeout=REACHED), recipient, queue, key)
        assert len(tors(proxy)) == 1
        assert proxy.listening == set()
        # Tor would take one circuit for both, if they were not kept apart.
        await through(client, at(relay, 443), timeout=REACHED)
        control = await control_at(UNIXClientEndpoint(reactor(), f"{here}/tor/control"))
        used = await circuits(control)
        assert used.keys() == {str(PORT), "443"}
        assert len(set(used.values())) == 2
        # A network without exits: tor would wait for one.
        await control.queue_command("SETCONF SocksTimeout=1")
        with socket.create_server(("127.0.0.1", 0)) as public:
            public.setblocking(False)
            place = (Host.parse("127.0.0.1"),), str(public.getsockname()[1])
            location = RelayLocation(*place, relay.location.key_hash)
            with refused(NETWORK):
                await through(client, location, timeout=REACHED)
            with pytest.raises(BlockingIOError):
                public.accept()
        control.transport.abortConnection()
        for line in ("shows them where this relay is", "giving Tor only an IP address"):
            assert line not in proxy.log
        await close_all(connections)


@ensureDeferred
async def test_a_relay_that_is_no_onion_service_itself(
    relays: GetRelay, network: TorNetwork, host: TorProcess
) -> None:
    """It is asked before its tor is there, and works when it is; also after that has ended."""
    settings = {
        "proxy.socks_proxy": "own",
        "proxy.retry_time": 20,
        "tor.include": network.torrc,
    }
    relay = relays({})
    async with publish(host, target(relay)) as service:
        await service.becomes(State.PUBLISHED)
        where = replace(
            relay.process.location, hosts=(Host.parse(service.key.address),), port=str(PORT)
        )
        proxy = relays(settings)
        recipient, client = await relay.connect(), await proxy.connect()
        queue, key = await make_secured_queue(recipient)
        routed = await through(client, where, timeout=REACHED)
        await deliver(routed, recipient, queue, key)
        assert isinstance(proxy.process, RelayProcess)
        (tor,) = tors(proxy.process)
        os.kill(tor, signal.SIGKILL)
        while tors(proxy.process) in ([], [tor]):
            await pause(0.1)
        assert "it is started again later" in proxy.process.new_faults()
        with pytest.raises(ProxyError, match=NO_SESSION):
            await routed.send(queue.sender_id, b"", key=key)
        await deliver(await through(client, where, timeout=REACHED), recipient, queue, key)


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_a_tor_without_a_network(relays: GetRelay, tmp_path: Path) -> None:
    """Senders are told at once; the name of an onion service goes nowhere else."""
    include = without_network(tmp_path / "tor")
    proxy = relays({"proxy.socks_proxy": "own", "tor.include": include})
    client = await proxy.connect()
    onion = RelayLocation((Host.parse("a" * 56 + ".onion"),), "", bytes(32))
    with refused(NETWORK):
        await through(client, onion)
    await client.ping()
