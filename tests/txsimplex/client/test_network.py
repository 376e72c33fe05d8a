"""How a client gets to relays by itself (smp-proxy.md §5.2)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock

from txsimplex.addresses import (
    Host,
    HostKind,
    HostMode,
    RelayLocation,
    SocksAuth,
    SocksMode,
    SocksProxy,
)
from txsimplex.client.errors import NoWayError
from txsimplex.client.network import (
    Isolation,
    Network,
    Socks,
    for_each_connection,
    for_each_relay,
    socks_at,
    socks_on,
)
from txsimplex.client.socks import SocksEndpoint

NAME = "a" * 56 + ".onion"
TOR = socks_at(SocksProxy())
SOCKET = socks_on(Path("/run/tor/socks"))
APART = for_each_connection(os.urandom)
ONION_ONLY = Network(TOR, SocksMode.ONION)


def at(*hosts: str, port: str = "") -> RelayLocation:
    return RelayLocation(tuple(map(Host.parse, hosts)), port, bytes(32))


RELAY = at("127.0.0.1")


@pytest.mark.parametrize(
    ("network", "hosts", "protects"),
    [
        (Network(), ["example.com"], False),
        (Network(), [NAME], False),
        (Network(TOR), ["example.com"], True),
        (Network(TOR), ["example.com", NAME], True),
        (ONION_ONLY, ["example.com"], False),
        (ONION_ONLY, ["example.com", NAME], True),
        (Network(TOR, SocksMode.ONION, HostMode.PUBLIC), ["example.com", NAME], False),
        (Network(TOR, host_mode=HostMode.ONION, required=True), ["example.com"], False),
    ],
)
def test_whether_the_address_is_protected(
    network: Network, hosts: list[str], *, protects: bool
) -> None:
    assert network.protects(at(*hosts)) is protects


@pytest.mark.parametrize(
    ("network", "hosts", "kind"),
    [
        (Network(), ["127.0.0.1"], TCP4ClientEndpoint),
        (Network(), ["::1"], TCP6ClientEndpoint),
        (Network(), ["example.com"], HostnameEndpoint),
        (Network(), [NAME, "example.com"], HostnameEndpoint),
        (ONION_ONLY, ["example.com"], HostnameEndpoint),
        (ONION_ONLY, [NAME], SocksEndpoint),
        (Network(TOR), ["127.0.0.1"], SocksEndpoint),
        (Network(SOCKET), ["example.com"], SocksEndpoint),
        (Network(SOCKET, SocksMode.ONION), ["example.com"], HostnameEndpoint),
        (Network(SOCKET, SocksMode.ONION), ["example.com", NAME], SocksEndpoint),
    ],
)
def test_the_endpoint_of_a_host(network: Network, hosts: list[str], kind: type) -> None:
    from twisted.internet import reactor

    assert isinstance(network.endpoint(reactor, at(*hosts), APART), kind)


@pytest.mark.parametrize("host", [NAME, "example.com", "127.0.0.1"])
def test_where_the_socks_proxy_is(host: str) -> None:
    """At a port or on a Unix socket; the relay's own name or address is not tried."""

    def connect(socks: Socks) -> MemoryReactorClock:
        reactor = MemoryReactorClock()
        way = Network(socks).endpoint(reactor, at(host), APART)
        way.connect(Factory.forProtocol(Protocol)).addErrback(lambda failure: None)
        return reactor

    reactor = connect(TOR)
    assert [client[:2] for client in reactor.tcpClients] == [("127.0.0.1", 9050)]
    assert reactor.unixClients == []
    reactor = connect(SOCKET)
    assert [client[0] for client in reactor.unixClients] == ["/run/tor/socks"]
    assert reactor.tcpClients == []


@pytest.mark.parametrize("text", [NAME, NAME.upper(), NAME + ".", "x." + NAME, "ü.example.com"])
def test_names_that_never_go_to_the_dns(text: str) -> None:
    kind = HostKind.ONION if text == NAME else HostKind.DOMAIN
    location = RelayLocation((Host(kind, text),), "", bytes(32))
    for mode in HostMode:
        with pytest.raises(NoWayError):
            Network(host_mode=mode).endpoint(MemoryReactorClock(), location, APART)


@pytest.mark.parametrize("port", ["0", "65536", "x", "٣"])
def test_what_is_no_port(port: str) -> None:
    with pytest.raises(NoWayError):
        Network().endpoint(MemoryReactorClock(), at("127.0.0.1", port=port), APART)


def test_no_host_of_the_kind_required() -> None:
    network = Network(TOR, host_mode=HostMode.ONION, required=True)
    with pytest.raises(NoWayError):
        network.endpoint(MemoryReactorClock(), at("example.com"), APART)


def test_the_login_is_not_shown() -> None:
    shown = repr(Network(socks_at(SocksProxy.parse("user:secret@127.0.0.1:9050"))))
    assert not any(part in shown for part in ("user", "secret"))


def credentials(
    socks: Socks, isolation: Isolation = APART, location: RelayLocation = RELAY
) -> bytes:
    """What the SOCKS proxy is sent first, and when it asks for a name."""
    endpoint = Network(socks).endpoint(MemoryReactorClock(), location, isolation)
    assert isinstance(endpoint, SocksEndpoint)
    given = endpoint._credentials
    return b"" if given is None else given.name + b":" + given.password


def test_what_tor_keeps_connections_apart_by() -> None:
    for socks in (TOR, SOCKET):
        assert len({credentials(socks) for _ in range(5)}) == 5
    for isolation in (APART, for_each_relay(b"secret")):
        assert credentials(socks_at(SocksProxy(auth=SocksAuth.NONE)), isolation) == b""
        login = socks_at(SocksProxy.parse("user:secret@127.0.0.1:9050"))
        assert credentials(login, isolation) == b"user:secret"


@pytest.mark.parametrize("socks", [TOR, SOCKET])
def test_what_tor_keeps_relays_apart_by(socks: Socks) -> None:
    one, other = for_each_relay(b"secret"), for_each_relay(b"another secret")
    relays = (RELAY, at("127.0.0.1", port="5224"), at("127.0.0.2"))
    names = {credentials(socks, isolation, relay) for isolation in (one, other) for relay in relays}
    assert len(names) == 6
    assert all(credentials(socks, one, relay) in names for relay in relays)
