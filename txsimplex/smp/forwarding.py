"""The two layers around a command that goes to its relay by way of a proxy (smp-proxy.md §2, §3).

```
   sender ── PFWD ──▶ proxy ── RFWD ──▶ relay          command, sealed for the relay
          ◀─ PRES ──        ◀─ RRES ──                 answer, sealed for the sender
```

The inner layer is between sender and relay: its key is of the relay's session with the proxy
and a key made for this one command, its nonce is the correlation id of PFWD, reversed for the
answer. The outer layer is between proxy and relay: so what goes in and out of a proxy has
nothing in common.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from txsimplex.boxes import BoxKey, nonce_from, reverse_nonce
from txsimplex.encoding import Reader, short, u16
from txsimplex.keys import PublicKey
from txsimplex.smp.commands import dh_key, encode_key

FORWARDED_SIZE: Final = 16226
"""Bytes that the content for the relay, and that of its answer, is padded to."""
SEALED_FORWARDED_SIZE: Final = 16242


def seal_forwarded(key: BoxKey, nonce: bytes, content: bytes) -> bytes:
    """The content of a block, with one transmission, for the relay; 16,242 bytes.

    `key` is of the DH secret of the relay's session key and the command's key, `nonce` the
    24 bytes of the correlation id. Raises `LargeMessageError`.
    """
    return key.seal_padded(content, nonce, FORWARDED_SIZE)


def open_forwarded(key: BoxKey, nonce: bytes, sealed: bytes) -> bytes:
    """What `seal_forwarded` has sealed. Raises `BoxError` or `ParseError`."""
    return key.open_padded(sealed, nonce_from(nonce))


def seal_answer(key: BoxKey, nonce: bytes, content: bytes) -> bytes:
    """The answer's content for the sender, 16,242 bytes; the command's key and nonce.

    Raises `LargeMessageError`.
    """
    return key.seal_padded(content, reverse_nonce(nonce_from(nonce)), FORWARDED_SIZE)


def open_answer(key: BoxKey, nonce: bytes, sealed: bytes) -> bytes:
    """What `seal_answer` has sealed. Raises `BoxError` or `ParseError`."""
    return key.open_padded(sealed, reverse_nonce(nonce_from(nonce)))


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What a proxy passes on: nothing of it is the proxy's own.

    `corr_id` is that of PFWD, `version` the one the command is encoded in, `key` the public
    part of the command's key, `sealed` what `seal_forwarded` made.
    """

    corr_id: bytes = field(repr=False)
    version: int
    key: PublicKey
    sealed: bytes = field(repr=False)

    def encode(self) -> bytes:
        """The plain text of RFWD."""
        return short(self.corr_id) + u16(self.version) + encode_key(self.key) + self.sealed

    @classmethod
    def decode(cls, data: bytes) -> Forwarded:
        """Reads what `encode` writes. Raises `ParseError`."""
        reader = Reader(data)
        return cls(reader.short(), reader.u16(), dh_key(reader), reader.rest())


def seal_rfwd(key: BoxKey, nonce: bytes, forwarded: Forwarded) -> bytes:
    """The body of RFWD; `key` is of the secret of proxy and relay, `nonce` its 24-byte corrId."""
    return key.seal(forwarded.encode(), nonce)


def open_rfwd(key: BoxKey, corr_id: bytes, sealed: bytes) -> bytes:
    """What is in a RFWD, for `Forwarded.decode`. Raises `BoxError`."""
    return key.open(sealed, nonce_from(corr_id))


def seal_rres(key: BoxKey, rfwd_corr_id: bytes, corr_id: bytes, answer: bytes) -> bytes:
    """The body of RRES: what `seal_answer` made, with the correlation id of PFWD."""
    return key.seal(short(corr_id) + answer, reverse_nonce(nonce_from(rfwd_corr_id)))


def open_rres(key: BoxKey, nonce: bytes, sealed: bytes) -> bytes:
    """The answer in a RRES, for the body of PRES. Raises `BoxError` or `ParseError`.

    The correlation id in it is passed over: the one of RRES says which PFWD it answers.
    """
    reader = Reader(key.open(sealed, reverse_nonce(nonce)))
    reader.short()
    return reader.rest()
