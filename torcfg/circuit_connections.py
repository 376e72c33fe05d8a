"""Connections behind a PROXY header, which are limited where it tells of a circuit of Tor.

Twisted reads the header, of tor's HiddenServiceExportCircuitID or of any other proxy.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv6Address
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory
from twisted.internet.protocol import connectionDone
from twisted.protocols.haproxy._wrapper import HAProxyProtocolWrapper, HAProxyWrappingFactory
from twisted.python.failure import Failure

from torcfg.circuits import Circuits, circuit_of

__all__ = ["CircuitConnection", "CircuitFactory"]


class CircuitConnection(HAProxyProtocolWrapper):
    """Counts itself to its circuit when the header has come, or ends if that has enough.

    One that comes from anywhere else is not counted.
    """

    _circuit: int | None = None
    _admitted = False

    def __init__(self, factory: Any, wrapped: IProtocol, circuits: Circuits) -> None:
        super().__init__(factory, wrapped)
        self._circuits = circuits

    def dataReceived(self, data: bytes) -> None:
        """See ``HAProxyProtocolWrapper``."""
        if self._admitted:
            super().dataReceived(data)
            return
        # What is behind the header costs a TLS handshake: it has to wait.
        header, end, rest = data, b"", b""
        if data.startswith(b"PROXY "):
            header, end, rest = data.partition(b"\r\n")
        try:
            super().dataReceived(header + end)
        except ValueError:
            if self._proxyInfo is not None:
                raise
            # Twisted looks for less than can be wrong with a header.
            self._abort()
            return
        if self._proxyInfo is None:
            return
        if not self._enter():
            self._abort()
            return
        self._admitted = True
        if rest:
            super().dataReceived(rest)

    def _enter(self) -> bool:
        peer = self.getPeer()
        circuit = circuit_of(peer.host) if isinstance(peer, IPv6Address) else None
        if circuit is not None:
            if not self._circuits.enter(circuit):
                return False
            self._circuit = circuit
        return True

    def _abort(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See ``HAProxyProtocolWrapper``."""
        circuit, self._circuit = self._circuit, None
        if circuit is not None:
            self._circuits.leave(circuit)
        super().connectionLost(reason)


class CircuitFactory(HAProxyWrappingFactory):
    """Puts `CircuitConnection` around the protocols of another factory, which may refuse."""

    noisy = False

    def __init__(self, wrapped: IProtocolFactory, circuits: Circuits) -> None:
        super().__init__(wrapped)
        self.circuits = circuits

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """See ``HAProxyWrappingFactory``, which does not expect a refusal."""
        wrapped = self.wrappedFactory.buildProtocol(addr)
        return None if wrapped is None else CircuitConnection(self, wrapped, self.circuits)
