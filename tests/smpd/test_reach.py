"""How the proxy gets to a relay: names of onion services go to a SOCKS proxy only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from smpd.destinations import Destinations
from smpd.reach import NO_HOST, Reach
from txsimplex.addresses import Host, HostMode, RelayLocation, SocksMode, SocksProxy
from txsimplex.client.link import NETWORK
from txsimplex.client.network import Network, for_each_relay, socks_at, socks_on
from txsimplex.client.pool import UnreachableError
from txsimplex.client.socks import SocksEndpoint

ONION = "a" * 56 + ".onion"


@implementer(IReactorPluggableNameResolver)
class WatchedReactor(MemoryReactorClock):
    """Notes which names are to be resolved, and resolves them to `addresses`."""

    def __init__(self) -> None:
        super().__init__()
        self.resolved: list[str] = []
        self.addresses: list[str] = []
        self.nameResolver: Any = self

    def installNameResolver(self, resolver: Any) -> Any:
        raise AssertionError("nobody does that")

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        self.resolved.append(hostName)
        resolutionReceiver.resolutionBegan(resolutionReceiver)
        for address in self.addresses:
            resolutionReceiver.addressResolved(IPv4Address("TCP", address, portNumber))
        resolutionReceiver.resolutionComplete()
        return resolutionReceiver


def location(*hosts: str, port: str = "") -> RelayLocation:
    return RelayLocation(tuple(map(Host.parse, hosts)), port, os.urandom(32))


TOR = socks_at(SocksProxy())
SOCKET = socks_on(Path("/var/lib/smpd/tor/socks"))


def reach_of(
    reactor: WatchedReactor,
    network: Network = Network(host_mode=HostMode.PUBLIC),  # noqa: B008 - it does not change
    destinations: Destinations = Destinations(),  # noqa: B008
) -> Reach:
    return Reach(reactor, destinations, network, for_each_relay(b"secret"))


def connect(reach: Reach, where: RelayLocation, reactor: WatchedReactor) -> list[str]:
    """Names that are resolved when the endpoint connects."""
    connecting = reach.endpoint(where).connect(Factory.forProtocol(Protocol))
    connecting.addErrback(lambda failure: None)
    reactor.advance(1)
    return reactor.resolved


@pytest.mark.parametrize("name", [ONION, "a.onion", "a.ONION", "a.oNiOn.", "x-y.onion..", "é.com"])
def test_an_onion_service_without_a_socks_proxy_is_not_looked_up(name: str) -> None:
    """However it is written; nor is what cannot be a name."""
    for mode in HostMode:
        reactor = WatchedReactor()
        with pytest.raises(UnreachableError) as caught:
            reach_of(reactor, Network(host_mode=mode)).endpoint(location(name))
        assert caught.value.error == NETWORK
        assert (reactor.resolved, reactor.tcpClients) == ([], [])


def test_an_onion_service_goes_to_the_socks_proxy_by_its_name() -> None:
    reactor = WatchedReactor()
    reach = reach_of(reactor, Network(TOR, SocksMode.ONION))
    where = location("smp.example.com", ONION)
    assert isinstance(reach.endpoint(where), SocksEndpoint)
    assert connect(reach, where, reactor) == []
    ((host, port, *_),) = reactor.tcpClients
    assert (host, port) == ("127.0.0.1", 9050)


@pytest.mark.parametrize("mode", SocksMode)
@pytest.mark.parametrize("name", [ONION, "a.onion", "a.ONION", "a.oNiOn.", "x-y.onion.."])
def test_an_onion_service_goes_to_the_relays_own_tor_and_nowhere_else(
    name: str, mode: SocksMode
) -> None:
    """However it is written: what is no name of one is not asked for, or by that tor only."""
    reactor = WatchedReactor()
    reach = reach_of(reactor, Network(SOCKET, mode))
    if name in (ONION, "a.onion") or mode is SocksMode.ALWAYS:
        assert connect(reach, location(name), reactor) == []
        assert [client[0] for client in reactor.unixClients] == ["/var/lib/smpd/tor/socks"]
    else:
        with pytest.raises(UnreachableError):
            reach.endpoint(location(name))
    assert (reactor.resolved, reactor.tcpClients) == ([], [])


def test_a_public_host_is_connected_to_directly_unless_all_go_through_the_proxy() -> None:
    reactor = WatchedReactor()
    reach = reach_of(reactor, Network(TOR, SocksMode.ONION, HostMode.PUBLIC))
    assert isinstance(reach.endpoint(location("1.1.1.1")), TCP4ClientEndpoint)
    assert isinstance(reach.endpoint(location("2606:4700::1111")), TCP6ClientEndpoint)
    all_by_proxy = reach_of(reactor, Network(TOR, SocksMode.ALWAYS, HostMode.PUBLIC))
    for where in (location("1.1.1.1"), location("smp.example.com")):
        assert isinstance(all_by_proxy.endpoint(where), SocksEndpoint)
    assert connect(all_by_proxy, location("smp.example.com"), reactor) == []


def test_a_domain_is_resolved_and_its_addresses_are_checked() -> None:
    reactor = WatchedReactor()
    reactor.addresses = ["10.0.0.1", "127.0.0.1", "1.1.1.1"]
    reach = reach_of(reactor)
    assert connect(reach, location("smp.example.com"), reactor) == ["smp.example.com"]
    assert [client[0] for client in reactor.tcpClients] == ["1.1.1.1"]
    reactor = WatchedReactor()
    reactor.addresses = ["10.0.0.1", "127.0.0.1"]
    assert connect(reach_of(reactor), location("a.example.com"), reactor)
    assert reactor.tcpClients == []


def test_names_are_resolved_by_a_resolver_that_is_given() -> None:
    """Also that of the SOCKS proxy."""
    reactor, resolver = WatchedReactor(), WatchedReactor()
    names: Any = resolver
    resolver.addresses = ["10.0.0.1", "1.1.1.1"]
    socks = socks_at(SocksProxy.parse("localhost:9050"))
    for network in (Network(), Network(socks)):
        reach = Reach(reactor, Destinations(), network, for_each_relay(b""), names)
        assert connect(reach, location("smp.example.com"), reactor) == []
    assert resolver.resolved == ["smp.example.com", "localhost"]
    assert [client[0] for client in reactor.tcpClients[:2]] == ["1.1.1.1", "10.0.0.1"]


def test_a_required_kind_of_host_that_is_not_there() -> None:
    reach = reach_of(WatchedReactor(), Network(TOR, SocksMode.ONION, required=True))
    with pytest.raises(UnreachableError) as caught:
        reach.endpoint(location("smp.example.com"))
    assert caught.value.error == NO_HOST


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "٣"])
def test_what_is_no_port(port: str) -> None:
    with pytest.raises(UnreachableError):
        reach_of(WatchedReactor()).endpoint(location("1.1.1.1", port=port))


def test_what_is_refused_is_not_connected_to() -> None:
    refused = Destinations(refused_names=frozenset({"example.com"}))
    reach = reach_of(WatchedReactor(), destinations=refused)
    for where in (location("smp.example.com"), location("127.0.0.1"), location("::1")):
        with pytest.raises(UnreachableError):
            reach.endpoint(where)


def test_the_socks_proxy_may_be_where_relays_may_not() -> None:
    reactor = WatchedReactor()
    reactor.addresses = ["127.0.0.1"]
    socks = socks_at(SocksProxy.parse("localhost:9050"))
    reach = reach_of(reactor, Network(socks, SocksMode.ALWAYS))
    assert connect(reach, location("smp.example.com"), reactor) == ["localhost"]
    assert [client[:2] for client in reactor.tcpClients] == [("127.0.0.1", 9050)]
