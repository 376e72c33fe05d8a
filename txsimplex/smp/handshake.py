"""What relay and client make of each other's hellos (docs/spec/smp-wire.md §6).

The server speaks first. Each side is an object that takes the content of the
other's block and gives the content of its own next one; blocks of the handshake
are never encrypted. It ends in a `Session`, or in a `HandshakeError`, after
which the connection is to be closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from txsimplex.boxes import BlockChain, PlainBlocks, block_chains
from txsimplex.certificates import (
    Certificate,
    CertificateError,
    SignedKey,
    fingerprint,
    identity_of,
    service_fingerprint,
)
from txsimplex.encoding import ParseError
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp.commands import Role
from txsimplex.smp.errors import Error
from txsimplex.smp.hellos import ClientHello, ServerHello, ServerKey, ServiceHello, ServiceResponse
from txsimplex.smp.versions import (
    BLOCK_ENCRYPTION,
    IMPLIED_SESSION,
    LEGACY_RANGE,
    PROXY_FLAG,
    SERVICE_CERTIFICATES,
    VersionRange,
)

BAD_PARSE: Final = Error(("HANDSHAKE", "PARSE"))
BAD_IDENTITY: Final = Error(("HANDSHAKE", "IDENTITY"))
BAD_AUTH: Final = Error(("HANDSHAKE", "BAD_AUTH"))
BAD_SERVICE: Final = Error(("HANDSHAKE", "BAD_SERVICE"))
BAD_VERSION: Final = Error(("VERSION",))
BAD_SESSION: Final = Error(("SESSION",))

Blocks = BlockChain | PlainBlocks
"""One direction of a session: `seal` makes blocks of contents, `open` the reverse."""


class HandshakeError(Exception):
    """The handshake failed: the connection is to be closed.

    `error` is one of the transport errors of §12.4; `answer` the content of a
    block to send before, if there is one (§6.3).
    """

    def __init__(self, error: Error, answer: bytes | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Session:
    """What both sides know after the handshake.

    `versions` ends at the version of the session. `secret` is the X25519 secret of
    the session keys (32 bytes), None where one side has none.
    """

    session_id: bytes
    versions: VersionRange
    secret: bytes | None = field(repr=False)
    proxy: bool
    """Whether the client said, or is, that it is a proxy."""

    @property
    def version(self) -> int:
        """The version of the session."""
        return self.versions.maximum

    @property
    def encrypted(self) -> bool:
        """Whether blocks after the handshake are encrypted (§7)."""
        return self.version >= BLOCK_ENCRYPTION and not self.proxy and self.secret is not None

    def _directions(self) -> tuple[Blocks, Blocks]:
        if self.secret is None or not self.encrypted:
            return PlainBlocks(), PlainBlocks()
        return block_chains(self.session_id, self.secret)


# -- the relay's side


@dataclass(frozen=True, slots=True)
class ServiceClaim:
    """A service client that has proved its certificate: the relay finds its record.

    `fingerprint` is the SHA-256 of the identity certificate; `session_key`, of
    Ed25519, signs for the service in this session.
    """

    role: Role
    chain: tuple[bytes, ...]
    fingerprint: bytes
    session_key: PublicKey


@dataclass(frozen=True, slots=True)
class RelaySession(Session):
    """A session as the relay knows it: with a service if the client has proved one.

    For a service the relay sends one more block of the handshake, made by
    `accept_service` or `refuse_service`.
    """

    service: ServiceClaim | None = None

    def blocks(self) -> tuple[Blocks, Blocks]:
        """How blocks received are opened and blocks sent are sealed, from the first on."""
        to_client, to_relay = self._directions()
        return to_relay, to_client


def accept_service(service_id: bytes) -> bytes:
    """The content of the block for a service that the relay knows or has now made."""
    return ServiceResponse(service_id).encode()


def refuse_service() -> HandshakeError:
    """The end of the handshake for a service that has another role, or cannot be stored."""
    return _refusal(BAD_SERVICE)


def _refusal(error: Error) -> HandshakeError:
    return HandshakeError(error, ServiceResponse(error=error).encode())


class RelayIdentity:
    """What a relay shows to every client.

    `chain` is its certificates (DER, leaf first), `signing_key` the key of the leaf
    and `key_hash` the SHA-256 of the identity certificate.
    """

    __slots__ = ("chain", "key_hash", "signing_key")

    def __init__(self, chain: Sequence[bytes], signing_key: PrivateKey, key_hash: bytes) -> None:
        self.chain = list(chain)
        self.signing_key = signing_key
        self.key_hash = key_hash


def offered(versions: VersionRange, alpn: bytes | None) -> VersionRange | None:
    """The versions a relay offers on a connection: without ALPN version 6 only (§4.1).

    None when the relay's `versions` do not include it; the connection is closed then.
    """
    return versions if alpn is not None else versions.intersection(LEGACY_RANGE)


class RelayHandshake:
    """The relay's side of one connection.

    `session_key` is an X25519 key made for this connection; `alpn` what TLS has
    agreed on and `client_chain` what the client has presented there (DER, leaf
    first), both known before the first block.
    """

    def __init__(
        self,
        identity: RelayIdentity,
        versions: VersionRange,
        session_id: bytes,
        session_key: PrivateKey,
        alpn: bytes | None,
        client_chain: Sequence[bytes] = (),
    ) -> None:
        self._identity = identity
        self._versions = offered(versions, alpn)
        self._session_id = session_id
        self._session_key = session_key
        self._client_chain = client_chain

    def hello(self) -> bytes:
        """The content of the first block. `HandshakeError` when no version is on offer."""
        if self._versions is None:
            raise HandshakeError(BAD_VERSION)
        hello = ServerHello(self._versions, self._session_id)
        if self._versions.maximum >= IMPLIED_SESSION:
            identity = self._identity
            signed = SignedKey.sign(self._session_key.public, identity.signing_key)
            hello.key = ServerKey(identity.chain, signed.encode())
        return hello.encode()

    def receive(self, content: bytes) -> RelaySession:
        """The session that the content of the client's block asks for.

        Raises `HandshakeError`.
        """
        try:
            hello = ClientHello.decode(content)
        except ParseError:
            raise HandshakeError(BAD_PARSE) from None
        if hello.key_hash != self._identity.key_hash:
            raise HandshakeError(BAD_IDENTITY)
        versions = None if self._versions is None else self._versions.cap(hello.version)
        if versions is None:
            raise HandshakeError(BAD_VERSION)
        secret = None if hello.key is None else self._session_key.exchange(hello.key)
        service = None if hello.service is None else self._claim(hello.service)
        return RelaySession(self._session_id, versions, secret, hello.proxy, service)

    def _claim(self, hello: ServiceHello) -> ServiceClaim:
        chain = hello.chain
        if chain != list(self._client_chain):
            raise _refusal(BAD_AUTH)
        key = _verified_key(hello.signed_key, chain[0], Algorithm.ED25519)
        if key is None:
            raise _refusal(BAD_AUTH)
        try:
            return ServiceClaim(hello.role, tuple(chain), service_fingerprint(chain), key)
        except CertificateError:
            raise _refusal(BAD_AUTH) from None


# -- the client's side


@dataclass(frozen=True, slots=True)
class ServiceIdentity:
    """What a service client shows: its chain (DER, leaf first) and the key of the leaf.

    Only for relays that have asked for a certificate in TLS, where the same chain
    is presented.
    """

    role: Role
    chain: Sequence[bytes]
    signing_key: PrivateKey
    session_key: PrivateKey
    """Of Ed25519, made for this connection."""


@dataclass(frozen=True, slots=True)
class ClientSession(Session):
    """A session as the client knows it, and the content of the client's block.

    `relay_key` is the relay's session key, for X25519 authenticators, and `shown` how the
    relay has sent it; None where it sent none. If `service` is true, the relay sends one more
    block of the handshake, read by `service_id`.
    """

    hello: bytes = field(repr=False)
    relay_key: PublicKey | None
    shown: ServerKey | None
    service: bool

    def blocks(self) -> tuple[Blocks, Blocks]:
        """How blocks received are opened and blocks sent are sealed, from the first on."""
        to_client, to_relay = self._directions()
        return to_client, to_relay


class ClientHandshake:
    """The client's side of one connection.

    `key_hash` is the identity in the relay's address and `relay_chain` what the
    relay has presented in TLS (DER, leaf first), checked there. `session_key` is an
    X25519 key made for this connection, or None for none.
    """

    def __init__(
        self,
        versions: VersionRange,
        session_id: bytes,
        key_hash: bytes,
        relay_chain: Sequence[bytes],
        session_key: PrivateKey | None,
        *,
        proxy: bool = False,
        service: ServiceIdentity | None = None,
    ) -> None:
        self._versions = versions
        self._session_id = session_id
        self._key_hash = key_hash
        self._relay_chain = relay_chain
        self._session_key = session_key
        self._proxy = proxy
        self._service = service

    def receive(self, content: bytes) -> ClientSession:
        """The session from the content of the relay's block. Raises `HandshakeError`."""
        try:
            hello = ServerHello.decode(content)
        except ParseError:
            raise HandshakeError(BAD_PARSE) from None
        if hello.session_id != self._session_id:
            raise HandshakeError(BAD_SESSION)
        versions = self._agreed(hello.versions)
        if versions is None:
            raise HandshakeError(BAD_VERSION)
        relay_key = None if hello.key is None else self._checked_key(hello.key)
        key = self._session_key
        service = self._service if versions.maximum >= SERVICE_CERTIFICATES else None
        answer = ClientHello(
            versions.maximum,
            self._key_hash,
            None if key is None else key.public,
            self._proxy,
            None if service is None else _service_hello(service),
        )
        return ClientSession(
            self._session_id,
            versions,
            None if key is None or relay_key is None else key.exchange(relay_key),
            self._proxy,
            answer.encode(),
            relay_key,
            hello.key,
            service is not None,
        )

    def _agreed(self, versions: VersionRange) -> VersionRange | None:
        both = self._versions.intersection(versions)
        if both is not None and self._proxy and BLOCK_ENCRYPTION <= both.maximum < PROXY_FLAG:
            # The client hello of these versions cannot say that it comes from a proxy,
            # so the relay would encrypt and the proxy not.
            return both.cap(BLOCK_ENCRYPTION - 1)
        return both

    def _checked_key(self, given: ServerKey) -> PublicKey:
        try:
            identity = identity_of(given.chain)
        except CertificateError:
            raise HandshakeError(BAD_AUTH) from None
        if len(given.chain) < 2 or fingerprint(identity) != self._key_hash:
            raise HandshakeError(BAD_AUTH)
        if not self._relay_chain:
            raise HandshakeError(BAD_AUTH)
        key = _verified_key(given.signed_key, self._relay_chain[0], Algorithm.X25519)
        if key is None:
            raise HandshakeError(BAD_AUTH)
        return key


def shown_key(shown: ServerKey, certificate: bytes) -> PublicKey | None:
    """The relay's session key of X25519, None if the key of its certificate has not signed it."""
    return _verified_key(shown.signed_key, certificate, Algorithm.X25519)


def service_id(content: bytes) -> bytes:
    """The id of the service from the content of the relay's second block (§6.3).

    Raises `HandshakeError`.
    """
    try:
        response = ServiceResponse.decode(content)
    except ParseError:
        raise HandshakeError(BAD_PARSE) from None
    if response.service_id is None:
        raise HandshakeError(response.error or BAD_PARSE)
    return response.service_id


def _service_hello(service: ServiceIdentity) -> ServiceHello:
    signed = SignedKey.sign(service.session_key.public, service.signing_key)
    return ServiceHello(service.role, list(service.chain), signed.encode())


def _verified_key(signed: bytes, certificate: bytes, algorithm: Algorithm) -> PublicKey | None:
    """The key in `signed` if the key of `certificate` has signed it, and it is of `algorithm`."""
    try:
        given, signer = SignedKey.decode(signed), Certificate.decode(certificate).key
    except ParseError:
        return None
    if signer is None or given.key.algorithm is not algorithm or not given.verify(signer):
        return None
    return given.key
