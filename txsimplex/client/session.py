"""From an endpoint to a session with a relay: TLS, identity, handshake (smp-wire.md §4, §6)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from socket import socket as Socket
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IAddress, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory

from txsimplex.addresses import RelayLocation, ServerAddress
from txsimplex.block_stream import BlockStream
from txsimplex.boxes import PlainBlocks
from txsimplex.certificates import CertificateError, check_server_chain, service_fingerprint
from txsimplex.client.blocks import BlockConnection
from txsimplex.client.deadlines import within
from txsimplex.client.errors import DisconnectedError, HandshakeError, IdentityError
from txsimplex.client.signing import ServiceSession, Signer
from txsimplex.encoding import ParseError
from txsimplex.keys import Algorithm, PrivateKey, Random
from txsimplex.smp import handshake
from txsimplex.smp.commands import Role
from txsimplex.smp.transmissions import Framing
from txsimplex.smp.versions import SMP_RANGE, VersionRange
from txsimplex.tls import client_context

SMP_ALPN = b"smp/1"
CONNECT_TIMEOUT = 45.0
"""Seconds that TCP, TLS and the handshake together may take."""
_KEEP_ALIVE: Final = {
    socket.TCP_KEEPIDLE: 30,
    socket.TCP_KEEPINTVL: 15,
    socket.TCP_KEEPCNT: 4,
}
_PLAIN = PlainBlocks()
_REQUEST = b"certificate request"
"""Part of the name that OpenSSL gives to the state of having got one."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service client: its role, its chain (DER, leaf first) and the key of the leaf.

    The same chain is presented in TLS and in the handshake (§6.3). At a relay that does
    not ask for certificates, or is older than services, it is an ordinary client.
    """

    role: Role
    chain: Sequence[bytes]
    key: PrivateKey = field(repr=False)


class Session:
    """A connection on which the handshake is done.

    `version`, `session_id` and `alpn` are what both sides agreed on, `secret` what the keys of
    both make, None without; `shown` is how the relay has sent its key. `framing` and
    `signer` make and read transmissions; `blocks` is the connection below.
    """

    def __init__(
        self,
        blocks: BlockConnection,
        agreed: handshake.ClientSession,
        service: ServiceSession | None,
    ) -> None:
        self.blocks = blocks
        self.version = agreed.version
        self.versions = agreed.versions
        self.encrypted = agreed.encrypted
        self.session_id = agreed.session_id
        self.secret = agreed.secret
        self.shown = agreed.shown
        self.alpn = blocks.transport.alpn
        self.service = service
        self.framing = Framing(agreed.version, agreed.session_id)
        self.signer = Signer(self.framing, agreed.relay_key, service)
        incoming, outgoing = agreed.blocks()
        self.open = incoming.open
        """The content of the next block. Raises `BoxError` or `ParseError`."""
        self._seal = outgoing.seal

    def send(self, content: bytes) -> None:
        """Sends `content`, at most 16,366 bytes, as the next block."""
        self.blocks.send(content, self._seal)


def utc_now() -> datetime:
    """The time, for the validity of certificates."""
    return datetime.now(UTC)


class _Factory(Factory):
    noisy = False

    def __init__(self, stream: BlockStream) -> None:
        self._stream = stream

    def buildProtocol(self, address: IAddress | None) -> BlockStream:
        """The one protocol of the one connection."""
        return self._stream


async def open_blocks(
    endpoint: IStreamClientEndpoint,
    *,
    alpn: bytes | None = SMP_ALPN,
    service: Service | None = None,
    context: SSL.Context | None = None,
    timeout: float | None = CONNECT_TIMEOUT,
    clock: IReactorTime | None = None,
) -> BlockConnection:
    """Connects and sets up TLS, and neither checks nor sends anything then.

    `context`, if given, is used in place of one made from `alpn` and `service`.
    Raises `DisconnectedError` when that fails and `TimedOutError` when it takes longer
    than `timeout` seconds.
    """
    if context is None:
        context = client_context(
            alpn=() if alpn is None else (alpn,),
            chain=() if service is None else service.chain,
            private_key=None if service is None else service.key.encode(),
        )
    clock = clock or global_clock()
    blocks = BlockConnection()
    if service is not None:
        _note_request(context, blocks)
    opening = Deferred.fromCoroutine(_open_blocks(blocks, endpoint, context, clock))
    return await within(timeout, opening, clock)


def _note_request(context: SSL.Context, blocks: BlockConnection) -> None:
    """Notes whether the relay asks for a certificate, of which TLS itself keeps no record."""
    # pyOpenSSL looks up the connection to the end of its life, which may be after all other
    # uses of the object.
    kept: list[SSL.Connection] = []

    def watch(connection: SSL.Connection, where: int, result: int) -> None:
        if not kept:
            kept.append(connection)
        if _REQUEST in connection.get_state_string():
            blocks.asked_for_certificate = True

    context.set_info_callback(watch)
    blocks.when_lost(lambda error: kept.clear())


async def _open_blocks(
    blocks: BlockConnection,
    endpoint: IStreamClientEndpoint,
    context: SSL.Context,
    clock: IReactorTime,
) -> BlockConnection:
    stream = BlockStream(blocks, context, server=False, clock=clock)
    try:
        connected: Any = await endpoint.connect(_Factory(stream))
    except (CancelledError, ConnectingCancelledError):
        raise CancelledError from None
    except Exception as error:
        # Endpoints raise whatever their kind of connection can raise. What they say of it
        # may hold names and addresses.
        raise DisconnectedError(f"cannot connect: {type(error).__name__}") from error
    _keep_alive(connected.transport)
    try:
        await blocks.when_secured
    except BaseException:
        stream.abortConnection()
        raise
    return blocks


def _keep_alive(transport: Any) -> None:
    """Lets the kernel ask whether the other side is there, which nothing else would (§4.4)."""
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    if isinstance(handle, Socket) and handle.family in (socket.AF_INET, socket.AF_INET6):
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE.items():
            handle.setsockopt(socket.IPPROTO_TCP, option, value)


async def open_session(
    endpoint: IStreamClientEndpoint,
    address: ServerAddress | RelayLocation,
    *,
    versions: VersionRange = SMP_RANGE,
    alpn: bytes | None = SMP_ALPN,
    service: Service | None = None,
    proxy: bool = False,
    session_key: bool = True,
    context: SSL.Context | None = None,
    timeout: float | None = CONNECT_TIMEOUT,
    clock: IReactorTime | None = None,
    random: Random = os.urandom,
    now: Callable[[], datetime] = utc_now,
) -> Session:
    """Connects to the relay that has the identity of `address`, and does the handshake.

    Nothing is sent before the chain that the relay presented is checked against the
    key hash. `session_key` says whether the client gives a key, without which there is
    no block layer; `proxy` whether it says that it is a proxy. The rest of `address`
    does not matter: `endpoint` says where to connect.

    Raises `IdentityError`, `HandshakeError`, `DisconnectedError` or `TimedOutError`;
    the connection is closed then.
    """
    clock = clock or global_clock()

    async def opened() -> Session:
        blocks = await open_blocks(
            endpoint, alpn=alpn, service=service, context=context, timeout=None, clock=clock
        )
        try:
            return await _shake_hands(
                blocks,
                address.key_hash,
                now(),
                versions,
                PrivateKey.generate(Algorithm.X25519, random) if session_key else None,
                proxy,
                None if service is None else _service_identity(service, random),
            )
        except BaseException:
            blocks.abort()
            raise

    return await within(timeout, Deferred.fromCoroutine(opened()), clock)


async def _shake_hands(
    blocks: BlockConnection,
    key_hash: bytes,
    now: datetime,
    versions: VersionRange,
    session_key: PrivateKey | None,
    proxy: bool,
    service: handshake.ServiceIdentity | None,
) -> Session:
    transport = blocks.transport
    if not blocks.asked_for_certificate:
        service = None
    chain = transport.peer_chain
    try:
        check_server_chain(chain, key_hash, now)
    except CertificateError as error:
        raise IdentityError(str(error)) from None
    client = handshake.ClientHandshake(
        versions,
        transport.session_id,
        key_hash,
        chain,
        session_key,
        proxy=proxy,
        service=service,
    )
    try:
        agreed = client.receive(await _next_content(blocks))
        blocks.send(agreed.hello, _PLAIN.seal)
        service_session = None
        if agreed.service and service is not None:
            service_id = handshake.service_id(await _next_content(blocks))
            service_session = _service_session(service_id, service)
    except handshake.HandshakeError as error:
        raise HandshakeError(error.error) from None
    return Session(blocks, agreed, service_session)


async def _next_content(blocks: BlockConnection) -> bytes:
    try:
        return _PLAIN.open(await blocks.next_block())
    except ParseError:
        raise HandshakeError(handshake.BAD_PARSE) from None


def _service_identity(service: Service, random: Random) -> handshake.ServiceIdentity:
    session_key = PrivateKey.generate(Algorithm.ED25519, random)
    return handshake.ServiceIdentity(service.role, service.chain, service.key, session_key)


def _service_session(service_id: bytes, identity: handshake.ServiceIdentity) -> ServiceSession:
    return ServiceSession(service_id, service_fingerprint(identity.chain), identity.session_key)


def global_clock() -> IReactorTime:
    """The reactor's clock."""
    # Imported here, since importing it installs a reactor.
    from twisted.internet import reactor

    return IReactorTime(reactor)
