"""Which relays the proxy may connect to."""

from __future__ import annotations

import ipaddress

import pytest

from smpd.destinations import Destinations

LOCAL = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:7f00:1::",
]
PUBLIC = ["1.1.1.1", "185.1.2.3", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("text", LOCAL)
def test_what_is_not_public_is_refused_unless_it_is_allowed(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert not Destinations().allows_address(address)
    assert not Destinations().allows_address(address, named=True)
    assert not Destinations(refused_names=frozenset({"a.b"})).allows_address(address)


@pytest.mark.parametrize("text", ["127.0.0.1", "10.1.2.3", "::1", "::ffff:10.0.0.1"])
def test_local_networks_may_be_allowed(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert Destinations(local=True).allows_address(address)
    everything = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    assert Destinations(allowed_networks=everything).allows_address(address)
    assert not Destinations(local=True, refused_networks=everything).allows_address(address)


@pytest.mark.parametrize("text", PUBLIC)
def test_what_is_public_is_allowed_unless_there_are_rules(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert Destinations().allows_address(address)
    assert Destinations().allows_address(address, named=True)
    ours = Destinations(allowed_networks=(ipaddress.ip_network("10.0.0.0/8"),))
    assert not ours.allows_address(address)
    assert ours.allows_address(ipaddress.ip_address("10.0.0.1"))
    named = Destinations(allowed_names=frozenset({"example.com"}))
    assert not named.allows_address(address)
    assert named.allows_address(address, named=True)


def test_a_refused_network_is_refused_in_all_its_forms() -> None:
    rules = Destinations(refused_networks=(ipaddress.ip_network("1.1.1.0/24"),))
    for text in ("1.1.1.1", "::ffff:1.1.1.1", "64:ff9b::101:101"):
        assert not rules.allows_address(ipaddress.ip_address(text))
    assert rules.allows_address(ipaddress.ip_address("1.1.2.1"))


def test_names_stand_for_all_below_them() -> None:
    rules = Destinations(frozenset({"example.com"}), frozenset({"bad.example.com"}))
    assert rules.allows_name("example.com")
    assert rules.allows_name("SMP.Example.com.")
    assert not rules.allows_name("notexample.com")
    assert not rules.allows_name("example.org")
    assert not rules.allows_name("bad.example.com")
    assert not rules.allows_name("very.bad.example.com")
    assert Destinations().allows_name("anything.at.all")
