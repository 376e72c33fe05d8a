"""A proxy that gets to relays through a real SOCKS server (smp-proxy.md §4, §5.2)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.interfaces import IHostnameResolver
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from smpd.destinations import Destinations
from smpd.reach import Reach
from tests.conformance.clients import (
    Connection,
    GetRelay,
    Relay,
    acknowledge,
    make_secured_queue,
    next_msg,
    refused,
)
from tests.conformance.test_o_routing import closed_port
from tests.conftest import IN_CI
from tests.socks import SocksMissingError, SocksServer
from txsimplex.addresses import Host, RelayLocation, SocksAuth, SocksMode, SocksProxy
from txsimplex.client.errors import ClientError, DisconnectedError, ProxyError, TimedOutError
from txsimplex.client.network import Network, for_each_relay, socks_at, socks_on
from txsimplex.client.pool import reason_for_senders
from txsimplex.client.proxied import through
from txsimplex.client.session import Session, open_session

NAME, PASSWORD = "relay", "a-secret"
NETWORK = "PROXY BROKER NETWORK"
ONION = "a" * 56 + ".onion"
NO_NAME = "does-not-exist.invalid"


def started(stack: contextlib.ExitStack, server: SocksServer) -> SocksServer:
    """The server, running until `stack` ends; the test is skipped without its program.

    Not in CI, which has it: there it fails.
    """
    try:
        return stack.enter_context(server)
    except SocksMissingError as error:
        if IN_CI:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SocksServer]:
    """A SOCKS server for everybody."""
    with contextlib.ExitStack() as stack:
        yield started(stack, SocksServer(tmp_path_factory.mktemp("socks")))


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SocksServer]:
    """A SOCKS server that wants name and password."""
    with contextlib.ExitStack() as stack:
        directory = tmp_path_factory.mktemp("socks")
        yield started(stack, SocksServer(directory, (NAME, PASSWORD)))


def by_way_of(server: SocksServer, given: str = "@", host: str = "127.0.0.1") -> dict[str, object]:
    """Settings of a proxy that goes through the server for all relays."""
    return {
        "proxy.socks_proxy": f"{given}{host}:{server.port}",
        "proxy.socks_mode": "always",
        "proxy.local_networks": "on",
    }


async def deliver(proxy: Relay, relay: Relay, location: RelayLocation) -> None:
    """A message of the greatest size gets through proxy and SOCKS server to its recipient."""
    recipient = await relay.connect()
    routed = await through(await proxy.connect(), location)
    queue, key = await make_secured_queue(recipient)
    body = os.urandom(16048)
    await routed.send(queue.sender_id, body, key=key)
    message = await next_msg(recipient, queue)
    assert queue.open(message).body == body
    await acknowledge(recipient, queue, message)


@pytest.mark.parametrize("own_host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@ensureDeferred
async def test_a_message_through_a_socks_server(
    relays: GetRelay, open_server: SocksServer, own_host: str, host: str
) -> None:
    """The SOCKS server and the relay have a name or an address; it is asked for what is given."""
    proxy, relay = relays(by_way_of(open_server, host=own_host)), relays({})
    there = replace(relay.process.location, hosts=(Host.parse(host),))
    before = len(open_server.connected())
    await deliver(proxy, relay, there)
    assert open_server.connected()[before:] == [f"{host}:{there.port}"]


@ensureDeferred
async def test_only_onion_hosts_go_through_it_unless_all_shall(
    relays: GetRelay, open_server: SocksServer
) -> None:
    settings = {**by_way_of(open_server), "proxy.socks_mode": "onion"}
    proxy, relay = relays(settings), relays({})
    before = open_server.connected()
    await deliver(proxy, relay, relay.process.location)
    assert open_server.connected() == before


@ensureDeferred
async def test_name_and_password(relays: GetRelay, guarded_server: SocksServer) -> None:
    proxy, relay = relays(by_way_of(guarded_server, f"{NAME}:{PASSWORD}@")), relays({})
    await deliver(proxy, relay, relay.process.location)
    (place,) = guarded_server.connected()
    assert place == f"127.0.0.1:{relay.process.port}"


@pytest.mark.parametrize("given", [f"{NAME}:wrong@", f"other:{PASSWORD}@", "@", ""])
@ensureDeferred
async def test_wrong_name_or_password(
    relays: GetRelay, guarded_server: SocksServer, given: str
) -> None:
    """Also none, and those that the proxy makes for each relay, which only Tor accepts."""
    proxy, relay = relays(by_way_of(guarded_server, given)), relays({})
    before = guarded_server.connected()
    client = await proxy.connect()
    with refused(NETWORK):
        await through(client, relay.process.location)
    await client.ping()
    assert guarded_server.connected() == before


@ensureDeferred
async def test_credentials_for_a_server_that_wants_none(
    relays: GetRelay, open_server: SocksServer
) -> None:
    proxy, relay = relays(by_way_of(open_server, f"{NAME}:{PASSWORD}@")), relays({})
    with refused(NETWORK):
        await through(await proxy.connect(), relay.process.location)


@ensureDeferred
async def test_relays_that_the_server_does_not_reach(
    relays: GetRelay, open_server: SocksServer
) -> None:
    client, there = await relays(by_way_of(open_server)).connect(), relays({}).process.location
    for location in (
        replace(there, port=str(closed_port())),
        replace(there, hosts=(Host.parse(NO_NAME),)),
        replace(there, hosts=(Host.parse(ONION),)),
        replace(there, hosts=(Host.parse("::1"),)),
        replace(there, key_hash=os.urandom(32)),
    ):
        with refused(NETWORK):
            await through(client, location)
    await client.ping()


@ensureDeferred
async def test_a_socks_server_that_ends(relays: GetRelay, tmp_path: Path) -> None:
    """The sessions through it end with it, and there are no others; the proxy goes on."""
    with contextlib.ExitStack() as stack:
        server = started(stack, SocksServer(tmp_path))
        proxy, relay = relays(by_way_of(server)), relays({})
        client = await proxy.connect()
        routed = await through(client, relay.process.location)
        server.end()
        with pytest.raises(ProxyError, match="PROXY NO_SESSION"):
            await routed.send(os.urandom(24), b"")
        with refused(NETWORK):
            await through(client, relay.process.location)
        await client.ping()


# -- what our own resolver is asked for


@implementer(IHostnameResolver)
class WatchedResolver:
    """Notes which names are to be resolved, and has another one do it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.asked: list[str] = []

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[Any] | None = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        """See `IHostnameResolver`."""
        self.asked.append(hostName)
        return self._inner.resolveHostName(
            resolutionReceiver, hostName, portNumber, addressTypes, transportSemantics
        )


@pytest.fixture
def resolver() -> Iterator[WatchedResolver]:
    """The reactor's resolver, watched."""
    from twisted.internet import reactor

    pluggable: Any = reactor
    watched = WatchedResolver(pluggable.nameResolver)
    former = pluggable.installNameResolver(watched)
    yield watched
    pluggable.installNameResolver(former)


async def open_by_way_of(
    server: SocksServer, location: RelayLocation, host: str = "127.0.0.1"
) -> Session:
    """A session as the proxy opens it, in this process."""
    from twisted.internet import reactor

    way = Network(socks_at(SocksProxy(Host.parse(host), server.port, SocksAuth.NONE)))
    reach = Reach(reactor, Destinations(local=True), way, for_each_relay(b"secret"))
    clock: Any = reactor
    return await open_session(reach.endpoint(location), location, proxy=True, clock=clock)


@ensureDeferred
async def test_names_of_relays_are_resolved_by_the_socks_server_only(
    relay: Relay,
    open_server: SocksServer,
    resolver: WatchedResolver,
    connections: list[Connection],
) -> None:
    there = replace(relay.process.location, hosts=(Host.parse("localhost"),))
    session = await open_by_way_of(open_server, there)
    connections.append(session.blocks)
    assert open_server.connected()[-1] == f"localhost:{there.port}"
    assert resolver.asked == []


@pytest.mark.parametrize("name", [NO_NAME, ONION])
@ensureDeferred
async def test_a_name_that_the_socks_server_cannot_resolve_is_not_looked_up(
    relay: Relay, open_server: SocksServer, resolver: WatchedResolver, name: str
) -> None:
    there = replace(relay.process.location, hosts=(Host.parse(name),))
    for own_host, asked in (("127.0.0.1", []), ("localhost", ["localhost"])):
        with pytest.raises(DisconnectedError) as caught:
            await open_by_way_of(open_server, there, own_host)
        assert isinstance(caught.value, ClientError)
        assert str(reason_for_senders(caught.value)).startswith(NETWORK)
        # The name of the SOCKS server itself is the operator's.
        assert resolver.asked == asked


# -- a tor that is not there, or says nothing


@ensureDeferred
async def test_a_socks_socket_that_is_not_there_or_says_nothing(tmp_path: Path) -> None:
    """As with any relay that cannot be reached, senders are told; nobody waits for ever."""
    from twisted.internet import reactor

    there = RelayLocation((Host.parse(ONION),), "", bytes(32))
    path = tmp_path / "socks"
    way = Network(socks_on(path), SocksMode.ONION)
    reach = Reach(reactor, Destinations(), way, for_each_relay(b"secret"))

    async def opened(timeout: float) -> Session:
        endpoint, clock = reach.endpoint(there), cast("Any", reactor)
        return await open_session(endpoint, there, proxy=True, timeout=timeout, clock=clock)

    with pytest.raises(DisconnectedError) as missing:
        await opened(10)
    accepting = await UNIXServerEndpoint(reactor, str(path)).listen(Factory.forProtocol(Protocol))
    with pytest.raises(TimedOutError) as silent:
        await opened(0.3)
    await maybeDeferred(accepting.stopListening)
    for caught in (missing, silent):
        assert str(reason_for_senders(caught.value)) == NETWORK
