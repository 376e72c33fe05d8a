"""How the proxy gets to a relay: names of onion services go to a SOCKS proxy only."""

from __future__ import annotations

import os
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IReactorPluggableNameResolver
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from zope.interface import implementer

from smpd.destinations import Destinations
from smpd.reach import NO_HOST, Reach, Socks
from txsimplex.addresses import Host, HostMode, RelayLocation
from txsimplex.client.link import NETWORK
from txsimplex.client.pool import UnreachableError
from txsimplex.client.socks import SocksCredentials, SocksEndpoint

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
        self, receiver: Any, name: str, port: int = 0, types: Any = None, semantics: str = "TCP"
    ) -> Any:
        self.resolved.append(name)
        receiver.resolutionBegan(receiver)
        for address in self.addresses:
            receiver.addressResolved(IPv4Address("TCP", address, port))
        receiver.resolutionComplete()
        return receiver


def location(*hosts: str, port: str = "") -> RelayLocation:
    return RelayLocation(tuple(map(Host.parse, hosts)), port, os.urandom(32))


def no_credentials(location: RelayLocation) -> SocksCredentials | None:
    return None


SOCKS = Socks("127.0.0.1", 9050, False, no_credentials)


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
            Reach(reactor, Destinations(), mode=mode).endpoint(location(name))
        assert caught.value.error == NETWORK
        assert (reactor.resolved, reactor.tcpClients) == ([], [])


def test_an_onion_service_goes_to_the_socks_proxy_by_its_name() -> None:
    reactor = WatchedReactor()
    reach = Reach(reactor, Destinations(), mode=HostMode.ONION_VIA_SOCKS, socks=SOCKS)
    where = location("smp.example.com", ONION)
    assert isinstance(reach.endpoint(where), SocksEndpoint)
    assert connect(reach, where, reactor) == []
    ((host, port, *_),) = reactor.tcpClients
    assert (host, port) == ("127.0.0.1", 9050)


def test_a_public_host_is_connected_to_directly_unless_all_go_through_the_proxy() -> None:
    reactor = WatchedReactor()
    reach = Reach(reactor, Destinations(), socks=SOCKS)
    assert isinstance(reach.endpoint(location("1.1.1.1")), TCP4ClientEndpoint)
    assert isinstance(reach.endpoint(location("2606:4700::1111")), TCP6ClientEndpoint)
    always = Socks("127.0.0.1", 9050, True, no_credentials)
    all_by_proxy = Reach(reactor, Destinations(), socks=always)
    for where in (location("1.1.1.1"), location("smp.example.com")):
        assert isinstance(all_by_proxy.endpoint(where), SocksEndpoint)
    assert connect(all_by_proxy, location("smp.example.com"), reactor) == []


def test_a_domain_is_resolved_and_its_addresses_are_checked() -> None:
    reactor = WatchedReactor()
    reactor.addresses = ["10.0.0.1", "127.0.0.1", "1.1.1.1"]
    reach = Reach(reactor, Destinations())
    assert connect(reach, location("smp.example.com"), reactor) == ["smp.example.com"]
    assert [client[0] for client in reactor.tcpClients] == ["1.1.1.1"]
    reactor = WatchedReactor()
    reactor.addresses = ["10.0.0.1", "127.0.0.1"]
    assert connect(Reach(reactor, Destinations()), location("a.example.com"), reactor)
    assert reactor.tcpClients == []


def test_a_required_kind_of_host_that_is_not_there() -> None:
    reach = Reach(
        WatchedReactor(), Destinations(), mode=HostMode.ONION_VIA_SOCKS, required=True, socks=SOCKS
    )
    with pytest.raises(UnreachableError) as caught:
        reach.endpoint(location("smp.example.com"))
    assert caught.value.error == NO_HOST


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "٣"])
def test_what_is_no_port(port: str) -> None:
    with pytest.raises(UnreachableError):
        Reach(WatchedReactor(), Destinations()).endpoint(location("1.1.1.1", port=port))


def test_what_is_refused_is_not_connected_to() -> None:
    reach = Reach(WatchedReactor(), Destinations(refused_names=frozenset({"example.com"})))
    for where in (location("smp.example.com"), location("127.0.0.1"), location("::1")):
        with pytest.raises(UnreachableError):
            reach.endpoint(where)
