"""A SOCKS 5 proxy as an endpoint (RFC 1928, RFC 1929): names are resolved by the proxy only."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

_VERSION: Final = 5
_NO_CREDENTIALS: Final = 0
_NAME_AND_PASSWORD: Final = 2
_CONNECT: Final = 1
_IPV4: Final = 1
_DOMAIN: Final = 3
_IPV6: Final = 4
_REASONS: Final = {
    1: "general failure",
    2: "not allowed",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time to live expired",
    7: "command not supported",
    8: "address type not supported",
}


class SocksError(Exception):
    """The SOCKS proxy does not connect; the text says why, and names no host."""


@dataclass(frozen=True, slots=True)
class SocksCredentials:
    """What a SOCKS proxy is given. Tor keeps connections with different ones apart."""

    name: bytes = field(repr=False)
    password: bytes = field(repr=False)


def _address(host: str) -> bytes:
    """Type and address of a host (RFC 1928, 5)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        return bytes((_DOMAIN, len(name))) + name
    return bytes((_IPV4 if address.version == 4 else _IPV6,)) + address.packed


class SocksHandshake:
    """The client's part of one connection, as bytes.

    `receive` takes what the proxy has sent and gives what to answer; `done` is true when the
    connection is made, and what was received behind that is in `rest`.
    """

    def __init__(self, host: str, port: int, credentials: SocksCredentials | None) -> None:
        self._request = bytes((_VERSION, _CONNECT, 0)) + _address(host) + port.to_bytes(2, "big")
        self._credentials = credentials
        self._received = b""
        self._step = self._method
        self.done = False

    def begin(self) -> bytes:
        """What is sent first."""
        if self._credentials is None:
            return bytes((_VERSION, 1, _NO_CREDENTIALS))
        return bytes((_VERSION, 1, _NAME_AND_PASSWORD))

    @property
    def rest(self) -> bytes:
        """What was received behind the handshake."""
        return self._received

    def receive(self, data: bytes) -> bytes:
        """Raises `SocksError`."""
        self._received += data
        answer = b""
        while not self.done:
            given = self._step()
            if given is None:
                break
            answer += given
        return answer

    def _take(self, size: int) -> bytes | None:
        if len(self._received) < size:
            return None
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def _method(self) -> bytes | None:
        answer = self._take(2)
        if answer is None:
            return None
        wanted = _NO_CREDENTIALS if self._credentials is None else _NAME_AND_PASSWORD
        if answer != bytes((_VERSION, wanted)):
            raise SocksError("the proxy does not accept what it is offered")
        if self._credentials is None:
            self._step = self._reply
            return self._request
        self._step = self._authenticated
        name, password = self._credentials.name, self._credentials.password
        return bytes((1, len(name))) + name + bytes((len(password),)) + password

    def _authenticated(self) -> bytes | None:
        answer = self._take(2)
        if answer is None:
            return None
        if answer[1] != 0:
            raise SocksError("the proxy refuses the credentials")
        self._step = self._reply
        return self._request

    def _reply(self) -> bytes | None:
        received = self._received
        if len(received) < 5:
            return None
        if received[0] != _VERSION:
            raise SocksError("the proxy does not speak SOCKS 5")
        if received[1] != 0:
            reason = _REASONS.get(received[1], f"code {received[1]}")
            raise SocksError(f"the proxy says: {reason}")
        sizes = {_IPV4: 4, _IPV6: 16, _DOMAIN: received[4] + 1}
        if received[3] not in sizes:
            raise SocksError("the proxy does not speak SOCKS 5")
        if self._take(4 + sizes[received[3]] + 2) is None:
            return None
        self.done = True
        return b""


class _SocksProtocol(Protocol):
    """Does the handshake, and then passes everything on."""

    def __init__(
        self, handshake: SocksHandshake, factory: IProtocolFactory, made: Deferred[IProtocol]
    ) -> None:
        self._handshake = handshake
        self._factory = factory
        self._made: Deferred[IProtocol] | None = made
        self._inner: Any = None

    def connectionMade(self) -> None:
        """The proxy is there."""
        self.transport.write(self._handshake.begin())  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        """From the proxy, or through it."""
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        transport: Any = self.transport
        try:
            answer = self._handshake.receive(data)
        except SocksError as error:
            self._fail(error)
            transport.abortConnection()
            return
        if answer:
            transport.write(answer)
        if self._handshake.done:
            self._inner = self._factory.buildProtocol(transport.getPeer())
            self._inner.makeConnection(transport)
            made, self._made = self._made, None
            if made is not None:
                made.callback(self._inner)
            rest = self._handshake.rest
            if rest:
                self._inner.dataReceived(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The proxy is gone."""
        if self._inner is not None:
            self._inner.connectionLost(reason)
        else:
            self._fail(SocksError("the proxy closed the connection"))

    def _fail(self, error: SocksError) -> None:
        made, self._made = self._made, None
        if made is not None and not made.called:
            made.errback(error)


@implementer(IStreamClientEndpoint)
class SocksEndpoint:
    """A host and port behind a SOCKS proxy, which `proxy` connects to."""

    def __init__(
        self,
        proxy: IStreamClientEndpoint,
        host: str,
        port: int,
        credentials: SocksCredentials | None = None,
    ) -> None:
        self._proxy = proxy
        self._host = host
        self._port = port
        self._credentials = credentials

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See `IStreamClientEndpoint`; fails with `SocksError`, too."""
        handshake = SocksHandshake(self._host, self._port, self._credentials)
        protocols: list[_SocksProtocol] = []

        def abort(made: Deferred[IProtocol]) -> None:
            connecting.cancel()
            for each in protocols:
                transport: Any = each.transport
                if transport is not None:
                    transport.abortConnection()

        made: Deferred[IProtocol] = Deferred(abort)

        class Socks(Factory):
            noisy = False

            def buildProtocol(self, address: Any) -> _SocksProtocol:
                protocols.append(_SocksProtocol(handshake, protocolFactory, made))
                return protocols[0]

        def failed(failure: Failure) -> None:
            if not made.called:
                made.errback(failure)

        connecting = self._proxy.connect(Socks())
        connecting.addErrback(failed)
        return made
