"""The relay's configuration: values, defaults and every fault with its place."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from smpd.config import Settings, load, parse
from smpd.endpoints import onion_endpoints, onion_target
from smpd.ini import ConfigurationError, Fault
from txsimplex.addresses import Host, HostKind, ServerAddress, SocksAuth, SocksLogin, SocksProxy

HERE = Path("/etc/smpd")


def settings(text: str) -> Settings:
    return parse(text, "smpd.ini", HERE)


def faults(text: str) -> list[str]:
    """The sentences that a text's faults make."""
    with pytest.raises(ConfigurationError) as caught:
        settings(text)
    return str(caught.value).split("\n")


def fault(text: str) -> str:
    sentences = faults(text)
    assert len(sentences) == 1, sentences
    return sentences[0]


def test_an_empty_file_gives_the_values_of_the_reference() -> None:
    """smp-server.md §2, §6, §6.1, §7.1, §11; smp-ops.md §4."""
    s = settings("")
    assert s.server.listen == ("tcp:5223",)
    assert s.server.hosts == ()
    assert s.server.certificate == HERE / "server.crt"
    assert s.server.key == HERE / "server.key"
    assert s.server.ca_certificate == HERE / "ca.crt"
    assert (s.protocol.minimum_version, s.protocol.maximum_version) == (6, 18)
    assert s.protocol.request_client_certificates is True
    assert (s.protocol.tls_timeout, s.protocol.handshake_timeout) == (60.0, 120.0)
    assert (s.queues.new_queues, s.queues.password, s.queues.quota) == (True, None, 128)
    assert (s.queues.message_ttl, s.queues.expiry_interval) == (21 * 86400.0, 7200.0)
    assert s.queues.expire_on_send is False
    assert (s.delivery.end_interval, s.delivery.send_queue) == (15.0, 128)
    assert (s.delivery.answer_time, s.delivery.random_delay, s.proxy.retry_time) == (0, 0, 0)
    n = s.notifications
    assert (n.delivery_interval, n.ttl, n.expiry_interval) == (1.5, 86400.0, 3600.0)
    i = s.inactive_clients
    assert (i.disconnect, i.ttl, i.check_interval) == (True, 21600.0, 3600.0)
    assert (s.proxy.enabled, s.proxy.local_networks) == (True, False)
    assert (s.store.kind, s.store.path, s.store.snapshot) == ("sqlite", HERE / "store", None)
    assert (s.store.commit_interval, s.store.cached_queues) == (0.006, 20_000)
    assert s.store.answer_timeout == 5.0


def test_every_key_can_be_set() -> None:
    s = settings(
        """
        [server]
        listen = tcp:443:interface=\\:\\:   unix:/run/smpd.sock:mode=600
        hosts = smp.example.com 192.0.2.7
        certificate = tls/online.crt
        key = /secrets/online.key
        ca_certificate = ../ca.crt
        address_port = 8443
        [protocol]
        minimum_version = 7
        maximum_version=10
        request_client_certificates = off
        tls_timeout = 0.5
        handshake_timeout = 2
        [queues]
        new_queues = off
        password = s3cret-ü%
        quota = 1
        message_ttl = 3.25
        expiry_interval = 0.01
        expire_on_send = on
        [delivery]
        end_interval = 0.5
        send_queue = 65535
        answer_time = 0.25
        random_delay = 60
        [notifications]
        delivery_interval = 0.1
        ttl = 10
        expiry_interval = 20
        [inactive_clients]
        disconnect = off
        ttl = 1
        check_interval = 2
        [proxy]
        enabled = off
        retry_time = 7.5
        [tor]
        onion = on
        control = own
        password = it's a secret
        directory = /var/lib/smpd/tor
        include = bridges
        onion_key = keys/onion
        onion_ports = 5223 8443 80=127.0.0.1:8080 443=unix:/run/xftpd/onion
        most_streams = 64
        most_connections = 5000
        proof_of_work = on
        single_hop = on
        [store]
        kind = memory
        path = /var/lib/smpd
        commit_interval = 0.001
        cached_queues = 100
        answer_timeout = 0.5
        snapshot = saved
        """
    )
    assert s.server.listen == ("tcp:443:interface=\\:\\:", "unix:/run/smpd.sock:mode=600")
    assert [str(host) for host in s.server.hosts] == ["smp.example.com", "192.0.2.7"]
    assert s.server.certificate == HERE / "tls/online.crt"
    assert s.server.key == Path("/secrets/online.key")
    assert s.server.ca_certificate == HERE / "../ca.crt"
    assert s.server.port == 8443
    assert (s.protocol.minimum_version, s.protocol.maximum_version) == (7, 10)
    assert s.protocol.request_client_certificates is False
    assert (s.protocol.tls_timeout, s.protocol.handshake_timeout) == (0.5, 2.0)
    assert s.queues.new_queues is False
    assert s.queues.password == "s3cret-ü%".encode()
    assert (s.queues.quota, s.queues.message_ttl, s.queues.expiry_interval) == (1, 3.25, 0.01)
    assert s.queues.expire_on_send is True
    assert s.delivery.end_interval == 0.5
    assert s.delivery.send_queue == 65535
    assert (s.delivery.answer_time, s.delivery.random_delay) == (0.25, 60.0)
    assert s.proxy.retry_time == 7.5
    n = s.notifications
    assert (n.delivery_interval, n.ttl, n.expiry_interval) == (0.1, 10.0, 20.0)
    i = s.inactive_clients
    assert (i.disconnect, i.ttl, i.check_interval) == (False, 1.0, 2.0)
    assert (s.tor.onion, s.tor.control, s.tor.password) == (True, "own", "it's a secret")
    assert s.tor.include == HERE / "bridges"
    assert (s.tor.directory, s.tor.onion_key) == (Path("/var/lib/smpd/tor"), HERE / "keys/onion")
    assert s.tor.onion_ports == (
        *((5223, None), (8443, None)),
        *((80, "127.0.0.1:8080"), (443, "unix:/run/xftpd/onion")),
    )
    assert s.tor.most_streams == 64
    assert (s.tor.most_connections, s.tor.service_directory) == (5000, None)
    assert (s.tor.proof_of_work, s.tor.single_hop) == (True, True)
    assert (s.store.kind, s.store.path) == ("memory", Path("/var/lib/smpd"))
    assert (s.store.commit_interval, s.store.cached_queues) == (0.001, 100)
    assert (s.store.answer_timeout, s.store.snapshot) == (0.5, HERE / "saved")


def test_a_store_on_disk_has_no_snapshot() -> None:
    assert fault("[store]\nsnapshot = saved") == (
        'smpd.ini, line 2: [store] snapshot: found "saved"; allowed: nothing, unless kind is '
        "memory: other stores are on disk already."
    )


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        settings("").queues.quota = 5  # type: ignore[misc]


def test_a_password_is_shown_nowhere() -> None:
    assert "hunter2" not in repr(settings("[queues]\npassword = hunter2"))
    assert fault("[queues]\npassword = hunter2@home") == (
        "smpd.ini, line 2: [queues] password: found a value that is not shown; allowed: "
        "nothing, or 1 to 255 printable characters without spaces, @, : and /."
    )
    assert "hunter2" not in fault("[queues]\nhunter2")
    assert "hunter2" not in fault("[queues]\npasword = hunter2")


@pytest.mark.parametrize("password", ["", "   "])
def test_an_empty_password_is_none(password: str) -> None:
    assert settings(f"[queues]\npassword = {password}").queues.password is None


@pytest.mark.parametrize("bad", ["a b", "a@b", "a:b", "a/b", "\x7f", "\u00e0", "x" * 256])
def test_passwords_that_basic_auth_cannot_carry(bad: str) -> None:
    """smp-wire.md §1: judged by bytes, so that à, whose second byte is a0, is refused."""
    assert "[queues] password" in fault(f"[queues]\npassword = {bad}")


PORTS = (
    "ports from 1 to 65535, such as 5223 443, and others with where they lead to, such as "
    "80=127.0.0.1:8080 or 443=unix:/run/xftpd/onion.sock, with a path of at most 107 ASCII "
    "characters without spaces, quotation marks and commas"
)
CONTROL = "unix:/run/tor/control (a path of at most 107 bytes), tcp:127.0.0.1:9051 or such, or own"
REACHED_BY_TOR = (
    "a tcp endpoint with a port other than 0, where an interface is an IP address, or a unix "
    "endpoint with a path of at most 107 ASCII characters without spaces, quotation marks and "
    "commas, from / on, with onion = on in [tor]"
)


@pytest.mark.parametrize(
    ("key", "bad", "allowed"),
    [
        ("queues.quota", "0", "a whole number from 1 to 1000000"),
        ("queues.quota", "1000001", "a whole number from 1 to 1000000"),
        ("queues.quota", "-1", "a whole number from 1 to 1000000"),
        ("queues.quota", "1.5", "a whole number from 1 to 1000000"),
        ("queues.quota", "1_0", "a whole number from 1 to 1000000"),
        ("queues.quota", "", "a whole number from 1 to 1000000"),
        ("queues.quota", "٣", "a whole number from 1 to 1000000"),
        ("queues.new_queues", "yes", "on or off"),
        ("queues.new_queues", "ON", "on or off"),
        ("queues.message_ttl", "0", "seconds from 0.01 to 1000000000, such as 90 or 1.5"),
        ("queues.message_ttl", "21d", "seconds from 0.01 to 1000000000, such as 90 or 1.5"),
        ("queues.message_ttl", "nan", "seconds from 0.01 to 1000000000, such as 90 or 1.5"),
        ("queues.message_ttl", "inf", "seconds from 0.01 to 1000000000, such as 90 or 1.5"),
        ("queues.message_ttl", "1e3", "seconds from 0.01 to 1000000000, such as 90 or 1.5"),
        ("protocol.minimum_version", "5", "a whole number from 6 to 18"),
        ("protocol.maximum_version", "19", "a whole number from 6 to 18"),
        ("delivery.send_queue", "65536", "a whole number from 1 to 65535"),
        ("server.processes", "0", "auto, or a whole number from 1 to 64"),
        ("server.processes", "many", "auto, or a whole number from 1 to 64"),
        ("server.address_port", "0", "nothing, or a whole number from 1 to 65535"),
        ("server.key", "", "the path of a file, from the configuration's own directory"),
        ("proxy.enabled", "yes", "on or off"),
        ("proxy.host_mode", "both", "public or onion"),
        ("proxy.own_domains", "a_b..", "domain names, such as example.com"),
        ("tor.onion", "yes", "on or off"),
        ("tor.control", "unix:", CONTROL),
        ("tor.control", "tcp:localhost", CONTROL),
        ("tor.control", "tcp:localhost:0", CONTROL),
        ("tor.control", "9051", CONTROL),
        *(("tor.onion_ports", found, PORTS) for found in ("0", "5223,443", "443=", "443=5223")),
        ("tor.onion_ports", "443=unix:run", PORTS),
        ("tor.onion_ports", "443=unix:/run/ü", PORTS),
        ("tor.most_streams", "65536", "a whole number from 0 to 65535"),
        ("tor.most_connections", "1000001", "a whole number from 0 to 1000000"),
        ("store.kind", "mysql", "sqlite or postgres or memory"),
        ("store.path", "", "the path of a directory, from the configuration's own directory"),
        ("store.commit_interval", "0", "seconds from 0.001 to 1, such as 90 or 1.5"),
        ("store.cached_queues", "99", "a whole number from 100 to 100000000"),
        ("server.listen", "tcp:65536", "a port from 0 to 65535 after tcp:"),
        ("server.listen", "tcp:http", "a port from 0 to 65535 after tcp:"),
        ("server.listen", "tcp:port=x", "a port from 0 to 65535 after tcp:"),
        ("server.listen", "ssl:5223", "tcp instead, since the relay does TLS itself"),
        ("server.listen", "haproxy:tcp:65536", "a port from 0 to 65535 after tcp:"),
        ("server.listen", "haproxy:haproxy:unix:/run/s", "haproxy: once"),
        ("server.listen", "haproxy:ssl:443", "tcp instead, since the relay does TLS itself"),
    ],
)
def test_a_value_that_is_not_allowed(key: str, bad: str, allowed: str) -> None:
    section, name = key.split(".")
    assert fault(f"# a comment\n[{section}]\n\n{name} = {bad}\n") == (
        f'smpd.ini, line 4: [{section}] {name}: found "{bad}"; allowed: {allowed}.'
    )


def test_a_control_socket_that_cannot_be_connected_to() -> None:
    path = "unix:/" + 107 * "x"
    assert fault(f"[tor]\ncontrol = {path}").endswith(f'found "{path[:60]}…"; allowed: {CONTROL}.')
    assert settings(f"[tor]\ncontrol = {path[:-1]}").tor.control == path[:-1]


def test_no_endpoint() -> None:
    assert fault("[server]\nlisten =") == (
        "smpd.ini, line 2: [server] listen: found nothing; allowed: one or more Twisted endpoint "
        "descriptions, such as tcp:5223, tcp:5223:interface=\\:\\: or "
        "unix:/run/smpd.sock:mode=600."
    )


@pytest.mark.parametrize(
    "bad",
    [
        *("5223", "unix:", ":", "tcp::interface=x", "=", "unix:a:mode="),
        *("haproxy:", "haproxy:tcp", "haproxy:unix:"),
    ],
)
def test_endpoints_that_are_no_descriptions(bad: str) -> None:
    assert "[server] listen" in fault(f"[server]\nlisten = {bad}")


def test_an_endpoint_twice() -> None:
    assert fault("[server]\nlisten = tcp:1 tcp:2 tcp:1") == (
        'smpd.ini, line 2: [server] listen: found "tcp:1" twice; allowed: each once.'
    )


@pytest.mark.parametrize(
    "database", ["postgresql://smpd:pw@db.example/smpd?sslmode=require", "host=/run/x dbname=smpd"]
)
def test_a_database(database: str) -> None:
    store = settings(f"[store]\nkind = postgres\ndatabase = {database}\nconnections = 9").store
    assert (store.kind, store.database, store.connections) == ("postgres", database, 9)
    assert settings("").store.connections == 4


@pytest.mark.parametrize(
    "text",
    [
        "[store]\nkind = postgres",
        "[store]\nkind = postgres\ndatabase =",
        "[store]\nkind = postgres\ndatabase = hunter2",
        "[store]\nkind = postgres\ndatabase = mysql://u:hunter2@h/d",
        "[store]\ndatabase = postgresql://u:hunter2@h/d",
        "[store]\nkind = memory\ndatabase = password=hunter2",
    ],
)
def test_a_database_that_is_none_or_for_another_kind(text: str) -> None:
    sentence = fault(text)
    assert "[store] database: found " in sentence
    assert "hunter2" not in sentence


def test_hosts_of_every_kind() -> None:
    hosts = settings("[server]\nhosts = a-1.example 192.0.2.7 [2001:DB8::1] abc.onion").server.hosts
    assert hosts == (
        Host(HostKind.DOMAIN, "a-1.example"),
        Host(HostKind.IPV4, "192.0.2.7"),
        Host(HostKind.IPV6, "2001:db8::1"),
        Host(HostKind.ONION, "abc.onion"),
    )
    assert settings("[server]\nhosts =").server.hosts == ()


@pytest.mark.parametrize(
    "bad",
    ["a,b", "a:1", "192.256.0.1", "1.2.3.4x", "a.onion.com", "smp://x", "a=b", "b@c", "-a", "ü.de"],
)
def test_hosts_that_are_none(bad: str) -> None:
    assert fault(f"[server]\nhosts = ok.example {bad}") == (
        f'smpd.ini, line 2: [server] hosts: found "{bad}"; allowed: domain names, IPv4 or IPv6 '
        "addresses and onion names, such as smp.example.com."
    )


def test_a_host_twice() -> None:
    assert 'found "::1" twice' in fault("[server]\nhosts = ::1 [0:0::1]")


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
before = 1
[server]
listen = tcp:x ssl:1
[protocol]
maximum_version = 8
minimum_version = 9
no setting
[queues]
qouta = 7
quota = 7
quota = 8
[Queues]
ignored = 1
[queues]
"""
    assert faults(text) == [
        "smpd.ini, line 1: found a key before the first section; allowed: [section] first.",
        (
            'smpd.ini, line 3: [server] listen: found "tcp:x"; allowed: '
            "a port from 0 to 65535 after tcp:."
        ),
        (
            'smpd.ini, line 3: [server] listen: found "ssl:1"; allowed: '
            "tcp instead, since the relay does TLS itself."
        ),
        (
            'smpd.ini, line 6: [protocol] maximum_version: found "8"; allowed: '
            "at least the minimum_version, 9."
        ),
        (
            "smpd.ini, line 7: [protocol]: found a line that is no setting; allowed: "
            "[section] or key = value."
        ),
        (
            "smpd.ini, line 9: [queues] qouta: found an unknown key; allowed: new_queues, "
            "password, quota, message_ttl, expiry_interval, expire_on_send, unused_ttl (did you "
            "mean quota?)."
        ),
        (
            "smpd.ini, line 11: [queues] quota: found the key a second time; allowed: "
            "once, as in line 10."
        ),
        (
            "smpd.ini, line 12: [Queues]: found an unknown section; allowed: server, "
            "protocol, queues, delivery, notifications, inactive_clients, proxy, tor, control, "
            "store (did you mean queues?)."
        ),
        (
            "smpd.ini, line 14: [queues]: found the section a second time; allowed: "
            "once, as in line 8."
        ),
    ]


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert "did you mean" not in fault("[queues]\nzzz = 1")


def test_what_is_shown_of_a_value_is_short_and_printable() -> None:
    sentence = fault("[store]\nkind = \x1b[31m" + "x" * 500)
    assert "\x1b" not in sentence
    assert len(sentence) < 200


def test_one_file_for_two_things() -> None:
    assert fault("[server]\nkey = server.crt") == (
        'smpd.ini, line 2: [server] key: found "server.crt"; allowed: '
        "another file than that of certificate."
    )


@pytest.mark.parametrize(
    ("listen", "address_port", "port"),
    [
        ("tcp:5223", "", 5223),
        ("tcp:443 tcp:5223", "", 443),
        ("tcp:443", "5223", 5223),
        ("tcp:5223", "443", 443),
        ("unix:/run/smpd.sock", "", 5223),
        ("unix:/run/smpd.sock tcp6:port=8443", "", 8443),
        ("tcp:0", "", 5223),
        ("onionservice:443+5223:key=/srv/onion.key", "", 443),
        ("onionservice:443+5223:key=/srv/onion.key", "5223", 5223),
        ("onionservice:443+5223:key=/srv/onion.key tcp:5223", "", 5223),
    ],
)
def test_the_port_of_the_printed_address(listen: str, address_port: str, port: int) -> None:
    s = settings(f"[server]\nlisten = {listen}\naddress_port = {address_port}")
    assert s.server.port == port


def test_how_many_processes() -> None:
    assert settings("").server.processes == 1
    assert settings("[server]\nprocesses = 64").server.processes == 64
    cores = len(os.sched_getaffinity(0))
    assert settings("[server]\nprocesses = auto").server.processes == min(cores, 64)


def test_several_processes_cannot_share_a_port_without_a_number() -> None:
    settings("[server]\nlisten = tcp:0\nprocesses = 1")
    with pytest.raises(ConfigurationError) as refused:
        settings("[server]\nlisten = tcp:5223 tcp6:0\nprocesses = 2")
    (fault,) = refused.value.faults
    assert (fault.section, fault.key) == ("server", "listen")


KEY_HASH = bytes(range(32))


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("[server]\nhosts = a.example", "@a.example"),
        ("[server]\nhosts = a.example b.onion\naddress_port = 443", "@a.example,b.onion:443"),
        ("[server]\nhosts = ::1\nlisten = tcp:99", "@[::1]:99"),
        ("[server]\nhosts = a.example\n[queues]\npassword = pä%ss", ":pä%ss@a.example"),
    ],
)
def test_the_address(text: str, rest: str) -> None:
    address = settings(text).address(KEY_HASH)
    assert str(address) == "smp://AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=" + rest
    assert ServerAddress.parse(str(address)) == address


def test_without_hosts_there_is_no_address() -> None:
    assert settings("").address(KEY_HASH) is None


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.ini"
    with pytest.raises(ConfigurationError) as caught:
        load(missing)
    assert str(caught.value) == (
        f"{missing}: found no file that can be read (No such file or directory); "
        "allowed: an INI file in UTF-8."
    )
    assert caught.value.faults == (
        Fault(
            str(missing),
            None,
            None,
            None,
            "no file that can be read (No such file or directory)",
            "an INI file in UTF-8",
        ),
    )
    binary = tmp_path / "binary.ini"
    binary.write_bytes(b"[server]\nhosts = \xff\n")
    with pytest.raises(ConfigurationError, match="bytes that are not UTF-8"):
        load(binary)


def test_a_database_goes_with_its_kind_of_store() -> None:
    for database in ("postgresql://smpd:word@db/smpd", "postgres:///smpd", "host=/run dbname=smpd"):
        store = settings(f"[store]\nkind = postgres\ndatabase = {database}\n").store
        assert (store.database, store.connections) == (database, 4)
        assert "word" not in repr(store)
    wanted = "where the database is, for kind = postgres, and nothing for others"
    assert fault("[store]\nkind = postgres\n") == (
        f"smpd.ini, line 2: [store] database: found nothing; allowed: {wanted}."
    )
    assert fault("[store]\ndatabase = postgresql:///smpd\n") == (
        f"smpd.ini, line 2: [store] database: found a value that is not shown; allowed: {wanted}."
    )


def test_where_a_database_is_is_not_shown() -> None:
    assert fault("[store]\nkind = postgres\ndatabase = secret@host\n") == (
        "smpd.ini, line 3: [store] database: found a value that is not shown; allowed: nothing, or "
        "a URL such as postgresql://smpd@db.example.com/smpd, or a connection string of libpq."
    )


def test_load_takes_paths_from_the_directory_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "smpd.ini"
    path.write_bytes(b"[server]\r\nkey = k.pem\r\n")
    assert load(path).server.key == tmp_path / "k.pem"


def uncommented(text: str) -> str:
    """The documented file with every default uncommented."""
    return "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in text.split("\n")
    )


def keys(text: str) -> list[tuple[str, str]]:
    section, found = "", []
    for line in text.split("\n"):
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            found.append((section, line.split("=")[0].strip()))
    return found


class TestShippedFile:
    """etc/smpd.ini, which documents every key."""

    TEXT = (Path(__file__).parents[2] / "etc/smpd.ini").read_text()

    def test_as_it_stands_it_sets_nothing(self) -> None:
        assert settings(self.TEXT) == settings("")
        assert keys(self.TEXT) == []

    def test_its_commented_values_are_the_defaults(self) -> None:
        assert settings(uncommented(self.TEXT)) == settings("")

    def test_it_has_every_key_once_in_order(self) -> None:
        sections: list[Any] = list(fields(Settings))
        known = [(s.name, key.name) for s in sections for key in fields(s.default_factory)]
        assert keys(uncommented(self.TEXT)) == known


def sentences(text: str) -> list[str]:
    """The faults of a text; none if it gives settings. Any other error fails the test."""
    try:
        settings(text)
    except ConfigurationError as error:
        return [str(fault) for fault in error.faults] or ["no fault"]
    return []


LINES = st.one_of(
    st.sampled_from(["[server]", "[queues]", "[protocol]", "[store]", "[]", "=", " = 1"]),
    st.tuples(
        st.sampled_from(["listen", "hosts", "password", "quota", "message_ttl", "key"]),
        st.text(st.characters(exclude_characters="\n"), max_size=20),
    ).map(" = ".join),
)


@given(st.one_of(st.text(), st.lists(LINES).map("\n".join)))
def test_any_text_gives_settings_or_faults_with_their_line(text: str) -> None:
    for sentence in sentences(text):
        assert sentence.startswith("smpd.ini, line ")
        assert sentence.isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9050", SocksProxy()),
        ("tor.example.com:9051", SocksProxy(Host.parse("tor.example.com"), 9051)),
        ("[::1]:1080", SocksProxy(Host.parse("::1"), 1080)),
        ("@localhost:1080", SocksProxy(Host.parse("localhost"), 1080, SocksAuth.NONE)),
        ("me:it's me@127.0.0.1:9050", SocksProxy(auth=SocksLogin("me", "it's me"))),
    ],
)
def test_a_socks_proxy(text: str, expected: SocksProxy) -> None:
    assert settings(f"[proxy]\nsocks_proxy = {text}").proxy.socks_proxy == expected


def test_the_socks_proxy_of_the_relays_own_tor() -> None:
    """The word alone; with a port it is the name of a host."""
    given = settings("[proxy]\nsocks_proxy = own").proxy
    assert (given.socks_proxy, given.own_tor) == ("own", True)
    assert not settings("[proxy]\nsocks_proxy = own\nenabled = off").proxy.own_tor
    other = settings("[proxy]\nsocks_proxy = own:9050").proxy
    assert (other.socks_proxy, other.own_tor) == (SocksProxy(Host.parse("own")), False)
    assert not settings("").proxy.own_tor


@pytest.mark.parametrize("onion", ["on", "off"])
def test_a_tor_that_hides_nothing_takes_the_proxy_nowhere(onion: str) -> None:
    text = f"[proxy]\nsocks_proxy = own\n[tor]\nonion = {onion}\ncontrol = own\nsingle_hop = on"
    assert fault(text) == (
        'smpd.ini, line 6: [tor] single_hop: found "on"; allowed: off, where the relay\'s own tor '
        "has to take the proxy to others, too (socks_proxy = own in [proxy])."
    )
    for good in (
        text.replace("control = own", "control = unix:/run/tor/control"),
        text.replace("socks_proxy = own", "socks_proxy = 127.0.0.1:9050"),
        text.replace("single_hop = on", "single_hop = off"),
    ):
        assert settings(good).tor.onion is (onion == "on")


NAME = "a" * 56 + ".onion"


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("", False),
        ("[tor]\nonion = on", True),
        ("[tor]\nonion = on\nsingle_hop = on", False),
        (f"[server]\nhosts = {NAME}", True),
        (f"[server]\nhosts = {NAME}\n[tor]\nonion = on", True),
        (f"[server]\nhosts = {NAME} smp.example.com", False),
        ("[server]\nhosts = 192.0.2.7\n[tor]\nonion = on", False),
    ],
)
def test_whether_tor_hides_where_the_relay_is(text: str, *, hidden: bool) -> None:
    assert settings(text).hidden is hidden


@pytest.mark.parametrize(
    ("lines", "direct"),
    [
        ("", True),
        ("enabled = off", False),
        ("socks_proxy = own", True),
        ("socks_mode = always", True),
        ("socks_proxy = own\nsocks_mode = always", False),
        ("socks_proxy = 127.0.0.1:9050\nsocks_mode = always", False),
        ("socks_proxy = own\nhost_mode = onion", True),
        ("socks_proxy = own\nhost_mode = onion\nrequired_host_mode = on", False),
        ("socks_proxy = own\nrequired_host_mode = on", True),
        ("host_mode = onion\nrequired_host_mode = on", True),
    ],
)
def test_whether_the_proxy_connects_directly(lines: str, *, direct: bool) -> None:
    assert settings(f"[proxy]\n{lines}").proxy.direct is direct


@pytest.mark.parametrize(
    "bad",
    [
        "localhost:0",
        "localhost:65536",
        "localhost:x",
        f"{'a' * 56}.onion:9050",
        "tor.onion.:9050",
        "ü.example.com:9050",
        "hunter2@localhost:9050",
        f"hunter2:{'x' * 256}@localhost:9050",
        "hunter2:x@me:y@localhost:9050",
    ],
)
def test_what_is_no_socks_proxy(bad: str) -> None:
    assert fault(f"[proxy]\nsocks_proxy = {bad}") == (
        "smpd.ini, line 2: [proxy] socks_proxy: found a value that is not shown; allowed: "
        "nothing, or own, host:port, user:password@host:port or @host:port."
    )


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("tcp:5223", "127.0.0.1:5223"),
        ("tcp6:5223", "127.0.0.1:5223"),
        ("tcp:5223:interface=0.0.0.0", "127.0.0.1:5223"),
        ("tcp:5223:interface=\\:\\:", "127.0.0.1:5223"),
        ("tcp:5223:interface=192.0.2.7 tcp:443", "192.0.2.7:5223"),
        ("tcp:5223:interface=\\:\\:1", "[::1]:5223"),
        ("tcp:5223 unix:/run/smpd/onion:mode=660", "unix:/run/smpd/onion"),
        ("unix:address=/run/smpd/onion", "unix:/run/smpd/onion"),
        ("tcp:0 tcp:443", "127.0.0.1:443"),
        ("haproxy:tcp:443 haproxy:unix:/run/smpd/tor tcp:5223", "127.0.0.1:5223"),
        ("unix:/run/ü unix:/run/smpd/onion", "unix:/run/smpd/onion"),
        ("unix:/" + 107 * "x" + " tcp:443", "127.0.0.1:443"),
        ("tcp:5223:interface=localhost tcp:443", "127.0.0.1:443"),
        ("tcp:5223:interface=fe80\\:\\:1%eth0 tcp:443:interface=192.0.2.7", "192.0.2.7:443"),
    ],
)
def test_where_tor_connects_to(listen: str, target: str) -> None:
    given = settings(f"[server]\nlisten = {listen}\n[tor]\nonion = on")
    assert onion_target(given.server.listen) == target


@pytest.mark.parametrize(
    "listen",
    [
        *("tcp:0", "unix:onion", "unix:/run/ü", "unix:/" + 107 * "x"),
        *("systemd:domain=INET:index=0", "haproxy:unix:/run/s haproxy:tcp:443"),
        *("tcp:5223:interface=localhost", "tcp:5223:interface=fe80\\:\\:1%eth0"),
    ],
)
def test_an_onion_service_of_what_tor_cannot_connect_to(listen: str) -> None:
    assert fault(f"[tor]\nonion = on\n[server]\nlisten = {listen}") == (
        "smpd.ini, line 4: [server] listen: found nothing that tor can connect to; allowed: "
        f"{REACHED_BY_TOR}."
    )
    assert settings(f"[server]\nlisten = {listen}").tor.onion is False


ONION = "onionservice:5223:key=/srv/onion.key"


@pytest.mark.parametrize(
    ("listen", "more", "found", "allowed"),
    [
        (
            "onionservice:0:key=/srv/onion.key",
            "",
            "ports '0' in an onionservice endpoint",
            "ports from 1 to 65535, each once, such as 5223+443",
        ),
        (f"{ONION}:pow=on", "", "pow 'on' in an onionservice endpoint", "yes or no"),
        (
            "onionservice:5223:key=onion.key",
            "",
            '"onion.key"',
            "whole paths in an onionservice endpoint",
        ),
        (f"{ONION}:socket=o", "", '"o"', "whole paths in an onionservice endpoint"),
        (
            f"tcp:443 {ONION}",
            "",
            "an onionservice endpoint that is not reached by the relay's address",
            "its port, 443, among those of the endpoint",
        ),
        (
            f"{ONION} {ONION}:socket=/srv/other",
            "",
            'an onionservice endpoint with "/srv/onion.key"',
            "a key that no other onion service of the relay has",
        ),
        (
            f"tcp:5223 {ONION}",
            "[tor]\nonion = on\nonion_key = /srv/onion.key",
            'an onionservice endpoint with "/srv/onion.key"',
            "a key that no other onion service of the relay has",
        ),
        (
            f"{ONION}:socket=/run/ü",
            "",
            "socket '/run/ü' in an onionservice endpoint",
            "a path of at most 107 ASCII characters without spaces, quotation marks and commas",
        ),
        (
            f"haproxy:{ONION}",
            "",
            f'"haproxy:{ONION}"',
            "onionservice without haproxy:, since tor writes no PROXY header for it",
        ),
        (
            ONION,
            "[tor]\nonion = on",
            "nothing that tor can connect to",
            REACHED_BY_TOR,
        ),
    ],
)
def test_endpoints_that_cannot_be_onion_services(
    listen: str, more: str, found: str, allowed: str
) -> None:
    assert fault(f"[server]\nlisten = {listen}\n{more}") == (
        f"smpd.ini, line 2: [server] listen: found {found}; allowed: {allowed}."
    )


def test_ports_that_are_not_those_of_the_address() -> None:
    for ports in ("443", "443 5223=127.0.0.1:5224"):
        assert fault(f"[tor]\nonion = on\nonion_ports = {ports}") == (
            "smpd.ini, line 3: [tor] onion_ports: found none that is reached by the relay's "
            "address; allowed: its port, 5223, among them, and leading to this relay."
        )
    assert fault("[tor]\nonion_ports = 5223 443 443=127.0.0.1:1") == (
        'smpd.ini, line 2: [tor] onion_ports: found "443" twice; allowed: each once.'
    )


def test_a_password_that_is_out_of_place_is_not_shown() -> None:
    assert "hunter2" not in fault(f"[server]\nlisten = {ONION}:password=hunter2")


def test_endpoints_that_are_onion_services() -> None:
    s = settings(f"[server]\nprocesses = 2\nlisten = {ONION} unix:/srv/s {ONION}2:mode=660")
    given = onion_endpoints(s.server.listen)
    assert [each.key for each in given] == [Path("/srv/onion.key"), Path("/srv/onion.key2")]
    assert [each.mode for each in given] == [0o600, 0o660]


def test_a_service_in_torrc() -> None:
    """What the relay publishes nothing for, and tor need not be able to connect to."""
    given = settings(
        "[server]\nlisten = haproxy:unix:/run/smpd/onion\n"
        "[tor]\nonion = on\nservice_directory = tor/smpd\nmost_streams = 8\nmost_connections = 9"
    )
    assert given.tor.service_directory == HERE / "tor/smpd"
    assert given.server.port == 5223


@pytest.mark.parametrize(
    "line",
    [
        *("control = own", "directory = x", "include = x", "password = secret", "onion_key = x"),
        *("onion_ports = 443", "proof_of_work = on", "single_hop = off"),
    ],
)
def test_what_a_service_in_torrc_has_of_tor(line: str) -> None:
    key = line.partition(" ")[0]
    assert fault(f"[tor]\nonion = on\nservice_directory = /var/lib/tor/smpd\n{line}") == (
        f"smpd.ini, line 4: [tor] {key}: found a value; allowed: nothing beside "
        "service_directory: torrc has all of that."
    )


def test_circuits_that_nobody_tells_of() -> None:
    assert fault("[tor]\nservice_directory = x\nmost_streams = 8") == (
        'smpd.ini, line 3: [tor] most_streams: found "8"; allowed: 0 beside service_directory, '
        "unless there is a haproxy: endpoint in listen in [server]."
    )


@pytest.mark.parametrize("endpoint", ["haproxy:unix:/run/s:mode=660", "haproxy:tcp:5223"])
def test_a_proxys_endpoint_and_several_processes(endpoint: str) -> None:
    assert fault(f"[server]\nlisten = tcp:443 {endpoint}\nprocesses = 2") == (
        f'smpd.ini, line 3: [server] listen: found "{endpoint}"; allowed: haproxy: with one '
        "process only."
    )
    settings(f"[server]\nlisten = tcp:443 {endpoint}\nprocesses = 1")


def test_a_limit_for_unix_sockets_that_are_not_there() -> None:
    for listen in ("tcp:5223", "haproxy:tcp:5223", "systemd:domain=INET:index=0"):
        assert fault(f"[server]\nlisten = {listen}\n[tor]\nmost_connections = 7") == (
            'smpd.ini, line 4: [tor] most_connections: found "7"; allowed: 0, unless there is a '
            "Unix socket, or an onionservice endpoint, in listen in [server]."
        )
    for listen in ("tcp:1 unix:a", "haproxy:unix:a", "systemd:domain=UNIX:index=0", ONION):
        given = settings(f"[server]\nlisten = {listen}\n[tor]\nmost_connections = 7")
        assert given.tor.most_connections == 7


def test_the_port_behind_a_proxy() -> None:
    assert settings("[server]\nlisten = unix:a haproxy:tcp:443").server.port == 443


def test_the_onion_service_is_the_last_host_of_the_address() -> None:
    onion = Host.parse("a" * 56 + ".onion")
    key_hash = bytes(32)
    both = settings("[server]\nhosts = smp.example.com").address(key_hash, [onion])
    assert both is not None
    assert [str(host) for host in both.location.hosts] == ["smp.example.com", str(onion)]
    only = settings("").address(key_hash, [onion])
    assert only is not None
    assert only.location.hosts == (onion,)
    twice = settings(f"[server]\nhosts = {onion} smp.example.com").address(key_hash, [onion])
    assert twice is not None
    assert twice.location.hosts == (onion, Host.parse("smp.example.com"))
    assert settings("").address(key_hash) is None
