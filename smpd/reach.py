"""How the proxy gets to a relay: which host, directly or through a SOCKS proxy (smp-proxy.md §5.2).

The name of an onion service is given to a SOCKS proxy only, never to the DNS.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.interfaces import (
    IAddress,
    IHostnameResolver,
    IHostResolution,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from zope.interface import implementer

from smpd.destinations import Destinations
from txsimplex.addresses import (
    Host,
    HostKind,
    HostMode,
    RelayLocation,
    choose_host,
)
from txsimplex.client.errors import NoWayError
from txsimplex.client.link import BROKER, NETWORK
from txsimplex.client.network import endpoint_of, port_of
from txsimplex.client.pool import UnreachableError
from txsimplex.client.socks import SocksCredentials, SocksEndpoint
from txsimplex.smp.errors import Error

NO_HOST: Final = Error((*BROKER, "HOST"))

MakeCredentials = Callable[[RelayLocation], "SocksCredentials | None"]


@dataclass(frozen=True, slots=True)
class Socks:
    """A SOCKS proxy: where it is, whether it is used for all hosts or for onion hosts only.

    `credentials` are made for each relay, so that Tor keeps them apart.
    """

    host: str
    port: int
    always: bool
    credentials: MakeCredentials


class Reach:
    """Makes endpoints for relays."""

    def __init__(
        self,
        reactor: Any,
        destinations: Destinations,
        *,
        mode: HostMode = HostMode.PUBLIC,
        required: bool = False,
        socks: Socks | None = None,
    ) -> None:
        self._reactor = reactor
        self._destinations = destinations
        self._mode = mode
        self._required = required
        self._socks = socks

    def endpoint(self, location: RelayLocation) -> IStreamClientEndpoint:
        """Where to connect to for a relay. Raises `UnreachableError`."""
        socks = self._socks
        host = choose_host(
            location.hosts, self._mode, socks=socks is not None, required=self._required
        )
        if host is None:
            raise UnreachableError(NO_HOST)
        try:
            port = port_of(location)
        except NoWayError:
            raise UnreachableError(NETWORK) from None
        if not self._allows(host) or not host.text.isascii():
            raise UnreachableError(NETWORK)
        if socks is not None and (socks.always or host.is_onion):
            proxy = endpoint_of(self._reactor, Host.parse(socks.host), socks.port)
            return SocksEndpoint(proxy, host.text, port, socks.credentials(location))
        if host.is_onion:
            raise UnreachableError(NETWORK)
        resolving = _Resolving(self._reactor, self._destinations)
        return endpoint_of(resolving, host, port)

    def _allows(self, host: Host) -> bool:
        if host.kind in (HostKind.ONION, HostKind.DOMAIN):
            return self._destinations.allows_name(host.text)
        return self._destinations.allows_address(ipaddress.ip_address(host.text))


@implementer(IResolutionReceiver)
class _Filter:
    """Passes on the addresses that may be connected to."""

    def __init__(self, receiver: Any, destinations: Destinations) -> None:
        self._receiver = receiver
        self._destinations = destinations

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """See `IResolutionReceiver`."""
        self._receiver.resolutionBegan(resolutionInProgress)

    def addressResolved(self, address: IAddress) -> None:
        """See `IResolutionReceiver`."""
        host = ipaddress.ip_address(getattr(address, "host", "").partition("%")[0])
        if self._destinations.allows_address(host, named=True):
            self._receiver.addressResolved(address)

    def resolutionComplete(self) -> None:
        """See `IResolutionReceiver`."""
        self._receiver.resolutionComplete()


@implementer(IReactorPluggableNameResolver)
class _Resolving:
    """The reactor, with names resolved to addresses that may be connected to."""

    def __init__(self, reactor: Any, destinations: Destinations) -> None:
        self._reactor = reactor
        self._destinations = destinations
        self.nameResolver: IHostnameResolver = _FilteringResolver(reactor, destinations)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """See `IReactorPluggableNameResolver`."""
        former, self.nameResolver = self.nameResolver, resolver
        return former

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IHostnameResolver)
class _FilteringResolver:
    def __init__(self, reactor: Any, destinations: Destinations) -> None:
        self._reactor = reactor
        self._destinations = destinations

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See `IHostnameResolver`."""
        resolution: IHostResolution = self._reactor.nameResolver.resolveHostName(
            _Filter(resolutionReceiver, self._destinations),
            hostName,
            portNumber,
            addressTypes,
            transportSemantics,
        )
        return resolution
