"""From the configuration to the proxy: its ways to relays, and its rules."""

from __future__ import annotations

import os
from typing import Any

from smpd.config import Settings
from smpd.counters import Counters
from smpd.destinations import Destinations
from smpd.endpoints import OWN_TOR
from smpd.open_files import most_relays
from smpd.proxy import Proxy, ProxyRules
from smpd.proxy_settings import ProxySettings, SocksPlace
from smpd.reach import Reach
from torcfg.tor_process import TorProcess
from txsimplex.addresses import HostMode, RelayLocation, SocksMode
from txsimplex.client.names import ThreadedResolver
from txsimplex.client.network import Network, Socks, for_each_relay, socks_at, socks_on
from txsimplex.client.pool import RelayPool
from txsimplex.client.session import SMP_ALPN, Session, open_session
from txsimplex.tls import client_context


def make_proxy(
    settings: Settings, counters: Counters, reactor: Any, own: TorProcess | None
) -> Proxy | None:
    """The proxy that the configuration describes, None if there is to be none.

    `own` is the tor that the relay runs itself, if it does.
    """
    given = settings.proxy
    if not given.enabled:
        return None
    isolation = for_each_relay(os.urandom(32))
    resolver = ThreadedResolver(reactor)
    reach = Reach(reactor, destinations(given), network(given, own), isolation, resolver)
    # One for all: each takes tens of KiB, and nothing of a session stays in it.
    context = client_context(alpn=(SMP_ALPN,))

    async def connect(location: RelayLocation) -> Session:
        endpoint = reach.endpoint(location)
        return await open_session(endpoint, location, proxy=True, context=context, clock=reactor)

    pool = RelayPool(
        connect,
        clock=reactor,
        most_forwarded=given.relay_concurrency,
        most_relays=most_relays(),
        retry_time=given.retry_time,
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


def network(settings: ProxySettings, own: TorProcess | None) -> Network:
    """By which hosts, and whether through SOCKS, which may be that of the relay's `own` tor."""
    return Network(
        _socks(settings.socks_proxy, own),
        SocksMode(settings.socks_mode),
        HostMode.PUBLIC if settings.host_mode == "public" else HostMode.ONION_VIA_SOCKS,
        settings.required_host_mode,
    )


def _socks(place: SocksPlace | None, own: TorProcess | None) -> Socks | None:
    if place is None:
        return None
    if place != OWN_TOR:
        return socks_at(place)
    assert own is not None
    return socks_on(own.socks)


def exposure(settings: Settings) -> str | None:
    """What to warn of: that the proxy shows others where a relay is that Tor hides; or None."""
    if not settings.hidden or not settings.proxy.direct:
        return None
    return (
        "the proxy connects to other relays directly, which shows them where this relay is, and "
        "Tor is to hide that: set socks_proxy = own and socks_mode = always in [proxy], or "
        "enabled = off"
    )
