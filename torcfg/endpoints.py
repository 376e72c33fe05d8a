r"""Onion services as server endpoints, beside ``tcp:`` and ``unix:``.

```
endpoint = serverFromString(reactor, "onionservice:80:key=/var/lib/site/onion.key")
port = await endpoint.listen(factory)
port.getHost().host
```

`torcfg.descriptions` has what a description says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IStreamServerEndpoint,
)
from zope.interface import implementer

from torcfg.client_files import ClientFiles
from torcfg.descriptions import OnionDescription
from torcfg.key_files import kept_key, read_password
from torcfg.onion_services import OnionService, ProofOfWork
from txsimplex.stale_sockets import make_room

if TYPE_CHECKING:
    from torcfg.publishing import OnionPublisher

__all__ = ["OnionAddress", "OnionEndpoint", "OnionPort"]


@implementer(IAddress)
@dataclass(frozen=True, slots=True)
class OnionAddress:
    """Where an onion service is reached: ``….onion``, and the first of its ports."""

    host: str
    port: int


@implementer(IStreamServerEndpoint)
class OnionEndpoint:
    """Listens on a Unix socket, and publishes that as an onion service."""

    def __init__(self, reactor: Any, description: OnionDescription) -> None:
        self._reactor = reactor
        self.description = description

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Fires with an `OnionPort` as soon as the socket is there; tor may be away.

        The key is made if there is none. Fails with ``CannotListenError``, also for files that
        cannot be used.
        """
        return execute(self._listen, protocolFactory)

    def _listen(self, factory: IProtocolFactory) -> OnionPort:
        # Who only reads descriptions need not pay for txtorcon.
        from torcfg.publishing import OnionPublisher

        given = self.description
        path = given.socket.absolute()
        try:
            service = _service(given, path)
            key = kept_key(given.key, os.urandom)
            password = None if given.password_file is None else read_password(given.password_file)
            make_room(str(path))
            port = self._reactor.listenUNIX(str(path), factory, mode=given.mode)
        except (OSError, ValueError) as error:
            raise CannotListenError(None, str(path), error) from None
        control = clientFromString(self._reactor, given.control)
        publisher = OnionPublisher(
            self._reactor,
            control,
            key,
            service,
            password=password,
            clients=(lambda: None) if given.clients is None else ClientFiles(given.clients).keys,
        )
        publisher.startService()
        return OnionPort(port, publisher, OnionAddress(key.address, given.ports[0]))


def _service(given: OnionDescription, path: Path) -> OnionService:
    return OnionService(
        tuple((port, f"unix:{path}") for port in given.ports),
        streams=given.streams,
        proof_of_work=ProofOfWork() if given.proof_of_work else None,
        single_hop=given.single_hop,
    )


@implementer(IListeningPort)
class OnionPort:
    """An onion service that is listened for; `publisher` says how far it is with tor.

    What changes in its `clients` takes effect with ``publisher.republish()``.
    """

    def __init__(self, port: Any, publisher: OnionPublisher, address: OnionAddress) -> None:
        self._port = port
        self._address = address
        self.publisher = publisher

    def getHost(self) -> OnionAddress:
        """The address by which it is reached, whether it is published yet or not."""
        return self._address

    def startListening(self) -> None:
        """Listens and publishes again after `stopListening`. Raises ``CannotListenError``."""
        self._port.startListening()
        self.publisher.startService()

    def stopListening(self) -> Deferred[None]:
        """Takes the service back, then closes and removes the socket; done when that is."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for stop in (self.publisher.stopService, self._port.stopListening):
            stopped = stop()
            if stopped is not None:
                await stopped

    # -- the socket, for who hands it to other processes

    @property
    def factory(self) -> Any:
        """What makes the protocols of its connections."""
        return self._port.factory

    def fileno(self) -> int:
        """The descriptor of the socket that listens."""
        descriptor: int = self._port.fileno()
        return descriptor

    def stopReading(self) -> None:
        """Accepts no connections in this process; they wait for another one that does."""
        self._port.stopReading()
