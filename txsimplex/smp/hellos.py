"""The blocks of the handshake (docs/spec/smp-wire.md §6).

Every hello is read leniently at its end: bytes after the known fields are
ignored, so that later versions can add some.
"""

from __future__ import annotations

from dataclasses import dataclass

from txsimplex.encoding import (
    ParseError,
    Reader,
    boolean,
    large,
    maybe,
    nonempty,
    short,
    u16,
)
from txsimplex.keys import Algorithm, PublicKey
from txsimplex.smp.commands import Role
from txsimplex.smp.errors import Error, decode_transport_error
from txsimplex.smp.versions import (
    IMPLIED_SESSION,
    PROXY_FLAG,
    SERVICE_CERTIFICATES,
    VersionRange,
)


@dataclass(slots=True)
class ServerKey:
    """The server's chain (DER, leaf first) and its signed session key (DER, §6.4)."""

    chain: list[bytes]
    signed_key: bytes


@dataclass(slots=True)
class ServerHello:
    """The first block: versions offered, session id, and from version 7 on the key."""

    versions: VersionRange
    session_id: bytes
    key: ServerKey | None = None

    def encode(self) -> bytes:
        """The content of the block (§6.1)."""
        data = self.versions.encode() + short(self.session_id)
        if self.versions.maximum >= IMPLIED_SESSION and self.key is not None:
            data += nonempty(self.key.chain, large) + large(self.key.signed_key)
        return data

    @classmethod
    def decode(cls, content: bytes) -> ServerHello:
        """Reads what `encode` writes. Raises `ParseError`.

        A key that cannot be read is taken as none, as the reference's client does.
        """
        reader = Reader(content)
        hello = cls(VersionRange.read(reader), reader.short())
        if hello.versions.maximum >= IMPLIED_SESSION:
            try:
                hello.key = ServerKey(reader.nonempty(reader.large), reader.large())
            except ParseError:
                hello.key = None
        return hello


@dataclass(slots=True)
class ServiceHello:
    """A service client's role, chain and signed Ed25519 session key (§6.2)."""

    role: Role
    chain: list[bytes]
    signed_key: bytes

    def encode(self) -> bytes:
        """The value inside the client hello."""
        return self.role.value + nonempty(self.chain, large) + large(self.signed_key)

    @classmethod
    def read(cls, reader: Reader) -> ServiceHello:
        """Reads what `encode` writes. Raises `ParseError`."""
        try:
            role = Role(reader.take(1))
        except ValueError:
            raise ParseError("not a role") from None
        return cls(role, reader.nonempty(reader.large), reader.large())


@dataclass(slots=True)
class ClientHello:
    """The second block: the version chosen, whom the client means, its key and flags."""

    version: int
    key_hash: bytes
    key: PublicKey | None = None
    proxy: bool = False
    service: ServiceHello | None = None

    def encode(self) -> bytes:
        """The content of the block (§6.2)."""
        data = u16(self.version) + short(self.key_hash)
        if self.version >= IMPLIED_SESSION and self.key is not None:
            data += short(self.key.encode())
        if self.version >= PROXY_FLAG:
            data += boolean(self.proxy)
        if self.version >= SERVICE_CERTIFICATES:
            data += maybe(self.service, ServiceHello.encode)
        return data

    @classmethod
    def decode(cls, content: bytes) -> ClientHello:
        """Reads what `encode` writes. Raises `ParseError`.

        The key has no tag of its own: bytes that are not an X25519 key are left
        for the next field.
        """
        reader = Reader(content)
        hello = cls(reader.u16(), reader.short())
        if hello.version >= IMPLIED_SESSION:
            hello.key = _optional_key(reader)
        if hello.version >= PROXY_FLAG:
            hello.proxy = reader.bool()
        if hello.version >= SERVICE_CERTIFICATES:
            hello.service = reader.maybe(lambda: ServiceHello.read(reader))
        return hello


def _optional_key(reader: Reader) -> PublicKey | None:
    start = reader.position
    try:
        key = PublicKey.decode(reader.short())
        if key.algorithm is Algorithm.X25519:
            return key
    except ParseError:
        pass
    reader.position = start
    return None


@dataclass(slots=True)
class ServiceResponse:
    """The third block, only for services: their id, or why they are refused (§6.3)."""

    service_id: bytes | None = None
    error: Error | None = None

    def encode(self) -> bytes:
        """The content of the block."""
        if self.error is not None:
            return b"E" + self.error.encode()
        return b"R" + short(self.service_id or b"")

    @classmethod
    def decode(cls, content: bytes) -> ServiceResponse:
        """Reads what `encode` writes. Raises `ParseError`."""
        reader = Reader(content)
        tag = reader.take(1)
        if tag == b"R":
            return cls(service_id=reader.short())
        if tag == b"E":
            return cls(error=decode_transport_error(reader.rest()))
        raise ParseError("neither accepted nor refused")
