"""Keys of the network: Ed25519 and Ed448 to sign, X25519 and X448 to agree.

Public keys travel as DER SubjectPublicKeyInfo, private ones rest as DER PKCS#8
(docs/spec/smp-wire.md §2). The four algorithms have keys of a fixed size, so
each form is a constant prefix and the raw key; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey, Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey, X448PublicKey
from nacl.bindings import crypto_scalarmult_base, crypto_sign, crypto_sign_seed_keypair

from txsimplex.encoding import ParseError
from txsimplex.primitives import scalarmult, verify_ed25519

Random = Callable[[int], bytes]
"""A source of random bytes, such as `os.urandom`."""


class Algorithm(Enum):
    """The algorithm of a key, with the forms of its keys."""

    ED25519 = ("302a300506032b6570032100", "302e020100300506032b657004220420", 32, 64)
    ED448 = ("3043300506032b6571033a00", "3047020100300506032b6571043b0439", 57, 114)
    X25519 = ("302a300506032b656e032100", "302e020100300506032b656e04220420", 32, 0)
    X448 = ("3042300506032b656f033900", "3046020100300506032b656f043a0438", 56, 0)

    spki_prefix: bytes
    pkcs8_prefix: bytes
    key_size: int
    signature_size: int

    def __init__(self, spki: str, pkcs8: str, key_size: int, signature_size: int) -> None:
        self.spki_prefix = bytes.fromhex(spki)
        self.pkcs8_prefix = bytes.fromhex(pkcs8)
        self.key_size = key_size
        self.signature_size = signature_size

    @property
    def signs(self) -> bool:
        """Whether keys of this algorithm make signatures."""
        return self.signature_size > 0

    __hash__ = object.__hash__


_BY_SPKI = {(a.spki_prefix, len(a.spki_prefix) + a.key_size): a for a in Algorithm}
_BY_PKCS8 = {(a.pkcs8_prefix, len(a.pkcs8_prefix) + a.key_size): a for a in Algorithm}
_SPKI_PREFIX_SIZE = 12
_PKCS8_PREFIX_SIZE = 16


class PublicKey:
    """A public key: its algorithm and its raw bytes. Equal when both are equal (§2)."""

    __slots__ = ("algorithm", "raw")

    def __init__(self, algorithm: Algorithm, raw: bytes) -> None:
        if len(raw) != algorithm.key_size:
            raise ValueError(f"{algorithm.name} keys have {algorithm.key_size} bytes")
        self.algorithm = algorithm
        self.raw = raw

    def encode(self) -> bytes:
        """DER SubjectPublicKeyInfo."""
        return self.algorithm.spki_prefix + self.raw

    @classmethod
    def decode(cls, der: bytes) -> PublicKey:
        """A key from DER SubjectPublicKeyInfo; `ParseError` for anything else."""
        algorithm = _BY_SPKI.get((der[:_SPKI_PREFIX_SIZE], len(der)))
        if algorithm is None:
            raise ParseError("not a public key of a known algorithm")
        return cls(algorithm, der[_SPKI_PREFIX_SIZE:])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PublicKey):
            return NotImplemented
        return self.algorithm is other.algorithm and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"<{self.algorithm.name} public key>"


class PrivateKey:
    """A private key: its algorithm and its raw bytes, which no repr shows."""

    __slots__ = ("_public", "_signing", "algorithm", "raw")

    def __init__(self, algorithm: Algorithm, raw: bytes) -> None:
        if len(raw) != algorithm.key_size:
            raise ValueError(f"{algorithm.name} keys have {algorithm.key_size} bytes")
        self.algorithm = algorithm
        self.raw = raw
        self._public: PublicKey | None = None
        self._signing: Any = None

    @classmethod
    def generate(cls, algorithm: Algorithm, random: Random) -> PrivateKey:
        """A new key from `random`, which gives as many bytes as it is asked for."""
        return cls(algorithm, random(algorithm.key_size))

    @classmethod
    def decode(cls, der: bytes) -> PrivateKey:
        """A key from DER PKCS#8; `ParseError` for anything else."""
        algorithm = _BY_PKCS8.get((der[:_PKCS8_PREFIX_SIZE], len(der)))
        if algorithm is None:
            raise ParseError("not a private key of a known algorithm")
        return cls(algorithm, der[_PKCS8_PREFIX_SIZE:])

    def encode(self) -> bytes:
        """DER PKCS#8."""
        return self.algorithm.pkcs8_prefix + self.raw

    @property
    def public(self) -> PublicKey:
        """The public key of this private key."""
        if self._public is None:
            self._public = PublicKey(self.algorithm, self._public_raw())
        return self._public

    def _public_raw(self) -> bytes:
        if self.algorithm is Algorithm.ED25519:
            public: bytes = crypto_sign_seed_keypair(self.raw)[0]
            return public
        if self.algorithm is Algorithm.X25519:
            point: bytes = crypto_scalarmult_base(self.raw)
            return point
        key: Ed448PublicKey | X448PublicKey
        if self.algorithm is Algorithm.ED448:
            key = Ed448PrivateKey.from_private_bytes(self.raw).public_key()
        else:
            key = X448PrivateKey.from_private_bytes(self.raw).public_key()
        return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)

    def sign(self, message: bytes) -> bytes:
        """The signature over `message`; `ValueError` when the key is not for signing."""
        if self.algorithm is Algorithm.ED25519:
            if self._signing is None:
                self._signing = crypto_sign_seed_keypair(self.raw)[1]
            signed: bytes = crypto_sign(message, self._signing)
            return signed[:64]
        if self.algorithm is Algorithm.ED448:
            if self._signing is None:
                self._signing = Ed448PrivateKey.from_private_bytes(self.raw)
            signature: bytes = self._signing.sign(message)
            return signature
        raise ValueError(f"{self.algorithm.name} keys do not sign")

    def exchange(self, public: PublicKey) -> bytes:
        """The raw DH secret with `public`: 32 bytes for X25519, 56 for X448, unhashed.

        Raises `ValueError` for keys of other or different algorithms, and for a point
        of small order with X448 (with X25519 that gives zeros).
        """
        if public.algorithm is not self.algorithm:
            raise ValueError("keys of different algorithms")
        if self.algorithm is Algorithm.X25519:
            return scalarmult(self.raw, public.raw)
        if self.algorithm is Algorithm.X448:
            private = X448PrivateKey.from_private_bytes(self.raw)
            return private.exchange(X448PublicKey.from_public_bytes(public.raw))
        raise ValueError(f"{self.algorithm.name} keys do not agree on secrets")

    def __repr__(self) -> str:
        return f"<{self.algorithm.name} private key>"


@lru_cache(maxsize=256)
def _ed448(raw: bytes) -> Ed448PublicKey:
    return Ed448PublicKey.from_public_bytes(raw)


def verify(public: PublicKey, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` was made by the private key of `public`.

    False also for a signature of another size and for keys that do not sign.
    """
    algorithm = public.algorithm
    if len(signature) != algorithm.signature_size or not signature:
        return False
    if algorithm is Algorithm.ED25519:
        return verify_ed25519(signature, message, public.raw)
    try:
        _ed448(public.raw).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
