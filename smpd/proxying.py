"""From the configuration to the proxy: its ways to relays, and its rules."""

from __future__ import annotations

import hmac
import os
from typing import Any

from smpd.config import ProxySettings, Settings, SocksAddress
from smpd.counters import Counters
from smpd.destinations import Destinations
from smpd.proxy import Proxy, ProxyRules
from smpd.reach import Reach, Socks
from txsimplex.addresses import HostMode, RelayLocation
from txsimplex.client.pool import RelayPool
from txsimplex.client.session import SMP_ALPN, Session, open_session
from txsimplex.client.socks import SocksCredentials
from txsimplex.tls import client_context


def make_proxy(settings: Settings, counters: Counters, reactor: Any) -> Proxy | None:
    """The proxy that the configuration describes, None if there is to be none."""
    given = settings.proxy
    if not given.enabled:
        return None
    reach = Reach(
        reactor,
        destinations(given),
        mode=HostMode.PUBLIC if given.host_mode == "public" else HostMode.ONION_VIA_SOCKS,
        required=given.required_host_mode,
        socks=None if given.socks_proxy is None else socks(given.socks_proxy, given.socks_mode),
    )

    # One for all: each takes tens of KiB, and nothing of a session stays in it.
    context = client_context(alpn=(SMP_ALPN,))

    async def connect(location: RelayLocation) -> Session:
        endpoint = reach.endpoint(location)
        return await open_session(endpoint, location, proxy=True, context=context, clock=reactor)

    pool = RelayPool(
        connect, clock=reactor, most_forwarded=given.relay_concurrency, retry_time=given.retry_time
    )
    rules = ProxyRules(
        password=settings.queues.password,
        client_concurrency=given.client_concurrency,
        own_domains=given.own_domains,
    )
    return Proxy(pool, rules, counters, reactor.seconds)


def destinations(settings: ProxySettings) -> Destinations:
    """Which relays the proxy may connect to."""
    return Destinations(
        frozenset(each for each in settings.allowed if isinstance(each, str)),
        frozenset(each for each in settings.refused if isinstance(each, str)),
        tuple(each for each in settings.allowed if not isinstance(each, str)),
        tuple(each for each in settings.refused if not isinstance(each, str)),
        settings.local_networks,
    )


def socks(address: SocksAddress, mode: str) -> Socks:
    """The SOCKS proxy that the proxy goes through, with a circuit of Tor for each relay."""
    secret = os.urandom(32)

    def credentials(location: RelayLocation) -> SocksCredentials | None:
        if address.credentials is not None:
            return SocksCredentials(*address.credentials)
        if not address.isolated:
            return None
        name = hmac.digest(secret, location.encode(), "sha256").hex()
        return SocksCredentials(name.encode(), b"relay")

    return Socks(address.host, address.port, mode == "always", credentials)
