"""Direct calls of cryptographic primitives for the hot path.

PyNaCl carries or links libsodium but its public bindings lack what the network
needs (HSalsa20 for symmetric keys) or copy more than needed (detached Ed25519
verification, boxes into a buffer of ours). This is the only module that reaches
behind its public surface: it looks the functions up in the library that PyNaCl
has already loaded. Everything else uses the names defined here.

Results pass through buffers that all callers share, which saves an allocation for
each call: use this module, and what is built on it, in one thread only.

SHA-512 of short inputs: the interpreter's own implementation costs half of
OpenSSL's, whose set-up per call outweighs the hashing (measured: one step of
the block chains takes 8 µs with it and 17 µs without).
"""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any, Final

import nacl.bindings  # initialises libsodium, which chooses its implementations then
from nacl import _sodium

try:
    from _sha512 import sha512 as short_sha512  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha2 import sha512 as short_sha512  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha512 as short_sha512

__all__ = [
    "BOX_OVERHEAD",
    "hsalsa20",
    "open_easy",
    "open_once",
    "scalarmult",
    "seal_easy",
    "seal_once",
    "sha512",
    "short_sha512",
    "verify_ed25519",
]

sha512 = hashlib.sha512

BOX_OVERHEAD: Final = 16
"""Bytes that a box is longer than its message: the Poly1305 tag."""

_LARGEST_BOX: Final = 65535 + BOX_OVERHEAD
_ffi: Any = _sodium.ffi
_library: Final = ctypes.CDLL(_sodium.__file__)


def _function(name: str, *parameters: str) -> Any:
    try:
        address = ctypes.cast(getattr(_library, name), ctypes.c_void_p).value
    except AttributeError:
        raise ImportError(
            f"the libsodium of this PyNaCl ({nacl.__version__}) does not export {name}"
        ) from None
    return _ffi.cast(f"int(*)({', '.join(parameters)})", address)


_BYTES = "const unsigned char *"
_OUT = "unsigned char *"
_SIZE = "unsigned long long"

_hsalsa20 = _function("crypto_core_hsalsa20", _OUT, _BYTES, _BYTES, _BYTES)
_seal = _function("crypto_secretbox_easy", _OUT, _BYTES, _SIZE, _BYTES, _BYTES)
_open = _function("crypto_secretbox_open_easy", _OUT, _BYTES, _SIZE, _BYTES, _BYTES)
_verify = _function("crypto_sign_ed25519_verify_detached", _BYTES, _BYTES, _SIZE, _BYTES)
_scalarmult = _function("crypto_scalarmult", _OUT, _BYTES, _BYTES)

_out32 = _ffi.new("unsigned char[32]")
_view32 = _ffi.buffer(_out32)
_box = _ffi.new("unsigned char[]", _LARGEST_BOX)
_box_view = _ffi.buffer(_box)
_box_memory = memoryview(_box_view).cast("B")
_NULL = _ffi.NULL
_ZERO16 = bytes(16)


def hsalsa20(key: bytes) -> bytes:
    """HSalsa20 of a 32-byte `key` and 16 zero bytes (smp-wire.md §3): 32 bytes."""
    _hsalsa20(_out32, _ZERO16, key, _NULL)
    derived: bytes = _view32[:]
    return derived


def seal_easy(message: bytes, nonce: bytes, key: bytes) -> bytes:
    """XSalsa20-Poly1305 of at most 65,535 bytes: the tag and the ciphertext.

    `nonce` has 24 bytes and `key`, already passed through HSalsa20, 32 bytes.
    """
    size = len(message)
    if size > 65535:
        raise ValueError("a box holds at most 65535 bytes")
    _seal(_box, message, size, nonce, key)
    sealed: bytes = _box_view[: size + BOX_OVERHEAD]
    return sealed


def open_easy(box: bytes, nonce: bytes, key: bytes) -> bytes | None:
    """The message of a box of at most 65,551 bytes, or None when the tag is wrong."""
    size = len(box)
    if size < BOX_OVERHEAD or size > _LARGEST_BOX:
        return None
    if _open(_box, box, size, nonce, key):
        return None
    message: bytes = _box_view[: size - BOX_OVERHEAD]
    return message


def seal_once(padded: bytes, nonce: bytes, secret: bytes) -> bytes:
    """`seal_easy` with the HSalsa20 of a 32-byte `secret` that is used for this only."""
    _hsalsa20(_out32, _ZERO16, secret, _NULL)
    size = len(padded)
    _seal(_box, padded, size, nonce, _out32)
    sealed: bytes = _box_view[: size + BOX_OVERHEAD]
    return sealed


def open_once(box: bytes, nonce: bytes, secret: bytes) -> memoryview | None:
    """`open_easy` with the HSalsa20 of a 32-byte `secret` that is used for this only.

    The message is valid until the next call of a function of this module.
    """
    size = len(box)
    if size < BOX_OVERHEAD or size > _LARGEST_BOX:
        return None
    _hsalsa20(_out32, _ZERO16, secret, _NULL)
    if _open(_box, box, size, nonce, _out32):
        return None
    return _box_memory[: size - BOX_OVERHEAD]


def verify_ed25519(signature: bytes, message: bytes, public: bytes) -> bool:
    """Whether a 64-byte `signature` over `message` is by the 32-byte key `public`."""
    return bool(_verify(signature, message, len(message), public) == 0)


def scalarmult(private: bytes, public: bytes) -> bytes:
    """The raw X25519 secret, 32 bytes; all zeros for a point of small order.

    The reference uses that value where PyNaCl raises (vectors ``dh/x25519``).
    """
    if _scalarmult(_out32, private, public):
        return bytes(32)
    secret: bytes = _view32[:]
    return secret
