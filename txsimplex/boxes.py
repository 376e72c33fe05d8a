"""Authenticated encryption of the network (docs/spec/smp-wire.md §3, §7).

Every key, a DH secret as well as a symmetric one, goes through HSalsa20 before
XSalsa20-Poly1305. That first step depends on the key only, so a `BoxKey` does
it once and is kept where the same key is used again.
"""

from __future__ import annotations

import hmac
from typing import ClassVar, Final

from txsimplex.encoding import LargeMessageError, ParseError, pad, unpad
from txsimplex.primitives import (
    BOX_OVERHEAD,
    hsalsa20,
    open_easy,
    open_once,
    seal_easy,
    seal_once,
    sha512,
    short_sha512,
)

NONCE_SIZE: Final = 24
BLOCK_SIZE: Final = 16384
"""Bytes of every block on the wire (§5)."""
SEALED_CONTENT_SIZE: Final = BLOCK_SIZE - BOX_OVERHEAD
"""Bytes that the content of a block is padded to before it is encrypted (§7)."""

_HASH_SIZE: Final = 64
_HASH_BLOCK: Final = 128


class BoxError(Exception):
    """A box that was not made with this key and nonce, or was changed."""


class BoxKey:
    """A 32-byte secret made ready for boxes."""

    __slots__ = ("_key",)

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise ValueError("secrets have 32 bytes")
        self._key = hsalsa20(secret)

    def seal(self, message: bytes, nonce: bytes) -> bytes:
        """`message` encrypted: 16 bytes longer. `nonce` has 24 bytes."""
        return seal_easy(message, nonce, self._key)

    def open(self, box: bytes, nonce: bytes) -> bytes:
        """The message of `box`. Raises `BoxError`."""
        message = open_easy(box, nonce, self._key)
        if message is None:
            raise BoxError
        return message

    def seal_padded(self, message: bytes, nonce: bytes, size: int) -> bytes:
        """`message` padded to `size` bytes and encrypted: `size` + 16 bytes.

        Raises `LargeMessageError` when it does not fit.
        """
        return seal_easy(pad(message, size), nonce, self._key)

    def open_padded(self, box: bytes, nonce: bytes) -> bytes:
        """The message of `box` without its padding. Raises `BoxError` or `ParseError`."""
        return unpad(self.open(box, nonce))

    def __repr__(self) -> str:
        return "<BoxKey>"


def nonce_from(data: bytes) -> bytes:
    """A nonce from a correlation or message id: cut or zero-filled to 24 bytes (§3)."""
    return data[:NONCE_SIZE].ljust(NONCE_SIZE, b"\0")


def reverse_nonce(nonce: bytes) -> bytes:
    """The bytes of `nonce` in reverse order (§3)."""
    return nonce[::-1]


def authenticator(key: BoxKey, corr_id: bytes, authorized: bytes) -> bytes:
    """The X25519 authenticator of a transmission, 80 bytes (§9.1).

    `key` is of the DH secret between the queue's key and the session's key.
    """
    return key.seal(sha512(authorized).digest(), nonce_from(corr_id))


def verify_authenticator(key: BoxKey, corr_id: bytes, authorized: bytes, given: bytes) -> bool:
    """Whether the 80 bytes `given` are the authenticator of `authorized` (§9.1)."""
    digest = sha512(authorized).digest()
    return hmac.compare_digest(key.seal(digest, nonce_from(corr_id)), given)


def hkdf(salt: bytes, secret: bytes, info: bytes, size: int) -> bytes:
    """HKDF of RFC 5869 with HMAC-SHA512; `size` at most 16,320 bytes."""
    extracted = hmac.digest(salt or bytes(_HASH_SIZE), secret, "sha512")
    blocks = []
    block = b""
    for number in range(1, -(-size // _HASH_SIZE) + 1):
        block = hmac.digest(extracted, block + info + bytes((number,)), "sha512")
        blocks.append(block)
    return b"".join(blocks)[:size]


_INNER: Final = bytes(value ^ 0x36 for value in range(256))
_OUTER: Final = bytes(value ^ 0x5C for value in range(256))
_INNER_FILL: Final = b"\x36" * (_HASH_BLOCK - _HASH_SIZE)
_OUTER_FILL: Final = b"\x5c" * (_HASH_BLOCK - _HASH_SIZE)
_EMPTY_SALT_INNER: Final = short_sha512(b"\x36" * _HASH_BLOCK)
_EMPTY_SALT_OUTER: Final = short_sha512(b"\x5c" * _HASH_BLOCK)
_STEP_1: Final = b"SimpleXSbChain\x01"
_STEP_2: Final = b"SimpleXSbChain\x02"


class BlockChain:
    """The keys of one direction of a connection: a new key and nonce each block (§7).

    The chain advances with every block, also with one that does not open.
    """

    __slots__ = ("_chain_key",)

    padded_size: ClassVar[int] = SEALED_CONTENT_SIZE
    """Bytes that the content of a block is padded to."""

    def __init__(self, chain_key: bytes) -> None:
        self._chain_key = chain_key

    def next_key(self) -> tuple[bytes, bytes]:
        """The 32-byte key and the 24-byte nonce of the next block.

        This is ``hkdf(b"", chain_key, b"SimpleXSbChain", 88)``, written out since
        it runs for each block: hash states that do not depend on the chain are
        made once, those of the extracted key serve both halves of the output.
        """
        inner = _EMPTY_SALT_INNER.copy()
        inner.update(self._chain_key)
        outer = _EMPTY_SALT_OUTER.copy()
        outer.update(inner.digest())
        extracted = outer.digest()
        key_inner = short_sha512(extracted.translate(_INNER) + _INNER_FILL)
        key_outer = short_sha512(extracted.translate(_OUTER) + _OUTER_FILL)
        inner = key_inner.copy()
        inner.update(_STEP_1)
        outer = key_outer.copy()
        outer.update(inner.digest())
        first: bytes = outer.digest()
        key_inner.update(first + _STEP_2)
        key_outer.update(key_inner.digest())
        self._chain_key = first[:32]
        return first[32:], key_outer.digest()[:NONCE_SIZE]

    def seal(self, content: bytes) -> bytes:
        """The next block, 16,384 bytes, with `content` of at most 16,366 bytes."""
        return self.seal_padded(pad(content, SEALED_CONTENT_SIZE))

    def seal_padded(self, padded: bytes) -> bytes:
        """The next block, with a content that is padded to `padded_size` already."""
        key, nonce = self.next_key()
        return seal_once(padded, nonce, key)

    def open(self, block: bytes) -> bytes:
        """The content of the next block. Raises `BoxError` or `ParseError`."""
        key, nonce = self.next_key()
        padded = open_once(block, nonce, key)
        if padded is None:
            raise BoxError
        return unpad(padded)

    def __repr__(self) -> str:
        return "<BlockChain>"


class PlainBlocks:
    """Blocks of a connection without the block layer: padded only (§5)."""

    __slots__ = ()

    padded_size: ClassVar[int] = BLOCK_SIZE
    """Bytes that the content of a block is padded to."""

    def seal(self, content: bytes) -> bytes:
        """A block, 16,384 bytes, with `content` of at most 16,382 bytes."""
        return pad(content, BLOCK_SIZE)

    def seal_padded(self, padded: bytes) -> bytes:
        """A block with a content that is padded to `padded_size` already."""
        return padded

    def open(self, block: bytes) -> bytes:
        """The content of `block`. Raises `ParseError`."""
        return unpad(block)


def block_chains(session_id: bytes, secret: bytes) -> tuple[BlockChain, BlockChain]:
    """The chains of a connection: server to client, client to server (§7).

    `secret` is the X25519 secret of the server's session key and the client's key.
    """
    keys = hkdf(session_id, secret, b"SimpleXSbChainInit", 64)
    return BlockChain(keys[:32]), BlockChain(keys[32:])


__all__ = [
    "BLOCK_SIZE",
    "BlockChain",
    "BoxError",
    "BoxKey",
    "LargeMessageError",
    "ParseError",
    "PlainBlocks",
    "authenticator",
    "block_chains",
    "hkdf",
    "nonce_from",
    "reverse_nonce",
    "verify_authenticator",
]
