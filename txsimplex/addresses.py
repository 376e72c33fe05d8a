"""Addresses of servers, their hosts, and how to reach them (docs/spec/smp-wire.md §13).

A `RelayLocation` is what a client must know to connect: hosts, port and the
SHA-256 of the identity certificate. A `ServerAddress` is what people pass around:
the location with its scheme and, for those who may create queues, a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv6Address
from typing import Final

from txsimplex.encoding import ParseError, Reader, nonempty, short
from txsimplex.scanning import Scanner, decimal, to_base64url

DEFAULT_SMP_PORT: Final = 5223
DEFAULT_XFTP_PORT: Final = 443

_LONGEST: Final = 255
"""Bytes of a short string: nothing longer can be sent."""
_IPV4: Final = re.compile(r"([0-9]+)\.([0-9]+)\.([0-9]+)\.([0-9]+)")
_IPV6: Final = re.compile(r"\[([0-9a-fA-F:.]+)\]|([0-9a-fA-F:]+)")
_ONION: Final = re.compile(r"[a-z0-9]*\.onion")
_DOMAIN: Final = re.compile(r"[^:#,;/ \n\r\t]+")
_SCHEME: Final = re.compile(r"(smp|ntf|xftp)://")
_PASSWORD: Final = re.compile(r":([^@:/ ]+)")
_PORT: Final = re.compile(r":([0-9]+)")
_CREDENTIALS: Final = re.compile(r"(?:([^@:]+):([^@]+))?@")

_PASSWORD_BYTES: Final = bytes(
    byte
    for byte in range(256)
    if not (byte <= 0x20 or 0x7F <= byte <= 0xA0 or byte == 0xAD or byte in b"@:/")
)


def is_password(password: bytes) -> bool:
    """Whether every byte may stand in a server's password (§1, BasicAuth)."""
    return not password.translate(None, _PASSWORD_BYTES)


class HostKind(Enum):
    """What the text of a host is."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    ONION = "onion"
    DOMAIN = "domain"


@dataclass(frozen=True, slots=True)
class Host:
    """A host of a server: `text` in its canonical form, IPv6 without brackets."""

    kind: HostKind
    text: str

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> Host:
        """A host from its whole text. Raises `ParseError`."""
        scanner = Scanner(text)
        host = scan_host(scanner)
        scanner.finish()
        return host

    @property
    def is_onion(self) -> bool:
        """Whether the name is one of an onion service, however it is written.

        The kind is `HostKind.ONION` for the one form that the reference knows only. But the
        DNS would be asked for the others too, and who sees that sees which service is meant.
        """
        return self.text.lower().rstrip(".").endswith(".onion")

    def encode(self) -> bytes:
        """The text as a short string."""
        return short(self.text.encode("utf-8"))

    @classmethod
    def read(cls, reader: Reader) -> Host:
        """Reads what `encode` writes. Raises `ParseError`."""
        return cls.parse(reader.text())


def scan_host(scanner: Scanner) -> Host:
    """Reads a host. Raises `ParseError`.

    The kinds are tried in the order of `HostKind`, and the first that begins
    here is taken, so that ``1.2.3.4x`` and ``a.onion.com`` are no hosts (§13).
    """
    start = scanner.position
    ipv4 = scanner.match(_IPV4)
    if ipv4 is not None:
        try:
            numbers = [decimal(number, 255) for number in ipv4.groups()[:3]]
        except ParseError:
            scanner.position = start
        else:
            numbers.append(decimal(ipv4[4], 255))
            return Host(HostKind.IPV4, ".".join(map(str, numbers)))
    ipv6 = scanner.match(_IPV6)
    if ipv6 is not None:
        try:
            return Host(HostKind.IPV6, _ipv6_text(IPv6Address(ipv6[1] or ipv6[2])))
        except ValueError:
            scanner.position = start
    onion = scanner.match(_ONION)
    if onion is not None:
        return Host(HostKind.ONION, _checked(onion[0]))
    domain = scanner.match(_DOMAIN)
    if domain is None or domain[0].endswith(".onion"):
        raise ParseError("not a host")
    return Host(HostKind.DOMAIN, _checked(domain[0]))


def _ipv6_text(address: IPv6Address) -> str:
    # From Python 3.13 on the text of a mapped address ends with four decimal
    # numbers, which no parser of hosts reads.
    mapped = address.ipv4_mapped
    if mapped is None:
        return str(address)
    number = int(mapped)
    return f"::ffff:{number >> 16:x}:{number & 0xFFFF:x}"


def _checked(text: str) -> str:
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise ParseError("not a text") from None
    if size > _LONGEST:
        raise ParseError("a text too long")
    return text


def scan_hosts(scanner: Scanner) -> tuple[Host, ...]:
    """Reads 1 to 255 hosts separated by commas. Raises `ParseError`."""
    hosts = [scan_host(scanner)]
    while scanner.skip(","):
        hosts.append(scan_host(scanner))
    if len(hosts) > _LONGEST:
        raise ParseError("too many hosts")
    return tuple(hosts)


def parse_hosts(text: str) -> tuple[Host, ...]:
    """The hosts of a comma-separated list. Raises `ParseError`."""
    scanner = Scanner(text)
    hosts = scan_hosts(scanner)
    scanner.finish()
    return hosts


def format_hosts(hosts: Iterable[Host]) -> str:
    """The comma-separated list of hosts."""
    return ",".join(map(str, hosts))


@dataclass(frozen=True, slots=True)
class RelayLocation:
    """Where a relay is, and the SHA-256 of its identity certificate.

    `port` is empty for the default port. It has digits only when it comes from a
    text; the binary form is not checked, as the reference does not (§10).
    """

    hosts: tuple[Host, ...]
    port: str
    key_hash: bytes

    def __post_init__(self) -> None:
        if not self.hosts:
            raise ValueError("a relay has at least one host")

    def encode(self) -> bytes:
        """The binary form: list of hosts, port, key hash (§10)."""
        return (
            nonempty(self.hosts, Host.encode)
            + short(self.port.encode("latin-1"))
            + short(self.key_hash)
        )

    @classmethod
    def read(cls, reader: Reader) -> RelayLocation:
        """Reads what `encode` writes. Raises `ParseError`."""
        hosts: list[Host] = reader.nonempty(lambda: Host.read(reader))
        return cls(tuple(hosts), reader.short().decode("latin-1"), reader.short())

    @property
    def authority(self) -> str:
        """Hosts and port as text.

        An IPv6 address gets brackets where a port follows. The reference prints it
        without and then reads the port as a part of the address.
        """
        text = format_hosts(self.hosts)
        if not self.port:
            return text
        if self.hosts[-1].kind is HostKind.IPV6:
            text = format_hosts(self.hosts[:-1])
            return f"{text}{',' if text else ''}[{self.hosts[-1]}]:{self.port}"
        return f"{text}:{self.port}"

    def same_place(self, other: RelayLocation) -> bool:
        """Whether hosts and port are the same, whatever the key hash (§13)."""
        return self.hosts == other.hosts and self.port == other.port


class Scheme(Enum):
    """The protocol of a server, as its address begins."""

    SMP = "smp"
    NTF = "ntf"
    XFTP = "xftp"


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of a server as people pass it around."""

    scheme: Scheme
    location: RelayLocation
    password: str | None = field(default=None, repr=False)

    @property
    def hosts(self) -> tuple[Host, ...]:
        """At least one host."""
        return self.location.hosts

    @property
    def port(self) -> str:
        """The port in decimal digits, empty for the default one."""
        return self.location.port

    @property
    def key_hash(self) -> bytes:
        """SHA-256 of the identity certificate, 32 bytes in a usable address."""
        return self.location.key_hash

    def without_password(self) -> ServerAddress:
        """The address as it may be shown to anybody."""
        return replace(self, password=None)

    def __str__(self) -> str:
        """The text, with the password if there is one."""
        password = "" if self.password is None else ":" + self.password
        key_hash = to_base64url(self.key_hash)
        return f"{self.scheme.value}://{key_hash}{password}@{self.location.authority}"

    @classmethod
    def parse(
        cls, text: str, scheme: Scheme | None = None, *, password: bool = True
    ) -> ServerAddress:
        """An address from its whole text. Raises `ParseError`.

        Only of one `scheme` if that is given, and without a password where that is
        not allowed. The length of the key hash is not looked at.
        """
        scanner = Scanner(text)
        address = scan_address(scanner)
        scanner.finish()
        if scheme is not None and address.scheme is not scheme:
            raise ParseError("an address of another protocol")
        if not password and address.password is not None:
            raise ParseError("a password is not allowed")
        return address


def scan_address(scanner: Scanner) -> ServerAddress:
    """Reads the address of a server. Raises `ParseError`."""
    scheme = scanner.match(_SCHEME)
    if scheme is None:
        raise ParseError("not the scheme of a server")
    key_hash = scanner.base64url()
    password = scanner.match(_PASSWORD)
    if password is not None and not is_password(_checked(password[1]).encode("utf-8")):
        raise ParseError("not a password")
    scanner.expect("@")
    hosts = scan_hosts(scanner)
    port = scan_port(scanner)
    if max(len(key_hash), len(port)) > _LONGEST:
        raise ParseError("a part too long")
    location = RelayLocation(hosts, port, key_hash)
    return ServerAddress(Scheme(scheme[1]), location, None if password is None else password[1])


def scan_port(scanner: Scanner) -> str:
    """Reads a colon and decimal digits; empty when they are not there.

    Zeros in front are dropped; the size of the number is not looked at (§13).
    """
    port = scanner.match(_PORT)
    return "" if port is None else port[1].lstrip("0") or "0"


class SocksAuth(Enum):
    """How to authenticate to a SOCKS proxy to which no login is given."""

    ISOLATE = "isolate"
    """With names made up for each session, to which Tor gives circuits of their own."""
    NONE = "none"
    """Not at all."""


@dataclass(frozen=True, slots=True)
class SocksLogin:
    """Name and password for a SOCKS proxy."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SocksProxy:
    """A SOCKS proxy, such as that of Tor."""

    host: Host = Host(HostKind.IPV4, "127.0.0.1")
    port: int = 9050
    auth: SocksAuth | SocksLogin = SocksAuth.ISOLATE

    def __str__(self) -> str:
        """The text that `parse` reads, with the login if there is one."""
        host = f"[{self.host}]" if self.host.kind is HostKind.IPV6 else str(self.host)
        if isinstance(self.auth, SocksLogin):
            return f"{self.auth.user}:{self.auth.password}@{host}:{self.port}"
        return f"{'@' if self.auth is SocksAuth.NONE else ''}{host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> SocksProxy:
        """A proxy from ``[user:password@ | @][host][:port]``. Raises `ParseError`.

        The host may be a name, for which the reference wants an IP address.
        """
        scanner = Scanner(text)
        auth: SocksAuth | SocksLogin = SocksAuth.ISOLATE
        credentials = scanner.match(_CREDENTIALS)
        if credentials is not None:
            auth = SocksAuth.NONE
            if credentials[1] is not None:
                auth = SocksLogin(_checked(credentials[1]), _checked(credentials[2]))
        proxy = cls(auth=auth)
        port = scanner.match(_PORT)
        if port is None and scanner.position < len(text):
            proxy = replace(proxy, host=scan_host(scanner))
            port = scanner.match(_PORT)
        if port is not None:
            proxy = replace(proxy, port=decimal(port[1], 65535))
        scanner.finish()
        if proxy.host.is_onion or "@" in proxy.host.text:
            raise ParseError("not the host of a proxy")
        return proxy


class SocksMode(Enum):
    """For which hosts a SOCKS proxy is used, if there is one."""

    ALWAYS = "always"
    ONION = "onion"

    def covers(self, host: Host) -> bool:
        """Whether connections to `host` go through the proxy."""
        return self is SocksMode.ALWAYS or host.kind is HostKind.ONION


class HostMode(Enum):
    """Which of a server's hosts to connect to."""

    ONION_VIA_SOCKS = "onion_via_socks"
    """The onion host if there is a SOCKS proxy, else a public one."""
    ONION = "onion"
    PUBLIC = "public"


def choose_host(
    hosts: Iterable[Host], mode: HostMode, *, socks: bool, required: bool = False
) -> Host | None:
    """The host to connect to, None when there is none that is allowed.

    The first host of the kind that `mode` prefers; without such a host the very
    first one, or none at all if the kind is `required`. `socks` says whether there
    is a SOCKS proxy. (Conformance 39-41; the host chosen may be an onion host
    although there is no proxy: names of onion services must not go to the DNS.)
    """
    onion = mode is HostMode.ONION or (mode is HostMode.ONION_VIA_SOCKS and socks)
    first = None
    for host in hosts:
        if (host.kind is HostKind.ONION) == onion:
            return host
        first = first or host
    return None if required else first
