"""The relay's configuration: INI text to typed settings.

Sections and keys are the fields below, with the reference's values as defaults
(docs/spec/smp-server.md §2, §6, §7; smp-ops.md §4). `etc/smpd.ini` and
smpd.ini(5) document them for whoever runs a relay.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from smpd.endpoints import (
    ENDPOINTS,
    behind_proxy,
    endpoint,
    onion_endpoints,
    tcp_port,
)
from smpd.ini import (
    ConfigurationError,
    Document,
    Fault,
    Kind,
    Refused,
    each_once,
    on_off,
    one_of,
    optional,
    path_of,
    quoted,
    seconds,
    section_class,
    setting,
    whole_number,
    words,
)
from smpd.proxy_settings import ProxySettings, is_domain
from smpd.tor_settings import TorSettings, check_tor
from txsimplex.addresses import (
    DEFAULT_SMP_PORT,
    Host,
    HostKind,
    RelayLocation,
    Scheme,
    ServerAddress,
    is_password,
)
from txsimplex.encoding import ParseError

T = TypeVar("T")

DEFAULT_PATH = Path("/etc/smpd/smpd.ini")
LEAST_VERSION = 6
MOST_VERSION = 18

_LONGEST = 1e9
"""No interval is longer: about 31 years, in seconds."""
_SHORTEST = 0.01
_MOST_PROCESSES = 64


def _at_least_one(kind: Kind[tuple[T, ...]]) -> Kind[tuple[T, ...]]:
    def read(text: str) -> tuple[T, ...]:
        values = kind.read(text)
        if not values:
            raise Refused(("nothing", None))
        return values

    return Kind(read, kind.allowed)


def _read_password(text: str) -> bytes:
    """Basic auth (smp-wire.md §1): bytes printable as Latin-1, no space, none of `@ : /`."""
    password = text.encode("utf-8", "surrogatepass")
    if not 1 <= len(password) <= 255 or not is_password(password):
        raise Refused(("", None))
    return password


def _read_database(text: str) -> str:
    """Where a database is, which is not tried before the relay starts."""
    if not _CONNECTION.match(text) or "\0" in text:
        raise Refused(("", None))
    return text


_CONNECTION = re.compile(r"postgres(ql)?://|[a-z_]+ *=")
_HOSTS = "domain names, IPv4 or IPv6 addresses and onion names, such as smp.example.com"


def _host(text: str) -> Host:
    """A host that one would print: more exact about domain names than what clients accept."""
    try:
        host = Host.parse(text)
    except ParseError:
        raise Refused((quoted(text), None)) from None
    if host.kind is HostKind.DOMAIN and not is_domain(text):
        raise Refused((quoted(text), None))
    return host


_PASSWORD: Kind[bytes] = Kind(
    _read_password, "1 to 255 printable characters without spaces, @, : and /", secret=True
)
_QUEUE_SIZE = whole_number(1, 65535)
_INTERVAL = seconds(_SHORTEST, _LONGEST)


_DATABASE: Kind[str] = Kind(
    _read_database,
    "a URL such as postgresql://smpd@db.example.com/smpd, or a connection string of libpq",
    secret=True,
)


def _read_processes(text: str) -> int:
    number = whole_number(1, _MOST_PROCESSES).read
    return min(len(os.sched_getaffinity(0)), _MOST_PROCESSES) if text == "auto" else number(text)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`[server]`: where the relay listens, with how many processes, and what its address says.

    `listen` holds Twisted endpoint descriptions, `hosts` the names and addresses
    of the printed address; the paths are complete, or relative to the working
    directory where the configuration's own path is.
    """

    listen: tuple[str, ...] = setting(
        _at_least_one(each_once(words(endpoint, ENDPOINTS))), ("tcp:5223",)
    )
    hosts: tuple[Host, ...] = setting(each_once(words(_host, _HOSTS)), ())
    certificate: Path = setting(path_of(), Path("server.crt"))  # noqa: RUF009
    key: Path = setting(path_of(), Path("server.key"))  # noqa: RUF009
    ca_certificate: Path = setting(path_of(), Path("ca.crt"))  # noqa: RUF009
    address_port: int | None = setting(optional(whole_number(1, 65535)), None)
    processes: int = setting(
        Kind(_read_processes, f"auto, or a whole number from 1 to {_MOST_PROCESSES}"), 1
    )

    @property
    def port(self) -> int:
        """The port of the printed address: `address_port`, or that of the first TCP endpoint.

        Without one, that of the first endpoint that is an onion service.
        """
        if self.address_port is not None:
            return self.address_port
        ports = [port for description in self.listen if (port := tcp_port(description))]
        ports += [each.ports[0] for each in onion_endpoints(self.listen)]
        return ports[0] if ports else DEFAULT_SMP_PORT


@dataclass(frozen=True, slots=True)
class ProtocolSettings:
    """`[protocol]`: the versions offered, and the time limits of a new connection in seconds."""

    minimum_version: int = setting(whole_number(LEAST_VERSION, MOST_VERSION), LEAST_VERSION)
    maximum_version: int = setting(whole_number(LEAST_VERSION, MOST_VERSION), MOST_VERSION)
    request_client_certificates: bool = setting(on_off(), True)
    tls_timeout: float = setting(_INTERVAL, 60.0)
    handshake_timeout: float = setting(_INTERVAL, 120.0)


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """`[queues]`: who may create queues, how much they hold and how long; times in seconds."""

    new_queues: bool = setting(on_off(), True)
    password: bytes | None = setting(optional(_PASSWORD), None)
    quota: int = setting(whole_number(1, 1_000_000), 128)
    message_ttl: float = setting(_INTERVAL, 1_814_400.0)
    expiry_interval: float = setting(_INTERVAL, 7200.0)
    expire_on_send: bool = setting(on_off(), False)
    unused_ttl: float | None = setting(optional(seconds(86_400, _LONGEST)), None)


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """`[delivery]`: seconds between rounds of END, ENDS and DELD; blocks held per client.

    Blocks received need no limit: each is worked through as it is read. `answer_time` and
    `random_delay` are seconds: from a SEND to its answer at least, and to its delivery at most.
    """

    end_interval: float = setting(_INTERVAL, 15.0)
    send_queue: int = setting(_QUEUE_SIZE, 128)
    answer_time: float = setting(seconds(0, 10), 0.0)
    random_delay: float = setting(seconds(0, 3600), 0.0)


@dataclass(frozen=True, slots=True)
class NotificationSettings:
    """`[notifications]`: rounds of delivery and expiry, and how long one is kept; in seconds."""

    delivery_interval: float = setting(_INTERVAL, 1.5)
    ttl: float = setting(_INTERVAL, 86_400.0)
    expiry_interval: float = setting(_INTERVAL, 3600.0)


@dataclass(frozen=True, slots=True)
class InactiveClientSettings:
    """`[inactive_clients]`: when a client without subscriptions is disconnected; in seconds."""

    disconnect: bool = setting(on_off(), True)
    ttl: float = setting(_INTERVAL, 21_600.0)
    check_interval: float = setting(_INTERVAL, 3600.0)


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """`[control]`: the Unix socket by which a relay that runs is asked and told things."""

    socket: Path | None = setting(optional(path_of()), Path("control.sock"))  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """`[store]`: where queues and messages are kept; times in seconds.

    `path` is the directory of the SQLite store, `database` where the PostgreSQL store connects
    to and `connections` how many transactions it makes at the same time. `commit_interval` is
    how long changes are gathered for one commit, `cached_queues` how many queues are kept in
    memory. Answers wait `answer_timeout` for a store that fails. `snapshot` is the file in
    which the memory store survives a stop.
    """

    kind: str = setting(one_of("sqlite", "postgres", "memory"), "sqlite")
    path: Path = setting(path_of("a directory"), Path("store"))  # noqa: RUF009
    database: str | None = setting(optional(_DATABASE), None)
    connections: int = setting(whole_number(1, 64), 4)
    commit_interval: float = setting(seconds(0.001, 1), 0.006)
    cached_queues: int = setting(whole_number(100, 100_000_000), 20_000)
    answer_timeout: float = setting(_INTERVAL, 5.0)
    snapshot: Path | None = setting(optional(path_of()), None)  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole configuration; without arguments, that of an empty file in the working directory."""

    server: ServerSettings = field(default_factory=ServerSettings)
    protocol: ProtocolSettings = field(default_factory=ProtocolSettings)
    queues: QueueSettings = field(default_factory=QueueSettings)
    delivery: DeliverySettings = field(default_factory=DeliverySettings)
    notifications: NotificationSettings = field(default_factory=NotificationSettings)
    inactive_clients: InactiveClientSettings = field(default_factory=InactiveClientSettings)
    proxy: ProxySettings = field(default_factory=ProxySettings)
    tor: TorSettings = field(default_factory=TorSettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    store: StoreSettings = field(default_factory=StoreSettings)

    @property
    def hidden(self) -> bool:
        """Whether clients reach the relay by Tor only, and are not to learn where it is."""
        hosts, tor, listen = self.server.hosts, self.tor, self.server.listen
        endpoints = onion_endpoints(listen)
        service = tor.onion or endpoints or any(host.is_onion for host in hosts)
        shown = tor.single_hop or any(each.single_hop for each in endpoints)
        return bool(service) and all(host.is_onion for host in hosts) and not shown

    def address(self, key_hash: bytes, onions: Sequence[Host] = ()) -> ServerAddress | None:
        """The relay's address with its password, None without hosts.

        `key_hash` is the fingerprint of the relay's identity, `onions` its onion services, which
        stand last. The default port is left out (smp-wire.md §13).
        """
        hosts = self.server.hosts
        hosts += tuple(onion for onion in onions if onion not in hosts)
        if not hosts:
            return None
        port = "" if self.server.port == DEFAULT_SMP_PORT else str(self.server.port)
        password = None if self.queues.password is None else self.queues.password.decode()
        location = RelayLocation(hosts, port, key_hash)
        return ServerAddress(Scheme.SMP, location, password)


def parse(text: str, file_name: str, directory: Path) -> Settings:
    """The settings that an INI text gives.

    `file_name` stands in faults; relative paths are taken from `directory`.
    Raises `ConfigurationError` with every fault.
    """
    document = Document(file_name, text, Settings)
    sections: dict[str, Any] = {
        section.name: section_class(section)(**document.values.get(section.name, {}))
        for section in fields(Settings)
    }
    settings = Settings(**sections)
    server = settings.server
    _check_versions(document, settings.protocol)
    _check_files(document, server)
    _check_processes(document, server)
    check_tor(document, settings.tor, server.listen, server.port, own_socks=settings.proxy.own_tor)
    _check_onion_endpoints(document, settings, directory)
    _check_store(document, settings.store)
    if document.faults:
        raise ConfigurationError(sorted(document.faults, key=lambda fault: fault.line or 0))
    paths = {name: directory / getattr(server, name) for name in _FILES}
    tor, store, control = settings.tor, settings.store, settings.control
    socket = None if control.socket is None else directory / control.socket
    service = tor.service_directory
    snapshot = None if store.snapshot is None else directory / store.snapshot
    return replace(
        settings,
        server=replace(server, **paths),
        tor=replace(
            tor,
            service_directory=None if service is None else directory / service,
            directory=directory / tor.directory,
            include=None if tor.include is None else directory / tor.include,
            onion_key=directory / tor.onion_key,
            clients=directory / tor.clients,
        ),
        control=replace(control, socket=socket),
        store=replace(store, path=directory / store.path, snapshot=snapshot),
    )


def load(path: Path) -> Settings:
    """The settings in a file; raises `ConfigurationError`, also when it cannot be read."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        found = f"no file that can be read ({error.strerror})"
    except UnicodeDecodeError:
        found = "bytes that are not UTF-8"
    else:
        return parse(text, str(path), path.parent)
    raise ConfigurationError([Fault(str(path), None, None, None, found, "an INI file in UTF-8")])


def _check_processes(document: Document, server: ServerSettings) -> None:
    if server.processes == 1:
        return
    if any(tcp_port(each) == 0 for each in server.listen):
        document.refuse(
            "server", "listen", "port 0", "a port that several processes can share", "processes"
        )
    for each in server.listen:
        if behind_proxy(each) is not None:
            document.refuse(
                "server", "listen", quoted(each), "haproxy: with one process only", "processes"
            )


def _check_onion_endpoints(document: Document, settings: Settings, directory: Path) -> None:
    server, tor = settings.server, settings.tor
    keys = [directory / tor.onion_key] if tor.onion else []
    for each in onion_endpoints(server.listen):
        if server.port not in each.ports:
            document.refuse(
                "server",
                "listen",
                "an onionservice endpoint that is not reached by the relay's address",
                f"its port, {server.port}, among those of the endpoint",
                "address_port",
            )
        if each.key in keys:
            document.refuse(
                "server",
                "listen",
                f"an onionservice endpoint with {quoted(str(each.key))}",
                "a key that no other onion service of the relay has",
            )
        keys.append(each.key)


def _check_versions(document: Document, protocol: ProtocolSettings) -> None:
    if protocol.minimum_version > protocol.maximum_version:
        document.refuse(
            "protocol",
            "maximum_version",
            f'"{protocol.maximum_version}"',
            f"at least the minimum_version, {protocol.minimum_version}",
            "minimum_version",
        )


def _check_store(document: Document, store: StoreSettings) -> None:
    if store.snapshot is not None and store.kind != "memory":
        document.refuse(
            "store",
            "snapshot",
            quoted(str(store.snapshot)),
            "nothing, unless kind is memory: other stores are on disk already",
            "kind",
        )
    told = any((fault.section, fault.key) == ("store", "database") for fault in document.faults)
    if (store.database is not None) != (store.kind == "postgres") and not told:
        document.refuse(
            "store",
            "database",
            "nothing" if store.database is None else "a value that is not shown",
            "where the database is, for kind = postgres, and nothing for others",
            "kind",
        )


_FILES = ("certificate", "key", "ca_certificate")


def _check_files(document: Document, server: ServerSettings) -> None:
    for index, name in enumerate(_FILES):
        path: Path = getattr(server, name)
        for other in _FILES[:index]:
            if getattr(server, other) == path:
                document.refuse(
                    "server", name, quoted(str(path)), f"another file than that of {other}", other
                )
