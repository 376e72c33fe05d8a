r"""Descriptions of endpoints: taken apart, and what those of onion services say.

```
onionservice:5223+443:key=/var/lib/smpd/onion.key:control=unix\:/run/tor/control:mode=660
```
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = [
    "LONGEST_SOCKET_PATH",
    "PREFIX",
    "SOCKET_PATH",
    "DescriptionError",
    "OnionDescription",
    "endpoint_parts",
    "is_control",
    "is_socket_path",
]

PREFIX: Final = "onionservice"
"""What a description begins with; ``onion`` and ``tor`` are txtorcon's."""
LONGEST_SOCKET_PATH: Final = 107
"""Bytes of the path of a Unix socket (Linux, unix(7))."""
SOCKET_PATH: Final = (
    f"a path of at most {LONGEST_SOCKET_PATH} ASCII characters without spaces, quotation marks "
    "and commas"
)
"""Paths of sockets that tor can be told to connect to."""


class DescriptionError(ValueError):
    """What a description has that it must not have, and what is allowed."""

    def __init__(self, found: str, allowed: str) -> None:
        super().__init__(f"found {found}; allowed: {allowed}")
        self.found = found
        self.allowed = allowed


def endpoint_parts(description: str) -> tuple[str, list[str], dict[str, str]]:
    """Kind, arguments and named arguments of an endpoint description, escapes resolved."""
    parts: list[list[str]] = [[""]]
    characters = iter(description)
    for character in characters:
        if character == ":":
            parts.append([""])
        elif character == "=" and len(parts[-1]) == 1:
            parts[-1].append("")
        else:
            if character == "\\":
                character = next(characters, "")
            parts[-1][-1] += character
    arguments = [part[0] for part in parts if len(part) == 1]
    named = {part[0]: part[1] for part in parts if len(part) == 2}
    return (arguments[0] if arguments else "", arguments[1:], named)


def is_control(description: str) -> bool:
    """Whether it describes a control socket of tor, ``unix:path``, or port, ``tcp:host:port``.

    A path has at most `LONGEST_SOCKET_PATH` bytes.
    """
    kind, arguments, named = endpoint_parts(description)
    if named or "" in arguments or not description.isprintable():
        return False
    if kind == "tcp" and len(arguments) == 2:
        return _number(arguments[1], 1, 65535) is not None
    if kind != "unix" or len(arguments) != 1:
        return False
    return len(os.fsencode(arguments[0])) <= LONGEST_SOCKET_PATH


def is_socket_path(path: str) -> bool:
    """Whether it is what `SOCKET_PATH` says: the control protocol has no words for others."""
    if not path.isascii() or not path.isprintable() or set(path) & set(' ",'):
        return False
    return 0 < len(path) <= LONGEST_SOCKET_PATH


@dataclass(frozen=True, slots=True)
class OnionDescription:
    """What the description of an endpoint that is an onion service says.

    Connections to `ports` come in by the Unix socket `socket`, which gets the permissions `mode`;
    tor has to be able to connect to it. `control` is tor's control socket or port, as an
    endpoint, and `password_file` has its password, where its cookie cannot be read. `clients` is
    the directory of the files of who may connect (`torcfg.client_files`), None for everybody. A
    circuit may have `streams` connections, 0 for any number.
    """

    ports: tuple[int, ...]
    key: Path
    socket: Path
    mode: int = 0o600
    control: str = "unix:/run/tor/control"
    password_file: Path | None = None
    clients: Path | None = None
    streams: int = 0
    proof_of_work: bool = False
    single_hop: bool = False

    @classmethod
    def read(cls, arguments: Sequence[str], named: Mapping[str, str]) -> OnionDescription:
        """From what follows `PREFIX`, without escapes. Raises `DescriptionError`."""
        if len(arguments) != 1:
            found = "more than ports" if arguments else "no ports"
            raise DescriptionError(f"{found} in an {PREFIX} endpoint", _PORTS)
        ports = _ports(arguments[0])
        if ports is None:
            raise DescriptionError(f"ports {arguments[0]!r} in an {PREFIX} endpoint", _PORTS)
        fields: dict[str, Any] = {}
        for name, text in named.items():
            option = _OPTIONS.get(name)
            if option is None:
                # Not its value: it may be a secret that is out of place here.
                raise DescriptionError(f"{name!r} in an {PREFIX} endpoint", ", ".join(_OPTIONS))
            value = option.read(text)
            if value is None:
                raise DescriptionError(f"{name} {text!r} in an {PREFIX} endpoint", option.allowed)
            fields[option.field] = value
        if "key" not in fields:
            raise DescriptionError(f"no key in an {PREFIX} endpoint", _OPTIONS["key"].allowed)
        key: Path = fields["key"]
        if "socket" not in fields:
            socket = str(key.with_name(f"{key.name}.sock"))
            if not is_socket_path(socket):
                raise DescriptionError(f"socket {socket!r} in an {PREFIX} endpoint", SOCKET_PATH)
            fields["socket"] = Path(socket)
        return cls(ports, **fields)


@dataclass(frozen=True, slots=True)
class _Option:
    """A named argument: the field that it is; `read` gives None for what is not allowed."""

    field: str
    read: Callable[[str], Any]
    allowed: str


def _number(text: str, least: int, most: int) -> int | None:
    number = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    return number if least <= number <= most else None


def _ports(text: str) -> tuple[int, ...] | None:
    ports = [_number(each, 1, 65535) for each in text.split("+")]
    if None in ports or len(set(ports)) < len(ports):
        return None
    return tuple(port for port in ports if port is not None)


def _path(text: str) -> Path | None:
    """A path with a name at its end."""
    path = Path(text)
    good = path.name and text.isprintable() and not set(text) & set(' ",')
    return path if good else None


def _socket_path(text: str) -> Path | None:
    return _path(text) if is_socket_path(text) else None


def _yes_no(text: str) -> bool | None:
    return {"yes": True, "no": False}.get(text)


_PORTS: Final = "ports from 1 to 65535, each once, such as 5223+443"
_PATH: Final = "the path of {}, without spaces, quotation marks and commas"
_OPTIONS: Final = {
    "key": _Option("key", _path, _PATH.format("the onion service's key file")),
    "socket": _Option("socket", _socket_path, SOCKET_PATH),
    "mode": _Option(
        "mode",
        lambda text: int(text, 8) if re.fullmatch(r"[0-7]{3}", text) else None,
        "permissions in three octal digits, such as 660",
    ),
    "control": _Option(
        "control",
        lambda text: text if is_control(text) else None,
        r"tor's control socket or port, such as unix\:/run/tor/control or tcp\:127.0.0.1\:9051, "
        f"with a path of at most {LONGEST_SOCKET_PATH} bytes",
    ),
    "passwordfile": _Option(
        "password_file", _path, _PATH.format("a file with the control port's password")
    ),
    "clients": _Option(
        "clients", _path, _PATH.format("a directory with files of those who may connect")
    ),
    "streams": _Option(
        "streams", lambda text: _number(text, 0, 65535), "a whole number from 0 to 65535"
    ),
    "pow": _Option("proof_of_work", _yes_no, "yes or no"),
    "singlehop": _Option("single_hop", _yes_no, "yes or no"),
}
