"""Conformance B: hosts, addresses and which host is taken."""

from __future__ import annotations

import pytest

from txsimplex.addresses import (
    Host,
    HostKind,
    HostMode,
    SocksAuth,
    SocksLogin,
    SocksMode,
    SocksProxy,
    choose_host,
)
from txsimplex.encoding import ParseError

ONION_NAME = "beccx4yfxxbvyhqypaavemqurytl6hozr47wfc7uuecacjqdvwpw2xid.onion"
PUBLIC, ONION = Host.parse("smp.simplex.im"), Host.parse(ONION_NAME)


def test_024_domain_name() -> None:
    host = Host.parse("smp.simplex.im")
    assert host.kind is HostKind.DOMAIN
    assert str(host) == "smp.simplex.im"


@pytest.mark.parametrize("sign", [",", ":", "#", " ", "\n", ":5223", "/"])
def test_025_what_no_host_contains(sign: str) -> None:
    for text in (f"smp.simplex.im{sign}", f"smp{sign}simplex.im", f"smp.simplex.im{sign}x"):
        with pytest.raises(ParseError):
            Host.parse(text)


def test_026_onion_name() -> None:
    host = Host.parse(ONION_NAME)
    assert host.kind is HostKind.ONION
    assert str(host) == ONION_NAME
    for text in (f"{ONION_NAME} ", f"{ONION_NAME}\n", f" {ONION_NAME}", f"a{chr(0xE9)}b.onion"):
        with pytest.raises(ParseError):
            Host.parse(text)


def test_027_ipv4_or_a_name() -> None:
    assert Host.parse("192.168.0.1").kind is HostKind.IPV4
    for text in ("192.168.1", "192.256.0.1", "192.168.0.-1"):
        host = Host.parse(text)
        assert host.kind is HostKind.DOMAIN
        assert str(host) == text
    with pytest.raises(ParseError):
        Host.parse("192.168.0.0.1")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(HostMode.ONION_VIA_SOCKS, PUBLIC), (HostMode.ONION, ONION), (HostMode.PUBLIC, PUBLIC)],
)
def test_039_host_without_a_proxy(mode: HostMode, expected: Host) -> None:
    for hosts in ((PUBLIC, ONION), (ONION, PUBLIC)):
        for required in (False, True):
            assert choose_host(hosts, mode, socks=False, required=required) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(HostMode.ONION_VIA_SOCKS, ONION), (HostMode.ONION, ONION), (HostMode.PUBLIC, PUBLIC)],
)
def test_040_host_with_a_proxy(mode: HostMode, expected: Host) -> None:
    for hosts in ((PUBLIC, ONION), (ONION, PUBLIC)):
        for required in (False, True):
            assert choose_host(hosts, mode, socks=True, required=required) == expected


@pytest.mark.parametrize(
    ("host", "mode", "socks"),
    [
        (ONION, HostMode.PUBLIC, False),
        (ONION, HostMode.PUBLIC, True),
        (ONION, HostMode.ONION_VIA_SOCKS, False),
        (PUBLIC, HostMode.ONION, False),
        (PUBLIC, HostMode.ONION, True),
        (PUBLIC, HostMode.ONION_VIA_SOCKS, True),
    ],
)
def test_041_the_only_host_is_of_the_other_kind(host: Host, mode: HostMode, socks: bool) -> None:
    """Here None is what the reference calls an incompatible host."""
    assert choose_host([host], mode, socks=socks) == host
    assert choose_host([host], mode, socks=socks, required=True) is None


def test_042_for_which_hosts_a_proxy_is_used() -> None:
    """Whether there is one at all is the caller's setting, None for none."""
    assert SocksMode.ALWAYS.covers(PUBLIC)
    assert SocksMode.ALWAYS.covers(ONION)
    assert not SocksMode.ONION.covers(PUBLIC)
    assert SocksMode.ONION.covers(ONION)


def test_043_proxy_texts() -> None:
    for text in ("", ":9050", "127.0.0.1", "127.0.0.1:9050"):
        assert SocksProxy.parse(text) == SocksProxy(Host.parse("127.0.0.1"), 9050)
        assert SocksProxy.parse(text).auth is SocksAuth.ISOLATE
    for text in ("@", "@:9050", "@127.0.0.1"):
        assert SocksProxy.parse(text) == SocksProxy(auth=SocksAuth.NONE)
    login = SocksLogin("user", "pass")
    for text in ("user:pass@", "user:pass@:9050", "user:pass@127.0.0.1"):
        assert SocksProxy.parse(text) == SocksProxy(auth=login)


def test_044_proxy_at_an_ipv6_address() -> None:
    for text in ("[::1]:9051", "@[::1]:9051"):
        assert str(SocksProxy.parse(text)) == text
    for text in ("::1", "[::1]"):
        assert str(SocksProxy.parse(text)) == "[::1]:9050"
