"""How a client gets to a relay without a proxy of SMP: which host, and whether through SOCKS.

The choice is that of smp-proxy.md §5.2. The name of an onion service is given to a SOCKS
proxy only, never to the DNS.

network = Network(socks_at(SocksProxy.parse("127.0.0.1:9050")))
network = Network(socks_on(Path("/run/tor/socks")))
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.interfaces import IStreamClientEndpoint

from txsimplex.addresses import (
    DEFAULT_SMP_PORT,
    Host,
    HostKind,
    HostMode,
    RelayLocation,
    SocksAuth,
    SocksLogin,
    SocksMode,
    SocksProxy,
    choose_host,
)
from txsimplex.client.errors import NoWayError
from txsimplex.client.socks import SocksCredentials, SocksEndpoint
from txsimplex.keys import Random

Isolation = Callable[[RelayLocation], SocksCredentials]
"""The credentials for a connection to a relay, by which Tor keeps it apart from others."""

_NAME_SIZE = 16


@dataclass(frozen=True, slots=True)
class Socks:
    """A way to a SOCKS proxy: `endpoint` makes it, given a reactor; `auth` is what it is told."""

    endpoint: Callable[[Any], IStreamClientEndpoint]
    auth: SocksAuth | SocksLogin = field(default=SocksAuth.ISOLATE, repr=False)


def socks_at(proxy: SocksProxy) -> Socks:
    """A SOCKS proxy at a port. A name for its host is resolved, as it is the user's own."""
    return Socks(lambda reactor: endpoint_of(reactor, proxy.host, proxy.port), proxy.auth)


def socks_on(path: Path) -> Socks:
    """A SOCKS proxy on a Unix socket, as tor has them, which keeps relays apart."""
    return Socks(lambda reactor: UNIXClientEndpoint(reactor, str(path)))


@dataclass(frozen=True, slots=True)
class Network:
    """The settings of a client's own connections; without `socks` they show its address.

    With `required`, a relay without a host of the kind that `host_mode` prefers is not
    connected to.
    """

    socks: Socks | None = None
    socks_mode: SocksMode = SocksMode.ALWAYS
    host_mode: HostMode = HostMode.ONION_VIA_SOCKS
    required: bool = False

    def protects(self, location: RelayLocation) -> bool:
        """Whether a direct connection hides the client's address from the relay."""
        host = self.host(location)
        return host is not None and self.through_socks(host)

    def endpoint(
        self, reactor: Any, location: RelayLocation, isolation: Isolation
    ) -> IStreamClientEndpoint:
        """Where to connect to for a relay. Raises `NoWayError`.

        `isolation` says what a SOCKS proxy is told that is told nothing else.
        """
        host, port = self.host(location), port_of(location)
        if host is None:
            raise NoWayError("the relay has no host of the kind required")
        if not host.text.isascii():
            raise NoWayError("not a name of the DNS")
        if self.through_socks(host):
            assert self.socks is not None
            credentials = _credentials(self.socks.auth, location, isolation)
            return SocksEndpoint(self.socks.endpoint(reactor), host.text, port, credentials)
        if host.is_onion:
            raise NoWayError("an onion service needs a SOCKS proxy")
        return endpoint_of(reactor, host, port)

    def host(self, location: RelayLocation) -> Host | None:
        """The host of a relay that is connected to; None if none is of the kind required."""
        socks = self.socks is not None
        return choose_host(location.hosts, self.host_mode, socks=socks, required=self.required)

    def through_socks(self, host: Host) -> bool:
        """Whether a host is connected to by the SOCKS proxy."""
        return self.socks is not None and self.socks_mode.covers(host)


def port_of(location: RelayLocation) -> int:
    """The port of a relay. Raises `NoWayError` for what is none."""
    text = location.port or str(DEFAULT_SMP_PORT)
    if text.isascii() and text.isdigit() and 0 < int(text) < 65536:
        return int(text)
    raise NoWayError("not a port")


def endpoint_of(reactor: Any, host: Host, port: int) -> IStreamClientEndpoint:
    """An endpoint of a host as it is: names are resolved, so they are ASCII, and no onion names."""
    if host.kind is HostKind.IPV4:
        return TCP4ClientEndpoint(reactor, host.text, port)
    if host.kind is HostKind.IPV6:
        return TCP6ClientEndpoint(reactor, host.text, port)
    return HostnameEndpoint(reactor, host.text.encode("ascii"), port)


def for_each_connection(random: Random) -> Isolation:
    """Another name for each connection: Tor gives each a circuit of its own."""
    return lambda location: SocksCredentials(random(_NAME_SIZE).hex().encode("ascii"), b"")


def for_each_relay(secret: bytes) -> Isolation:
    """The same name for all connections to a relay, which says nothing to who has no `secret`."""

    def credentials(location: RelayLocation) -> SocksCredentials:
        name = hmac.digest(secret, location.encode(), "sha256").hex()
        return SocksCredentials(name.encode("ascii"), b"relay")

    return credentials


def _credentials(
    auth: SocksAuth | SocksLogin, location: RelayLocation, isolation: Isolation
) -> SocksCredentials | None:
    if isinstance(auth, SocksLogin):
        return SocksCredentials(auth.user.encode(), auth.password.encode())
    return None if auth is SocksAuth.NONE else isolation(location)
