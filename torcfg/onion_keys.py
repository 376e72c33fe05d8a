"""The key of an onion service of version 3, and the address that is made of it.

As tor has them: an expanded Ed25519 secret key, in the file ``hs_ed25519_secret_key`` of a
HiddenServiceDir (and of programs that look for vanity addresses), or as base64 for ADD_ONION.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from typing import Final

from nacl.bindings import crypto_scalarmult_ed25519_base_noclamp

__all__ = ["KeyFileError", "OnionKey", "is_onion_address", "onion_address"]

_HEADER: Final = b"== ed25519v1-secret: type0 ==\0\0\0"
_SECRET_SIZE: Final = 64
_SEED_SIZE: Final = 32
_VERSION: Final = b"\x03"
_SUFFIX: Final = ".onion"
_PUBLIC_SIZE: Final = 32
_CHECKSUM_SIZE: Final = 2


class KeyFileError(ValueError):
    """What was read is not the key of an onion service, or a file cannot be used.

    The text says why, not what was in it.
    """


def _checksum(public: bytes) -> bytes:
    return hashlib.sha3_256(b".onion checksum" + public + _VERSION).digest()[:_CHECKSUM_SIZE]


def onion_address(public: bytes) -> str:
    """The address, 56 letters and digits and ``.onion``, of a public key of 32 bytes."""
    name = base64.b32encode(public + _checksum(public) + _VERSION)
    return name.decode("ascii").lower() + _SUFFIX


def is_onion_address(text: str) -> bool:
    """Whether it is the address of an onion service of version 3, with the right checksum."""
    name, dot, rest = text.partition(".")
    if dot + rest != _SUFFIX or name != name.lower():
        return False
    try:
        decoded = base64.b32decode(name.upper())
    except (binascii.Error, ValueError):
        return False
    public = decoded[:_PUBLIC_SIZE]
    return decoded[_PUBLIC_SIZE:] == _checksum(public) + _VERSION


class OnionKey:
    """The secret key of an onion service: 64 bytes, never shown."""

    __slots__ = ("_secret", "address")

    def __init__(self, secret: bytes) -> None:
        """Takes an expanded secret key. Raises `KeyFileError`."""
        if len(secret) != _SECRET_SIZE:
            raise KeyFileError(f"a secret key has {_SECRET_SIZE} bytes, not {len(secret)}")
        scalar = secret[:_PUBLIC_SIZE]
        if scalar[0] & 7 or scalar[31] & 0xC0 != 0x40:
            raise KeyFileError("the secret key is not one of Ed25519")
        self._secret = secret
        self.address: str = onion_address(crypto_scalarmult_ed25519_base_noclamp(scalar))

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> OnionKey:
        """A new one."""
        secret = bytearray(hashlib.sha512(random(_SEED_SIZE)).digest())
        secret[0] &= 0xF8
        secret[31] = secret[31] & 0x3F | 0x40
        return cls(bytes(secret))

    @classmethod
    def decode(cls, content: bytes) -> OnionKey:
        """Reads what is in a file ``hs_ed25519_secret_key``. Raises `KeyFileError`."""
        if not content.startswith(_HEADER):
            raise KeyFileError("not a file hs_ed25519_secret_key of tor")
        return cls(content[len(_HEADER) :])

    def encode(self) -> bytes:
        """The content of a file ``hs_ed25519_secret_key``."""
        return _HEADER + self._secret

    def for_control(self) -> str:
        """As ADD_ONION takes it: ``ED25519-V3:`` and base64."""
        return "ED25519-V3:" + base64.b64encode(self._secret).decode("ascii")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OnionKey):
            return NotImplemented
        return self._secret == other._secret

    def __hash__(self) -> int:
        return hash(self._secret)

    def __repr__(self) -> str:
        return "OnionKey(...)"
