"""Addresses and how their texts are read (docs/spec/smp-wire.md §13; conformance 24-27, 39-44)."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.vectors import Vector, load, name_of
from txsimplex.addresses import (
    Host,
    HostKind,
    HostMode,
    RelayLocation,
    Scheme,
    ServerAddress,
    SocksAuth,
    SocksLogin,
    SocksMode,
    SocksProxy,
    choose_host,
    format_hosts,
    is_password,
    parse_hosts,
)
from txsimplex.encoding import ParseError, Reader, whole
from txsimplex.scanning import Query, decimal, from_base64url, percent_encoded, to_base64url
from txsimplex.smp.versions import VersionRange

NUMBER_TOO_LARGE = (
    "the reference takes the number modulo the size of its type; here it is the ordinary error"
)
BRACKETS = (
    "the reference prints an IPv6 address before a port without brackets, "
    "and reads that text as another address"
)
PROXY_NAME = "the reference wants the SOCKS proxy to be an IP address; here it may be a name"

REFUSED_HERE = {
    "host/ip4-256-last": NUMBER_TOO_LARGE,
    "host/ip4-300-last": NUMBER_TOO_LARGE,
    "server/ip4-overflow": NUMBER_TOO_LARGE,
    "version-range/70000": NUMBER_TOO_LARGE,
    "socks/port-big": NUMBER_TOO_LARGE,
}
PRINTED_DIFFERENTLY = {
    "server/ip6-brackets": ("@[::1]:5223", BRACKETS),
    "server/hosts-ip6": ("@smp.example.com,[2001:db8::1]:5223", BRACKETS),
}
ACCEPTED_HERE = {
    "socks/localhost": PROXY_NAME,
}


def text_of(latin1: str) -> str:
    """A text of the vectors, which has one character for each byte."""
    return latin1.encode("latin-1").decode("utf-8")


def agrees(vector: Vector) -> bool:
    return vector["name"] not in REFUSED_HERE and vector["name"] not in ACCEPTED_HERE


def parsed(*kinds: str) -> list[Vector]:
    return [v for v in load("addresses", *kinds) if "parsed" in v and agrees(v)]


def refused(*kinds: str) -> list[Vector]:
    return [v for v in load("addresses", *kinds) if "parsed" not in v and agrees(v)]


def canonical(vector: Vector) -> str:
    name = vector["name"]
    if name in PRINTED_DIFFERENTLY:
        end = PRINTED_DIFFERENTLY[name][0]
        return text_of(vector["text"]).partition("@")[0] + end
    given: str = vector["parsed"]["canonical"]
    return text_of(vector["text"] if given == "same" else given)


def host_fields(host: Host) -> dict[str, str]:
    return {"type": host.kind.value, "text": host.text}


def location_fields(location: RelayLocation) -> dict[str, object]:
    return {
        "hosts": [host.text for host in location.hosts],
        "port": location.port,
        "key_hash": location.key_hash.hex(),
    }


def test_the_differences_are_vectors() -> None:
    names = {name_of(vector) for vector in load("addresses")}
    assert names >= REFUSED_HERE.keys() | PRINTED_DIFFERENTLY.keys() | ACCEPTED_HERE.keys()


class TestHosts:
    @pytest.mark.parametrize("vector", parsed("host"), ids=name_of)
    def test_parsed_as_by_the_reference(self, vector: Vector) -> None:
        host = Host.parse(text_of(vector["text"]))
        expected = vector["parsed"]["fields"]
        assert host_fields(host) == {**expected, "text": text_of(expected["text"])}
        assert str(host) == canonical(vector)
        assert whole(host.encode(), Host.read) == host

    @pytest.mark.parametrize("vector", refused("host"), ids=name_of)
    def test_refused_as_by_the_reference(self, vector: Vector) -> None:
        with pytest.raises(ParseError):
            Host.parse(text_of(vector["text"]))

    @pytest.mark.parametrize("vector", parsed("hosts"), ids=name_of)
    def test_lists(self, vector: Vector) -> None:
        hosts = parse_hosts(text_of(vector["text"]))
        assert [host_fields(host) for host in hosts] == vector["parsed"]["fields"]
        assert format_hosts(hosts) == canonical(vector)

    @pytest.mark.parametrize("vector", refused("hosts"), ids=name_of)
    def test_lists_refused(self, vector: Vector) -> None:
        with pytest.raises(ParseError):
            parse_hosts(text_of(vector["text"]))

    @pytest.mark.parametrize(
        "text",
        ["smp.simplex.im,", "a:1", "a#", "a b", "a\n", "ab c.onion", "ab\n.onion", "\u0431.onion"],
    )
    def test_conformance_25_and_26(self, text: str) -> None:
        with pytest.raises(ParseError):
            Host.parse(text)

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("smp.simplex.im", HostKind.DOMAIN),
            ("beccx4yfxxbvyhqypaavemqurytl6hozr47wfc7uuecacjqdvwpw2xid.onion", HostKind.ONION),
            ("192.168.0.1", HostKind.IPV4),
            ("192.168.1", HostKind.DOMAIN),
            ("192.256.0.1", HostKind.DOMAIN),
            ("192.168.0.-1", HostKind.DOMAIN),
        ],
    )
    def test_conformance_24_26_and_27(self, text: str, kind: HostKind) -> None:
        assert Host.parse(text) == Host(kind, text)

    def test_conformance_27_five_numbers(self) -> None:
        with pytest.raises(ParseError):
            Host.parse("192.168.0.0.1")

    def test_a_mapped_address_is_printed_as_it_is_parsed(self) -> None:
        host = Host.parse("::FFFF:0102:304")
        assert host == Host(HostKind.IPV6, "::ffff:102:304")
        assert Host.parse(str(host)) == host

    def test_no_scope_of_an_address(self) -> None:
        with pytest.raises(ParseError):
            Host.parse("[fe80::1%eth0]")

    def test_longest(self) -> None:
        assert len(Host.parse("a" * 255).encode()) == 256
        for text in ("a" * 256, "ä" * 128, "a" * 250 + ".onion"):
            with pytest.raises(ParseError):
                Host.parse(text)

    def test_most(self) -> None:
        assert len(parse_hosts(",".join(["a"] * 255))) == 255
        with pytest.raises(ParseError):
            parse_hosts(",".join(["a"] * 256))


class TestServers:
    @pytest.mark.parametrize("vector", parsed("server"), ids=name_of)
    def test_parsed_as_by_the_reference(self, vector: Vector) -> None:
        address = ServerAddress.parse(text_of(vector["text"]))
        fields = vector["parsed"]["fields"]
        password = fields["basic_auth"]
        assert address.scheme.value == fields["protocol"]
        assert address.password == (None if password is None else text_of(password))
        assert location_fields(address.location) == fields["server"]
        assert str(address) == canonical(vector)
        assert ServerAddress.parse(str(address)) == address

    @pytest.mark.parametrize("vector", refused("server"), ids=name_of)
    def test_refused_as_by_the_reference(self, vector: Vector) -> None:
        with pytest.raises(ParseError):
            ServerAddress.parse(text_of(vector["text"]))

    @pytest.mark.parametrize("vector", parsed("smp-server-noauth"), ids=name_of)
    def test_without_password(self, vector: Vector) -> None:
        address = ServerAddress.parse(text_of(vector["text"]), Scheme.SMP, password=False)
        assert location_fields(address.location) == vector["parsed"]["fields"]
        assert str(address) == canonical(vector)

    @pytest.mark.parametrize("vector", refused("smp-server-noauth"), ids=name_of)
    def test_refused_without_password(self, vector: Vector) -> None:
        with pytest.raises(ParseError):
            ServerAddress.parse(text_of(vector["text"]), Scheme.SMP, password=False)

    @pytest.mark.parametrize(
        "text",
        [
            f"smp://{'A' * 344}@a.b",
            f"smp://AAAA@a.b:{'1' * 256}",
            f"smp://AAAA:{'p' * 256}@a.b",
            "smp://AAAB\u00e9@a.b",
            "smp://AB@a.b",
        ],
    )
    def test_parts_that_cannot_be_sent_or_are_not_canonical(self, text: str) -> None:
        with pytest.raises(ParseError):
            ServerAddress.parse(text)

    def test_the_password_is_not_shown(self) -> None:
        address = ServerAddress.parse("smp://AAAA:open-sesame@a.b")
        assert "sesame" not in repr(address)
        assert "sesame" not in str(address.without_password())
        assert address.without_password() == ServerAddress.parse("smp://AAAA@a.b")

    def test_same_place(self) -> None:
        one = ServerAddress.parse("smp://AAAA@a.b:1").location
        assert one.same_place(ServerAddress.parse("smp://BBBB@a.b:1").location)
        assert not one.same_place(ServerAddress.parse("smp://AAAA@a.b:2").location)
        assert not one.same_place(ServerAddress.parse("smp://AAAA@a.b,c.d:1").location)

    def test_a_relay_has_a_host(self) -> None:
        with pytest.raises(ValueError, match="at least one host"):
            RelayLocation((), "", b"")

    def test_binary(self) -> None:
        location = ServerAddress.parse("smp://AAAA@a.b,::1:5223").location
        assert location.hosts[1].text == "::1:5223"
        location = ServerAddress.parse("smp://AAAA@a.b,[::1]:05223").location
        data = b"\x02\x03a.b\x03::1\x045223\x03\0\0\0"
        assert location.encode() == data
        assert whole(data, RelayLocation.read) == location

    def test_binary_keeps_any_port(self) -> None:
        data = b"\x01\x03a.b\x03x\xff \x00"
        location = whole(data, RelayLocation.read)
        assert location.encode() == data

    @pytest.mark.parametrize(
        "data", [b"", b"\0\0\0", b"\x01\x03a b\0\0", b"\x01\x02\xff\xff\0\0", b"\x01\x03a.b\0"]
    )
    def test_binary_refused(self, data: bytes) -> None:
        with pytest.raises(ParseError):
            whole(data, RelayLocation.read)


class TestPasswords:
    @pytest.mark.parametrize("password", [b"", b"secret", b"p\xc3\xa4ss", b"!\xff"])
    def test_allowed(self, password: bytes) -> None:
        assert is_password(password)

    @pytest.mark.parametrize("byte", [*range(0x21), *range(0x7F, 0xA1), 0xAD, *b"@:/"])
    def test_refused(self, byte: int) -> None:
        assert not is_password(b"a%cb" % byte)


class TestSocks:
    @pytest.mark.parametrize("vector", parsed("socks"), ids=name_of)
    def test_parsed_as_by_the_reference(self, vector: Vector) -> None:
        proxy = SocksProxy.parse(vector["text"])
        host = f"[{proxy.host}]" if proxy.host.kind is HostKind.IPV6 else str(proxy.host)
        auth: object = proxy.auth
        if isinstance(proxy.auth, SocksLogin):
            auth = {"user": proxy.auth.user, "password": proxy.auth.password}
        elif isinstance(proxy.auth, SocksAuth):
            auth = proxy.auth.value
        assert {"address": f"{host}:{proxy.port}", "auth": auth} == vector["parsed"]["fields"]
        assert str(proxy) == canonical(vector)
        assert SocksProxy.parse(str(proxy)) == proxy

    @pytest.mark.parametrize("vector", refused("socks"), ids=name_of)
    def test_refused_as_by_the_reference(self, vector: Vector) -> None:
        with pytest.raises(ParseError):
            SocksProxy.parse(vector["text"])

    def test_the_proxy_may_be_a_name(self) -> None:
        assert SocksProxy.parse("localhost:1080") == SocksProxy(
            Host(HostKind.DOMAIN, "localhost"), 1080
        )

    @pytest.mark.parametrize("text", ["", ":9050", "127.0.0.1"])
    def test_conformance_43_defaults(self, text: str) -> None:
        proxy = SocksProxy.parse(text)
        assert (str(proxy.host), proxy.port) == ("127.0.0.1", 9050)
        assert proxy.auth is SocksAuth.ISOLATE

    def test_conformance_43_authentication(self) -> None:
        assert SocksProxy.parse("@[::1]:1").auth is SocksAuth.NONE
        assert SocksProxy.parse("me:it's me@:1").auth == SocksLogin("me", "it's me")

    @pytest.mark.parametrize("text", ["::1", "[::1]"])
    def test_conformance_44_ipv6(self, text: str) -> None:
        assert str(SocksProxy.parse(text)) == "[::1]:9050"

    @pytest.mark.parametrize(
        "text", ["a.onion", ":x", ":", "a:b:c", ":p@1.2.3.4", "u:@1.2.3.4", "1.2.3.4:65536", "@@"]
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(ParseError):
            SocksProxy.parse(text)

    def test_the_password_is_not_shown(self) -> None:
        assert "sesame" not in repr(SocksProxy.parse("me:sesame@"))

    def test_conformance_42(self) -> None:
        onion, domain = parse_hosts("a.onion,a.b")
        assert SocksMode.ALWAYS.covers(onion)
        assert SocksMode.ALWAYS.covers(domain)
        assert SocksMode.ONION.covers(onion)
        assert not SocksMode.ONION.covers(domain)


class TestHostChoice:
    BOTH = parse_hosts("smp.example.com,abc.onion")
    PUBLIC = BOTH[0]
    ONION = BOTH[1]

    @pytest.mark.parametrize("required", [False, True])
    @pytest.mark.parametrize(
        ("mode", "socks", "chosen"),
        [
            (HostMode.ONION_VIA_SOCKS, False, PUBLIC),
            (HostMode.ONION, False, ONION),
            (HostMode.PUBLIC, False, PUBLIC),
            (HostMode.ONION_VIA_SOCKS, True, ONION),
            (HostMode.ONION, True, ONION),
            (HostMode.PUBLIC, True, PUBLIC),
        ],
    )
    def test_conformance_39_and_40(
        self, mode: HostMode, socks: bool, chosen: Host, required: bool
    ) -> None:
        assert choose_host(self.BOTH, mode, socks=socks, required=required) is chosen
        assert choose_host(self.BOTH[::-1], mode, socks=socks, required=required) is chosen

    @pytest.mark.parametrize(
        ("host", "mode", "socks"),
        [
            (PUBLIC, HostMode.ONION, True),
            (PUBLIC, HostMode.ONION_VIA_SOCKS, True),
            (ONION, HostMode.PUBLIC, True),
            (ONION, HostMode.ONION_VIA_SOCKS, False),
        ],
    )
    def test_conformance_41(self, host: Host, mode: HostMode, socks: bool) -> None:
        assert choose_host([host], mode, socks=socks) is host
        assert choose_host([host], mode, socks=socks, required=True) is None

    def test_first_of_its_kind(self) -> None:
        hosts = parse_hosts("a.b,c.d,a.onion")
        assert choose_host(hosts, HostMode.PUBLIC, socks=False) is hosts[0]


class TestVersionRanges:
    @pytest.mark.parametrize("vector", parsed("version-range"), ids=name_of)
    def test_parsed_as_by_the_reference(self, vector: Vector) -> None:
        versions = VersionRange.parse(vector["text"])
        assert [versions.minimum, versions.maximum] == vector["parsed"]["fields"]
        assert str(versions) == canonical(vector)

    @pytest.mark.parametrize("vector", refused("version-range"), ids=name_of)
    def test_refused_as_by_the_reference(self, vector: Vector) -> None:
        with pytest.raises(ParseError):
            VersionRange.parse(vector["text"])


class TestNumbersTooLarge:
    @pytest.mark.parametrize(
        "vector", [v for v in load("addresses") if v["name"] in REFUSED_HERE], ids=name_of
    )
    def test_refused(self, vector: Vector) -> None:
        parsers: dict[str, Callable[[str], object]] = {
            "host": Host.parse,
            "server": ServerAddress.parse,
            "version-range": VersionRange.parse,
            "socks": SocksProxy.parse,
        }
        with pytest.raises(ParseError):
            parsers[vector["kind"]](vector["text"])

    @pytest.mark.parametrize("digits", ["65536", "70000", "9" * 5000])
    def test_decimal(self, digits: str) -> None:
        assert decimal("0" * 5000 + "65535", 65535) == 65535
        with pytest.raises(ParseError):
            decimal(digits, 65535)

    @pytest.mark.parametrize("digits", ["", "-1", "+1", "1 ", "1_0", "\u0661", "a"])
    def test_not_decimal(self, digits: str) -> None:
        with pytest.raises(ParseError):
            decimal(digits, 65535)


class TestQueries:
    def test_the_first_counts(self) -> None:
        query = Query("a=1&b=%D0%96+%zz;a=2&c")
        assert query.required("a") == "1"
        assert query.get("b") == "Ж %zz"
        assert query.get("c") == ""
        assert query.get("d") is None
        with pytest.raises(ParseError):
            query.required("d")

    def test_not_utf8(self) -> None:
        query = Query("a=%ff&b=1")
        assert query.get("b") == "1"
        with pytest.raises(ParseError):
            query.get("a")


@given(st.binary(max_size=80), st.booleans())
def test_base64url_round_trip(data: bytes, padded: bool) -> None:
    text = to_base64url(data, padded=padded)
    assert from_base64url(text) == data
    assert set(text) <= set(string.ascii_letters + string.digits + "-_=")


@given(st.text(alphabet="AQgw=-_ é", max_size=9) | st.text(max_size=20))
def test_base64url_is_canonical_or_refused(text: str) -> None:
    try:
        data = from_base64url(text)
    except ParseError:
        return
    assert text in {to_base64url(data), to_base64url(data, padded=False)}


@given(st.text(max_size=40))
def test_percent_encoding_round_trip(text: str) -> None:
    assert Query(f"x={percent_encoded(text)}&y=1").get("x") == text


labels = st.text(string.ascii_letters + string.digits + "-_äж", min_size=1, max_size=20)
names = st.lists(labels, min_size=2, max_size=4).map(".".join)
host_texts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address.exploded}]"),
    st.text(string.ascii_lowercase + string.digits, max_size=56).map(lambda text: text + ".onion"),
    names.filter(lambda name: name[0] not in string.hexdigits),
)
hosts = host_texts.map(Host.parse)
locations = st.builds(
    RelayLocation,
    st.lists(hosts, min_size=1, max_size=4).map(tuple),
    st.just("") | st.integers(0, 65535).map(str),
    st.binary(min_size=1, max_size=40),
)
passwords = st.text(
    string.ascii_letters + string.digits + string.punctuation, min_size=1, max_size=40
).filter(lambda text: not set(text) & set("@:/"))
addresses = st.builds(
    ServerAddress, st.sampled_from(Scheme), locations, st.none() | passwords | st.just("pä")
)
proxies = st.builds(
    SocksProxy,
    hosts.filter(lambda host: host.kind is not HostKind.ONION),
    st.integers(0, 65535),
    st.sampled_from(SocksAuth) | st.builds(SocksLogin, passwords, passwords),
)


@given(addresses)
def test_address_round_trip(address: ServerAddress) -> None:
    assert ServerAddress.parse(str(address)) == address


@given(locations)
def test_location_round_trip(location: RelayLocation) -> None:
    assert whole(location.encode(), RelayLocation.read) == location


@given(proxies)
def test_proxy_round_trip(proxy: SocksProxy) -> None:
    assert SocksProxy.parse(str(proxy)) == proxy


near_addresses = st.text("smp:/@[].,0123456789abf=-_ onix\n%é", max_size=40).map(
    lambda text: "smp://AAAA@" + text
)


@given(st.text(max_size=60) | near_addresses)
def test_any_text_is_an_address_or_refused(text: str) -> None:
    for parse in (ServerAddress.parse, Host.parse, parse_hosts, SocksProxy.parse):
        try:
            value = parse(text)
        except ParseError:
            continue
        if isinstance(value, ServerAddress):
            assert ServerAddress.parse(str(value)) == value
            assert whole(value.location.encode(), RelayLocation.read) == value.location


@given(st.binary(max_size=60))
def test_any_bytes_are_a_location_or_refused(data: bytes) -> None:
    for tail in (data, b"\x01" + data, b"\x01\x03a.b" + data):
        reader = Reader(tail)
        try:
            location = RelayLocation.read(reader)
        except ParseError:
            continue
        assert whole(location.encode(), RelayLocation.read) == location
