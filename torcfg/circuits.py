"""How many connections come through each circuit of an onion service.

With ``HiddenServiceExportCircuitID haproxy`` tor tells the number of the circuit in front of a
connection, in the place of a client's address: ``fc00:dead:beef:4dad::ffff:ffff`` (tor(1)).
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv6Address, IPv6Network
from typing import Final

__all__ = ["Circuits", "circuit_of"]

_CIRCUITS: Final = IPv6Network("fc00:dead:beef:4dad::/64")
_NUMBER: Final = int(_CIRCUITS.hostmask)


def circuit_of(address: str) -> int | None:
    """The number of the circuit that an address stands for; None for any other address."""
    try:
        found = IPv6Address(address)
    except AddressValueError:
        return None
    return int(found) & _NUMBER if found in _CIRCUITS else None


class Circuits:
    """Counts connections, all and those of each circuit, which may have `most`; 0 is any number."""

    def __init__(self, most: int = 0) -> None:
        """Raises `ValueError` when `most` is below 0."""
        if most < 0:
            raise ValueError(f"{most} connections of a circuit are fewer than none")
        self.most = most
        self.connections = 0
        """Connections of all circuits."""
        self._of: dict[int, int] = {}

    @property
    def count(self) -> int:
        """Circuits that have a connection."""
        return len(self._of)

    def enter(self, circuit: int) -> bool:
        """Counts a connection of a circuit; False, and it is not counted, when that has enough."""
        before = self._of.get(circuit, 0)
        if self.most and before >= self.most:
            return False
        self._of[circuit] = before + 1
        self.connections += 1
        return True

    def leave(self, circuit: int) -> None:
        """A connection that was counted is gone. Raises `ValueError` when there was none."""
        left = self._of.pop(circuit, 0) - 1
        if left < 0:
            raise ValueError("a circuit without connections")
        if left:
            self._of[circuit] = left
        self.connections -= 1
