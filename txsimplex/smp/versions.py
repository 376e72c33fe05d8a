"""Versions of SMP and what each brought (docs/spec/smp-wire.md §6.2, §13)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from txsimplex.encoding import ParseError, Reader, u16

LARGEST_VERSION: Final = 65535


@dataclass(frozen=True, slots=True)
class VersionRange:
    """Versions from `minimum` to `maximum`, both included."""

    minimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum <= LARGEST_VERSION:
            raise ValueError("not a range of versions")

    def __contains__(self, version: int) -> bool:
        return self.minimum <= version <= self.maximum

    def __str__(self) -> str:
        if self.minimum == self.maximum:
            return str(self.minimum)
        return f"{self.minimum}-{self.maximum}"

    def encode(self) -> bytes:
        """Two 16-bit numbers."""
        return u16(self.minimum) + u16(self.maximum)

    @classmethod
    def read(cls, reader: Reader) -> VersionRange:
        """Reads what `encode` writes. Raises `ParseError`, also for an empty range."""
        return cls._checked(reader.u16(), reader.u16())

    @classmethod
    def parse(cls, text: str) -> VersionRange:
        """A range from ``min-max`` or a single version. Raises `ParseError`."""
        match = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", text, re.ASCII)
        if match is None:
            raise ParseError("not a range of versions")
        minimum = int(match[1])
        return cls._checked(minimum, minimum if match[2] is None else int(match[2]))

    @classmethod
    def _checked(cls, minimum: int, maximum: int) -> VersionRange:
        try:
            return cls(minimum, maximum)
        except ValueError:
            raise ParseError("not a range of versions") from None

    def intersection(self, other: VersionRange) -> VersionRange | None:
        """The versions in both ranges, None when there are none."""
        minimum = max(self.minimum, other.minimum)
        maximum = min(self.maximum, other.maximum)
        return VersionRange(minimum, maximum) if minimum <= maximum else None

    def compatible(self, other: VersionRange) -> int | None:
        """The highest version in both ranges, None when there is none."""
        both = self.intersection(other)
        return None if both is None else both.maximum

    def cap(self, maximum: int) -> VersionRange | None:
        """The range ended at `maximum`, None when that lies outside it."""
        return VersionRange(self.minimum, maximum) if maximum in self else None


IMPLIED_SESSION: Final = 7
"""Keys in the handshake, X25519 authenticators, the session id no longer sent."""
PROXY_COMMANDS: Final = 8
"""PRXY, PFWD, RFWD; messages of at most 16,064 bytes."""
SENDER_SECURES: Final = 9
"""SKEY and its flag in NEW and IDS; a tagged password in NEW."""
DELETED_EVENT: Final = 10
"""DELD, where older clients are sent END."""
BLOCK_ENCRYPTION: Final = 11
"""The block layer; messages of at most 16,048 bytes."""
BLOCKED_ERROR: Final = 12
"""BLOCKED, where older clients are sent AUTH."""
PROXY_FLAG: Final = 14
"""The client hello says whether the client is a proxy."""
SHORT_LINKS: Final = 15
"""Queue modes and link data in NEW and IDS; LSET, LDEL, LKEY, LGET."""
SERVICE_CERTIFICATES: Final = 16
"""Services in the client hello, service signatures, SOK, SOKS, ENDS."""
NOTIFIER_IN_NEW: Final = 17
"""Notifier keys in NEW and IDS."""
CLIENT_NOTICES: Final = 18
"""A notice inside BLOCKED."""

SMP_RANGE: Final = VersionRange(6, 18)
"""The versions that relays and clients of this library speak."""
LEGACY_RANGE: Final = VersionRange(6, 6)
"""What a relay offers to a client that offers no ALPN (§4.1)."""
PROXIED_RANGE: Final = VersionRange(8, 17)
"""What a proxy tells its clients at most of a relay's range (§6.2)."""


def max_message_length(version: int) -> int:
    """The longest body of SEND in bytes (§14.1)."""
    if version >= BLOCK_ENCRYPTION:
        return 16048
    if version >= PROXY_COMMANDS:
        return 16064
    return 16088
