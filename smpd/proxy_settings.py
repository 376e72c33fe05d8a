"""`[proxy]`: which relays the proxy forwards to, and by which ways it gets there."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from smpd.endpoints import OWN_TOR
from smpd.ini import (
    Kind,
    Refused,
    each_once,
    on_off,
    one_of,
    optional,
    quoted,
    seconds,
    setting,
    whole_number,
    words,
)
from txsimplex.addresses import SocksLogin, SocksProxy
from txsimplex.encoding import ParseError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
SocksPlace = SocksProxy | Literal["own"]
"""Where a SOCKS proxy is; `OWN_TOR` is that of the tor that the relay runs itself."""

_DOMAIN = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_DOMAINS = "domain names, such as example.com"
_PLACES = "domain names, onion names, addresses and networks, such as example.com or 10.0.0.0/8"


def is_domain(text: str) -> bool:
    """Whether it is a domain name; more exact than clients are."""
    return _DOMAIN.fullmatch(text) is not None


def _domain(text: str) -> str:
    if not is_domain(text):
        raise Refused((quoted(text), None))
    return text.lower()


def _destination(text: str) -> str | Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        return _domain(text)


def _read_socks(text: str) -> SocksPlace:
    """As the reference has it (smp-proxy.md §5.2), or with a name for its host, or `OWN_TOR`."""
    if text == OWN_TOR:
        return OWN_TOR
    try:
        proxy = SocksProxy.parse(text)
    except ParseError:
        raise Refused(("", None)) from None
    login = proxy.auth
    parts = (login.user, login.password) if isinstance(login, SocksLogin) else ()
    # SOCKS has room for 255 bytes.
    if any(len(part.encode()) > 255 for part in parts) or not proxy.port:
        raise Refused(("", None))
    if not proxy.host.text.isascii():
        raise Refused(("", None))
    return proxy


_SOCKS: Kind[SocksPlace] = Kind(
    _read_socks,
    f"{OWN_TOR}, host:port, user:password@host:port or @host:port",
    secret=True,
)


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """`[proxy]`: whether and how the relay forwards messages to other relays, and takes them.

    `client_concurrency` commands of one client, and `relay_concurrency` of all, may be under
    way to one relay. `host_mode`, `required_host_mode` and `socks_mode` choose hosts and way.
    `allowed` and `refused` are names and networks; `local_networks` says whether those that are
    not public are allowed. Keys of `remembered_keys` commands are kept for each proxy that
    forwards to this relay. A relay that cannot be reached is tried again for `retry_time` seconds.
    """

    enabled: bool = setting(on_off(), True)
    client_concurrency: int = setting(whole_number(1, 10_000), 32)
    relay_concurrency: int = setting(whole_number(1, 100_000), 256)
    host_mode: str = setting(one_of("public", "onion"), "public")
    required_host_mode: bool = setting(on_off(), False)
    socks_proxy: SocksPlace | None = setting(optional(_SOCKS), None)  # noqa: RUF009
    socks_mode: str = setting(one_of("onion", "always"), "onion")
    own_domains: tuple[str, ...] = setting(each_once(words(_domain, _DOMAINS)), ())
    allowed: tuple[str | Network, ...] = setting(each_once(words(_destination, _PLACES)), ())
    refused: tuple[str | Network, ...] = setting(each_once(words(_destination, _PLACES)), ())
    local_networks: bool = setting(on_off(), False)
    remembered_keys: int = setting(whole_number(0, 100_000_000), 250_000)
    retry_time: float = setting(seconds(0, 20), 0.0)

    @property
    def own_tor(self) -> bool:
        """Whether the proxy needs a tor that the relay runs itself."""
        return self.enabled and self.socks_proxy == OWN_TOR

    @property
    def direct(self) -> bool:
        """Whether there are relays that the proxy connects to without SOCKS, if it is enabled."""
        onion_only = self.required_host_mode and self.host_mode == "onion"
        through_socks = self.socks_mode == "always" or onion_only
        return self.enabled and not (self.socks_proxy is not None and through_socks)
