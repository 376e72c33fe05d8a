"""Which relays the proxy may connect to: names and addresses, by the operator's rules.

Without rules, addresses of networks that are not public are refused, so that nobody can use
the proxy to look around in its operator's network.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, if it does."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address.sixtofour is not None:
            return address.sixtofour
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _matches(name: str, pattern: str) -> bool:
    """Whether a name is `pattern`, or below it."""
    return name == pattern or name.endswith("." + pattern)


@dataclass(frozen=True, slots=True)
class Destinations:
    """Rules for names and for addresses.

    What is in `refused` is refused. If there is anything in `allowed`, only that is allowed;
    a network in it may be one that is not public. A name stands for all names below it.
    """

    allowed_names: frozenset[str] = field(default=frozenset())
    refused_names: frozenset[str] = field(default=frozenset())
    allowed_networks: tuple[Network, ...] = ()
    refused_networks: tuple[Network, ...] = ()
    local: bool = False
    """Whether networks that are not public are allowed, too."""

    def allows_name(self, name: str) -> bool:
        """Whether a domain or onion name may be connected to, as far as the name tells.

        With a list of allowed names, an address has to be in one of allowed networks.
        """
        name = name.lower().rstrip(".")
        if any(_matches(name, each) for each in self.refused_names):
            return False
        if not self.allowed_names and not self.allowed_networks:
            return True
        return any(_matches(name, each) for each in self.allowed_names)

    def allows_address(self, address: Address, *, named: bool = False) -> bool:
        """Whether an address may be connected to; `named` if it is that of an allowed name."""
        plain = _plain(address)
        if _in(plain, self.refused_networks) or _in(address, self.refused_networks):
            return False
        if _in(plain, self.allowed_networks):
            return True
        if not named and (self.allowed_names or self.allowed_networks):
            return False
        return self.local or (plain.is_global and not plain.is_multicast)


def _in(address: Address, networks: tuple[Network, ...]) -> bool:
    return any(address in network for network in networks)
