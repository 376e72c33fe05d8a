"""Twisted's endpoint descriptions, as they stand in the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from smpd.ini import Refused, quoted, whole_number
from torcfg.descriptions import PREFIX, DescriptionError, OnionDescription, endpoint_parts
from torcfg.onion_services import is_target

OWN_TOR: Final = "own"
"""In the place of an endpoint: a tor that the relay runs itself."""

ENDPOINTS = (
    "one or more Twisted endpoint descriptions, such as tcp:5223, "
    "tcp:5223:interface=\\:\\: or unix:/run/smpd.sock:mode=600"
)
_PROXIED = "haproxy:"


def behind_proxy(description: str) -> str | None:
    """The endpoint whose connections begin with a PROXY header; None where they do not."""
    return description.removeprefix(_PROXIED) if description.startswith(_PROXIED) else None


def endpoint(description: str) -> str:
    """A description of where to listen; how far it is right is seen when it listens."""
    kind, arguments, named = endpoint_parts(behind_proxy(description) or description)
    if kind == PREFIX:
        if behind_proxy(description) is not None:
            allowed = f"{PREFIX} without {_PROXIED}, since tor writes no PROXY header for it"
            raise Refused((quoted(description), allowed))
        _check_onion(arguments, named)
        return description
    if f"{kind}:" == _PROXIED:
        raise Refused((quoted(description), f"{_PROXIED} once"))
    if kind in ("ssl", "tls"):
        raise Refused((quoted(description), "tcp instead, since the relay does TLS itself"))
    if not kind or not (arguments or named) or "" in (*arguments, *named, *named.values()):
        raise Refused((quoted(description), None))
    if kind in ("tcp", "tcp6"):
        port = arguments[0] if arguments else named.get("port", "")
        try:
            whole_number(0, 65535).read(port)
        except Refused:
            raise Refused((quoted(description), "a port from 0 to 65535 after tcp:")) from None
    return description


def _check_onion(arguments: Sequence[str], named: Mapping[str, str]) -> None:
    try:
        given = OnionDescription.read(arguments, named)
    except DescriptionError as error:
        raise Refused((error.found, error.allowed)) from None
    for path in filter(None, (given.key, given.socket, given.password_file, given.clients)):
        # smpctl reads the key, too, and is called in any directory.
        if not path.is_absolute():
            raise Refused((quoted(str(path)), f"whole paths in an {PREFIX} endpoint"))


def onion_endpoints(listen: Sequence[str]) -> tuple[OnionDescription, ...]:
    """Those that are onion services by themselves."""
    parts = [endpoint_parts(description) for description in listen]
    return tuple(
        OnionDescription.read(rest, named) for kind, rest, named in parts if kind == PREFIX
    )


def tcp_port(description: str) -> int | None:
    """The port of a TCP endpoint; None for what is none."""
    kind, arguments, named = endpoint_parts(behind_proxy(description) or description)
    if kind not in ("tcp", "tcp6"):
        return None
    return int(arguments[0] if arguments else named["port"])


def is_unix(description: str) -> bool:
    """Whether it is a Unix socket: also one that systemd hands over, or of an onion service."""
    kind, arguments, named = endpoint_parts(behind_proxy(description) or description)
    handed_over = kind == "systemd" and "UNIX" in (*arguments, *named.values())
    return kind in ("unix", PREFIX) or handed_over


def onion_target(listen: Sequence[str]) -> str | None:
    """Where tor connects to for an onion service: the first Unix socket, or TCP port.

    As tor has it; None when there is nothing that it can be told of. Tor writes no PROXY header to
    an onion service that it is told of by its control socket.
    """
    for description in sorted(listen, key=lambda each: not each.startswith("unix:")):
        target = None if behind_proxy(description) is not None else _target(description)
        if target is not None and is_target(target):
            return target
    return None


def _target(description: str) -> str | None:
    kind, arguments, named = endpoint_parts(description)
    if kind == "unix":
        return "unix:" + (arguments[0] if arguments else named.get("address", ""))
    port = tcp_port(description)
    if port is None:
        return None
    interface = named.get("interface", arguments[1] if len(arguments) > 1 else "")
    if interface in ("", "0.0.0.0", "::"):  # noqa: S104 - nothing is bound here
        interface = "127.0.0.1"
    return f"[{interface}]:{port}" if ":" in interface else f"{interface}:{port}"
