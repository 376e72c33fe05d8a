"""Which keys were seen before, in little memory: a Bloom filter that grows in steps.

A proxy could send a forwarded command twice, and a queue would have its message twice. But the
sender makes a key for each command, so a relay that remembers these keys can tell. It
does not remember the keys themselves: a filter takes some four bytes for each, and takes a new
key for one that was seen at most once in a million times.
"""

from __future__ import annotations

import hashlib
from struct import Struct
from typing import Final

_PROBES: Final = 12
_LAST_BITS: Final = 32
"""For each key of the last step, which is wrong for 0.87 in a million when it is full."""
_EARLIER_BITS: Final = 48
"""For each key of the steps before: these are smaller, and wrong for 0.014 in a million each."""
_PLACES: Final = Struct(f"<{_PROBES}I")
_FIRST_STEP: Final = 4096
_GROWTH: Final = 4
_PERSON: Final = b"seen keys"


class _Step:
    """A filter for so many keys."""

    __slots__ = ("bits", "left", "size")

    def __init__(self, keys: int, bits_per_key: int) -> None:
        self.size = keys * bits_per_key
        self.bits = bytearray(self.size // 8)
        self.left = keys


class SeenKeys:
    """Remembers up to `most` keys. `secret` (1 to 64 bytes) keeps others from choosing places.

    Takes 24 KiB at first, or less if it is for fewer keys, and 4.5 bytes for each in the end.
    """

    def __init__(self, most: int, secret: bytes) -> None:
        self._most = most
        self._secret = secret
        self._count = 0
        self._steps: list[_Step] = []

    @property
    def is_full(self) -> bool:
        """Whether no more keys can be remembered."""
        return self._count >= self._most

    def add(self, key: bytes) -> bool:
        """Whether a key was seen before; it is remembered, if there is room."""
        digest = hashlib.blake2b(
            key, digest_size=_PLACES.size, key=self._secret, person=_PERSON
        ).digest()
        places = _PLACES.unpack(digest)
        for step in self._steps:
            bits, size = step.bits, step.size
            for place in places:
                place %= size
                if not bits[place >> 3] >> (place & 7) & 1:
                    break
            else:
                return True
        if self._count < self._most:
            self._remember(places)
        return False

    def _remember(self, places: tuple[int, ...]) -> None:
        if not self._steps or not self._steps[-1].left:
            left = self._most - self._count
            keys = _FIRST_STEP * _GROWTH ** len(self._steps)
            if keys < left:
                self._steps.append(_Step(keys, _EARLIER_BITS))
            else:
                self._steps.append(_Step(left, _LAST_BITS))
        step = self._steps[-1]
        for place in places:
            place %= step.size
            step.bits[place >> 3] |= 1 << (place & 7)
        step.left -= 1
        self._count += 1
