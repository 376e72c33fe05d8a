"""Keys of clients that may reach an onion service: x25519, as files of tor have them.

A service with such keys answers nobody else: its descriptor can be read with one of them only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from nacl.bindings import crypto_scalarmult_base

from torcfg.onion_keys import KeyFileError

__all__ = [
    "NOBODY",
    "ClientKey",
    "authorized",
    "is_client_name",
    "read_authorized",
    "read_public",
]

_KEY_SIZE: Final = 32
_KIND: Final = "descriptor:x25519:"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def is_client_name(text: str) -> bool:
    """Whether a client can be called so: 1 to 64 letters, digits, dots, ``_`` and ``-``."""
    return _NAME.fullmatch(text) is not None


def _base32(key: bytes) -> str:
    return base64.b32encode(key).decode("ascii").rstrip("=")


def _from_base32(text: str) -> bytes:
    try:
        key = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        raise KeyFileError("a key that is not base32") from None
    if len(key) != _KEY_SIZE:
        raise KeyFileError(f"a key of {len(key)} bytes, not {_KEY_SIZE}")
    return key


NOBODY: Final = _base32(hashlib.sha256(b"no client of this onion service").digest())
"""A public key whose secret nobody has: of a service that lets nobody in."""


@dataclass(frozen=True, slots=True)
class ClientKey:
    """The key that a client gets; the service keeps `public` only."""

    secret: bytes = field(repr=False)

    @classmethod
    def generate(cls, random: Callable[[int], bytes]) -> ClientKey:
        """A new one."""
        return cls(random(_KEY_SIZE))

    @property
    def public(self) -> str:
        """In base32, as ADD_ONION takes it for ClientAuthV3."""
        return _base32(crypto_scalarmult_base(self.secret))

    def for_client(self, address: str) -> str:
        """The line for a file ``.auth_private`` in the client's ClientOnionAuthDir."""
        return f"{address.removesuffix('.onion')}:{_KIND}{_base32(self.secret)}"


def authorized(public: str) -> str:
    """The content of a file of the service's ``authorized_clients``, for a key in base32."""
    return f"{_KIND}{public}\n"


def read_public(text: str) -> str:
    """A public key in base32, as `ClientKey.public` is. Raises `KeyFileError`."""
    return _base32(_from_base32(text))


def read_authorized(content: str) -> str:
    """The public key, in base32, of what `authorized` made. Raises `KeyFileError`."""
    text = content.strip()
    if not text.startswith(_KIND):
        raise KeyFileError("not a file of tor's authorized_clients")
    return read_public(text.removeprefix(_KIND))
