"""`[tor]`: whether the relay is an onion service, and by which tor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smpd.endpoints import OWN_TOR, behind_proxy, is_unix, onion_target
from smpd.ini import (
    Document,
    Kind,
    Refused,
    on_off,
    optional,
    path_of,
    quoted,
    setting,
    whole_number,
    words,
)
from torcfg.descriptions import LONGEST_SOCKET_PATH, SOCKET_PATH, is_control
from torcfg.onion_services import is_target


def _read_control_password(text: str) -> str:
    if not text.isprintable():
        raise Refused(("", None))
    return text


class ServicePort(NamedTuple):
    """A port of the onion service; `target` is where it leads, if not to this relay."""

    number: int
    target: str | None = None


def _onion_port(text: str) -> ServicePort:
    number, equals, target = text.partition("=")
    try:
        port = whole_number(1, 65535).read(number)
    except Refused:
        raise Refused((quoted(text), None)) from None
    if equals and not is_target(target):
        raise Refused((quoted(text), None))
    return ServicePort(port, target if equals else None)


def _read_onion_ports(text: str) -> tuple[ServicePort, ...]:
    ports = words(_onion_port, _PORTS).read(text)
    numbers = [port.number for port in ports]
    for number in numbers:
        if numbers.count(number) > 1:
            raise Refused((f'"{number}" twice', "each once"))
    return ports


_CONTROL_PASSWORD: Kind[str] = Kind(_read_control_password, "printable characters", secret=True)
_PORTS = (
    "ports from 1 to 65535, such as 5223 443, and others with where they lead to, such as "
    "80=127.0.0.1:8080 or 443=unix:/run/xftpd/onion.sock, with "
    f"{SOCKET_PATH}"
)


_CONTROL = (
    f"unix:/run/tor/control (a path of at most {LONGEST_SOCKET_PATH} bytes), tcp:127.0.0.1:9051 or "
    f"such, or {OWN_TOR}"
)


def _read_control(text: str) -> str:
    """Where tor's control socket or port is, as an endpoint, or `OWN_TOR`."""
    if text != OWN_TOR and not is_control(text):
        raise Refused((quoted(text), None))
    return text


@dataclass(frozen=True, slots=True)
class TorSettings:
    """`[tor]`: whether the relay is an onion service, and by which tor.

    `control` is where that tor is told what to do, an endpoint, or `OWN_TOR`: the relay then runs
    a tor with its files in `directory`, and further lines of its torrc in `include`.
    `clients` has the files of who may reach the onion service, everybody if it is not there.
    `onion_ports` are those of the onion service, without any that of the address; some may lead to
    other relays, of which this one knows nothing. A circuit may
    have `most_streams` connections, and all Unix sockets together `most_connections`; 0 for any
    number. `service_directory` is the HiddenServiceDir of an onion service that is tor's own.
    """

    onion: bool = setting(on_off(), False)
    service_directory: Path | None = setting(optional(path_of("a directory")), None)  # noqa: RUF009
    control: str = setting(
        Kind(_read_control, _CONTROL),
        "unix:/run/tor/control",
    )
    directory: Path = setting(path_of("a directory"), Path("tor"))  # noqa: RUF009
    include: Path | None = setting(optional(path_of()), None)  # noqa: RUF009
    password: str | None = setting(optional(_CONTROL_PASSWORD), None)
    onion_key: Path = setting(path_of(), Path("onion.key"))  # noqa: RUF009
    clients: Path = setting(path_of("a directory"), Path("onion.clients"))  # noqa: RUF009
    onion_ports: tuple[ServicePort, ...] = setting(Kind(_read_onion_ports, _PORTS), ())
    most_streams: int = setting(whole_number(0, 65535), 0)
    most_connections: int = setting(whole_number(0, 1_000_000), 0)
    proof_of_work: bool = setting(on_off(), False)
    single_hop: bool = setting(on_off(), False)


_PUBLISHING = (
    *("control", "password", "onion_key", "clients"),
    *("onion_ports", "proof_of_work", "single_hop"),
)
"""Keys that are for an onion service that the relay publishes."""
_OWN = ("directory", "include")
"""Keys that are for a tor that the relay runs itself."""


def check_tor(
    document: Document, tor: TorSettings, listen: Sequence[str], port: int, *, own_socks: bool
) -> None:
    """Notes the faults of the section beside what else is set.

    `port` is that of the relay's address. `own_socks` says whether the proxy goes through the tor
    that the relay runs itself.
    """
    ports = tor.onion_ports if tor.service_directory is None else ()
    if ports and ServicePort(port) not in ports:
        document.refuse(
            "tor",
            "onion_ports",
            "none that is reached by the relay's address",
            f"its port, {port}, among them, and leading to this relay",
        )
    if tor.most_connections and not any(is_unix(each) for each in listen):
        document.refuse(
            "tor",
            "most_connections",
            f'"{tor.most_connections}"',
            "0, unless there is a Unix socket, or an onionservice endpoint, in listen in [server]",
        )
    if tor.service_directory is not None:
        _check_service_of_tor(document, tor, listen, own_socks=own_socks)
    elif tor.onion and onion_target(listen) is None:
        document.refuse(
            "server",
            "listen",
            "nothing that tor can connect to",
            "a tcp endpoint with a port other than 0, where an interface is an IP address, or a "
            f"unix endpoint with {SOCKET_PATH}, from / on, with onion = on in [tor]",
            "listen",
        )

    if tor.single_hop and own_socks and tor.control == OWN_TOR:
        document.refuse(
            "tor",
            "single_hop",
            quoted("on"),
            "off, where the relay's own tor has to take the proxy to others, too "
            "(socks_proxy = own in [proxy])",
            "control",
        )


def _check_service_of_tor(
    document: Document, tor: TorSettings, listen: Sequence[str], *, own_socks: bool
) -> None:
    for key in _PUBLISHING if own_socks else (*_OWN, *_PUBLISHING):
        if document.line_of("tor", key) is not None:
            document.refuse(
                "tor", key, "a value", "nothing beside service_directory: torrc has all of that"
            )
    if tor.most_streams and all(behind_proxy(each) is None for each in listen):
        document.refuse(
            "tor",
            "most_streams",
            f'"{tor.most_streams}"',
            "0 beside service_directory, unless there is a haproxy: endpoint in listen in [server]",
        )
