"""What an onion service is, and how tor is told (control-spec, ADD_ONION).

command = add_onion(service, key, clients=())
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from torcfg.client_keys import NOBODY
from torcfg.descriptions import SOCKET_PATH, is_socket_path
from torcfg.onion_keys import OnionKey

__all__ = [
    "OnionService",
    "ProofOfWork",
    "add_onion",
    "delete_onion",
    "is_target",
    "rendezvous_circuits",
]

_MOST_STREAMS: Final = 65535
_ADDRESS: Final = re.compile(r"(\[(?P<six>[^]%]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})")
_RENDEZVOUS: Final = re.compile(
    # A single circuit stands behind the name of what was asked for.
    r"(?m)^(?:circuit-status=)?(?P<circuit>\w+) "
    r".*\bPURPOSE=HS_SERVICE_REND\b.*\bREND_QUERY=(?P<name>\w+)"
)


def is_target(text: str) -> bool:
    """Whether tor can connect there: ``unix:/path``, ``127.0.0.1:5223`` or ``[::1]:5223``."""
    kind, _, path = text.partition(":")
    if kind == "unix":
        return path.startswith("/") and is_socket_path(path)
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found["port"]) < 65536:
        return False
    try:
        return bool(IPv6Address(found["six"]) if found["six"] else IPv4Address(found["four"]))
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class ProofOfWork:
    """How many requests a second tor takes before clients have to work: `rate`, at once `burst`."""

    rate: int = 250
    burst: int = 2500


@dataclass(frozen=True, slots=True)
class OnionService:
    """Ports of an onion address, and where connections to each go.

    `ports` has pairs of a port and a target: ``127.0.0.1:5223`` or ``unix:/run/smpd/onion``.
    `streams` is the most that one circuit may have, 0 for any number; one more closes the circuit.
    `single_hop` is for a tor that hides nothing of the service (HiddenServiceNonAnonymousMode).
    """

    ports: tuple[tuple[int, str], ...]
    streams: int = 0
    proof_of_work: ProofOfWork | None = None
    single_hop: bool = False

    def __post_init__(self) -> None:
        """Raises `ValueError` for what no command can say."""
        if not self.ports:
            raise ValueError("an onion service has a port")
        for port, target in self.ports:
            if not 0 < port < 65536:
                raise ValueError(f"{port} is not a port")
            if not is_target(target):
                raise ValueError(
                    f"a target is unix: and {SOCKET_PATH}, or an IP address and a port"
                )
        if not 0 <= self.streams <= _MOST_STREAMS:
            raise ValueError(f"{self.streams} streams are not 0 to {_MOST_STREAMS}")


def add_onion(service: OnionService, key: OnionKey, clients: Sequence[str] | None = None) -> str:
    """The command that publishes a service until the control connection ends.

    `clients` are public keys, in base32, of those who may connect; None is everybody. It has the
    secret key in it: it must not be logged.
    """
    if clients is not None:
        # Tor takes a service without keys for one that is open.
        clients = clients or (NOBODY,)
    flags = [
        name
        for name, wanted in (
            ("DiscardPK", True),
            ("NonAnonymous", service.single_hop),
            ("MaxStreamsCloseCircuit", bool(service.streams)),
            ("V3Auth", clients is not None),
        )
        if wanted
    ]
    words = ["ADD_ONION", key.for_control(), "Flags=" + ",".join(flags)]
    work = service.proof_of_work
    if work is not None:
        words += [
            "PoWDefensesEnabled=1",
            f"PoWQueueRate={work.rate}",
            f"PoWQueueBurst={work.burst}",
        ]
    if service.streams:
        words.append(f"MaxStreams={service.streams}")
    words += [f"Port={port},{target}" for port, target in service.ports]
    words += [f"ClientAuthV3={client}" for client in clients or ()]
    return " ".join(words)


def delete_onion(key: OnionKey) -> str:
    """The command that takes a service back."""
    return "DEL_ONION " + key.address.removesuffix(".onion")


def rendezvous_circuits(status: str, key: OnionKey) -> Iterator[str]:
    """The circuits by which clients are connected to a service.

    `status` is tor's answer to ``GETINFO circuit-status``.
    """
    name = key.address.removesuffix(".onion")
    for found in _RENDEZVOUS.finditer(status):
        if found["name"] == name:
            yield found["circuit"]
