"""How the proxy gets to a relay: as a client does (smp-proxy.md §5.2), but not to all places."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
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
from txsimplex.addresses import Host, HostKind, RelayLocation
from txsimplex.client.errors import NoWayError
from txsimplex.client.link import BROKER, NETWORK
from txsimplex.client.network import Isolation, Network
from txsimplex.client.pool import UnreachableError
from txsimplex.smp.errors import Error

NO_HOST: Final = Error((*BROKER, "HOST"))


class Reach:
    """Makes endpoints for relays. `resolver`, if given, resolves names in the reactor's place."""

    def __init__(
        self,
        reactor: Any,
        destinations: Destinations,
        network: Network,
        isolation: Isolation,
        resolver: IHostnameResolver | None = None,
    ) -> None:
        resolver = reactor.nameResolver if resolver is None else resolver
        self._directly = _Resolving(reactor, _FilteringResolver(resolver, destinations))
        # The SOCKS proxy itself may be where relays may not.
        self._to_socks = _Resolving(reactor, resolver)
        self._destinations = destinations
        self._network = network
        self._isolation = isolation

    def endpoint(self, location: RelayLocation) -> IStreamClientEndpoint:
        """Where to connect to for a relay. Raises `UnreachableError`."""
        network = self._network
        host = network.host(location)
        if host is None:
            raise UnreachableError(NO_HOST)
        if not self._allows(host):
            raise UnreachableError(NETWORK)
        reactor = self._to_socks if network.through_socks(host) else self._directly
        try:
            return network.endpoint(reactor, location, self._isolation)
        except NoWayError:
            raise UnreachableError(NETWORK) from None

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
    """The reactor, with another resolver of names."""

    def __init__(self, reactor: Any, resolver: IHostnameResolver) -> None:
        self._reactor = reactor
        self.nameResolver = resolver

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """See `IReactorPluggableNameResolver`."""
        former, self.nameResolver = self.nameResolver, resolver
        return former

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IHostnameResolver)
class _FilteringResolver:
    """Resolves names to addresses that may be connected to."""

    def __init__(self, resolver: IHostnameResolver, destinations: Destinations) -> None:
        self._resolver = resolver
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
        resolution: IHostResolution = self._resolver.resolveHostName(
            _Filter(resolutionReceiver, self._destinations),
            hostName,
            portNumber,
            addressTypes,
            transportSemantics,
        )
        return resolution
