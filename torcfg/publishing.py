"""Publishes an onion service on a tor, and publishes it again whenever that is needed.

```
   connecting ──▶ waiting for tor ──▶ publishing ──▶ published
       ▲              (bootstrap)      ADD_ONION      first descriptor uploaded
       └──────────────────── control connection lost, or refused: again, later
```

The service is bound to the control connection: tor takes it back when that ends. The key is
the relay's, so the address stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredLock,
    TimeoutError as TookTooLong,
)
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from txtorcon import TorProtocolError
from txtorcon.torcontrolprotocol import TorControlProtocol, TorDisconnectError, TorProtocolFactory

from torcfg.onion_keys import KeyFileError, OnionKey
from torcfg.onion_services import OnionService, add_onion, delete_onion, rendezvous_circuits

__all__ = ["OnionPublisher", "State", "Status"]

ANSWER_TIME: Final = 30.0
"""Seconds that tor has for an answer, and for all of the authentication."""
BOOTSTRAP_INTERVAL: Final = 1.0
_PROGRESS: Final = re.compile(r"\bPROGRESS=(\d+)")
_retry_delay: Final = backoffPolicy(initialDelay=0.5, maxDelay=30.0, factor=2.0)


class State(Enum):
    """How far an onion service is."""

    STOPPED = "stopped"
    CONNECTING = "connecting to tor"
    BOOTSTRAPPING = "waiting for tor"
    PUBLISHING = "publishing"
    PUBLISHED = "published"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Status:
    """The state, and more about it: how many percent, or what went wrong."""

    state: State
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.state.value}: {self.detail}" if self.detail else self.state.value


class _TroubleError(Exception):
    """Why the service is not published; the text is for the log."""


class _RefusedError(_TroubleError):
    """Tor refuses what it was asked for."""


class OnionPublisher(Service):
    """Keeps an onion service published while it runs.

    `control` is where tor's control socket or port is; `password` is tried where its cookie is not
    used. `clients` gives the public keys of those who may connect, None for everybody, each
    time that the service is published; when it raises `KeyFileError`, it is not. `changed` is
    called with each new `Status`.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        control: IStreamClientEndpoint,
        key: OnionKey,
        service: OnionService,
        *,
        password: str | None = None,
        clients: Callable[[], tuple[str, ...] | None] = lambda: None,
        changed: Callable[[Status], None] = lambda status: None,
    ) -> None:
        self.status = Status(State.STOPPED)
        self.status_since: float = reactor.seconds()
        self.address = key.address
        self._reactor = reactor
        self._control = control
        self._key = key
        self._service = service
        self._password = password
        self._clients = clients
        self._changed = changed
        self._protocol: TorControlProtocol | None = None
        self._commands = DeferredLock()
        # Those who may connect, as was told by this control connection: nobody at first.
        self._let_in: tuple[str, ...] | None = ()
        self._running: Deferred[None] | None = None
        self._failures = 0

    @property
    def clients(self) -> int | None:
        """How many clients may connect, whether it is published or not; None for everybody."""
        try:
            clients = self._clients()
        except KeyFileError:
            return 0
        return None if clients is None else len(clients)

    # -- starting and stopping

    def startService(self) -> None:
        """Begins; whatever tor does, this does not fail."""
        super().startService()
        self._running = Deferred.fromCoroutine(self._run())
        self._running.addErrback(self._end)

    def stopService(self) -> Deferred[None] | None:
        """Takes the service back and leaves tor; done when that is."""
        super().stopService()
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
        return running

    def _end(self, failure: Failure) -> None:
        self._note(State.STOPPED)
        if not failure.check(CancelledError):
            self.log.failure("the onion service has ended", failure)

    # -- published again and again

    async def _run(self) -> None:
        while True:
            try:
                await self._publish()
            except _TroubleError as trouble:
                if not self.running:
                    # Of having been stopped while it was connecting.
                    raise CancelledError from None
                self._note(State.AWAY, str(trouble))
            delay = _retry_delay(self._failures)
            self._failures += 1
            await deferLater(self._reactor, delay)

    async def _publish(self) -> None:
        """Publishes, and stays until that has an end. Raises `_TroubleError`, always."""
        if self.status.state is not State.AWAY:
            # Otherwise it stays so, and is not told again with each attempt.
            self._note(State.CONNECTING)
        protocol = await self._connect()
        lost = _shielded(protocol.when_disconnected().addBoth(lambda _: None))
        try:
            await self._bootstrapped(protocol)
            await self._ask(protocol.add_event_listener("HS_DESC", self._descriptor))
            self._note(State.PUBLISHING)
            self._let_in = ()
            self._protocol = protocol
            async with self._commands:
                await self._add(protocol)
            await lost
        finally:
            self._protocol = None
            # Tor takes the service back at once.
            protocol.transport.abortConnection()
        raise _TroubleError("tor has closed the control connection")

    async def _connect(self) -> TorControlProtocol:
        factory = TorProtocolFactory(password_function=lambda: self._password)
        try:
            connecting: Deferred[Any] = self._control.connect(factory)
            protocol: TorControlProtocol = await connecting.addTimeout(ANSWER_TIME, self._reactor)
        except (ConnectError, ConnectingCancelledError, OSError, TookTooLong) as error:
            raise _TroubleError(f"tor's control socket cannot be reached: {error}") from None
        try:
            await _shielded(protocol.post_bootstrap).addTimeout(ANSWER_TIME, self._reactor)
        except CancelledError:
            protocol.transport.abortConnection()
            raise
        except Exception as error:  # noqa: BLE001 - of many kinds, and none holds a secret
            protocol.transport.abortConnection()
            raise _TroubleError(f"tor does not let us in: {_first_line(error)}") from None
        return protocol

    async def _bootstrapped(self, protocol: TorControlProtocol) -> None:
        while True:
            answer = str(await self._ask(protocol.get_info_raw("status/bootstrap-phase")))
            progress = _PROGRESS.search(answer)
            if progress is None:
                raise _TroubleError("tor does not say how far it is")
            if progress[1] == "100":
                return
            self._note(State.BOOTSTRAPPING, f"{progress[1]} %")
            await deferLater(self._reactor, BOOTSTRAP_INTERVAL)

    async def _add(self, protocol: TorControlProtocol) -> None:
        try:
            clients = self._clients()
        except KeyFileError as error:
            raise _TroubleError(str(error)) from None
        command = add_onion(self._service, self._key, clients)
        answer = str(await self._ask(protocol.queue_command(command)))
        name = self._key.address.removesuffix(".onion")
        if f"ServiceID={name}" not in answer.split():
            raise _TroubleError("tor has published another address")
        before, self._let_in = self._let_in, clients if clients is None else tuple(clients)
        if clients is not None and (not before or not set(before) <= set(clients)):
            await self._close_circuits(protocol)

    async def _close_circuits(self, protocol: TorControlProtocol) -> None:
        """Ends the connections of all clients; those that still may come again do so.

        A circuit outlives the service, and a client may connect by it as before.
        """
        status = str(await self._ask(protocol.get_info_raw("circuit-status")))
        for circuit in rendezvous_circuits(status, self._key):
            # Of one that has gone meanwhile tor says that there is none.
            with suppress(_RefusedError):
                await self._ask(protocol.queue_command(f"CLOSECIRCUIT {circuit}"))

    async def _ask(self, asked: Deferred[Any]) -> Any:
        """What tor answers. Raises `_TroubleError`, without what was asked: keys may be in it."""
        try:
            return await asked.addTimeout(ANSWER_TIME, self._reactor)
        except TorProtocolError as error:
            raise _RefusedError(f"tor refuses: {error.code} {error.text}") from None
        except TookTooLong:
            raise _TroubleError("tor does not answer") from None
        except TorDisconnectError:
            raise _TroubleError("tor has closed the control connection") from None

    def _descriptor(self, event: str) -> None:
        action, address, *_ = (*event.split(), "", "")
        if address == self._key.address.removesuffix(".onion") and action == "UPLOADED":
            self._failures = 0
            self._note(State.PUBLISHED)

    async def republish(self) -> None:
        """Has the clients that may connect now take effect; without tor, when it is there again."""
        protocol = self._protocol
        if protocol is None:
            return
        try:
            async with self._commands:
                if self._protocol is not protocol or self._unchanged():
                    # Or it has been lost, and the next one begins with them.
                    return
                await self._ask(protocol.queue_command(delete_onion(self._key)))
                self._note(State.PUBLISHING)
                await self._add(protocol)
        except _TroubleError as trouble:
            self.log.warn(  # noqa: G010 (the name Twisted gives it)
                "the onion service: {trouble}; it is published anew", trouble=trouble
            )
            protocol.transport.abortConnection()

    def _unchanged(self) -> bool:
        """Whether tor knows who may connect already: then there is no need to disturb it."""
        try:
            return self._clients() == self._let_in
        except KeyFileError:
            return False

    # -- status

    def _note(self, state: State, detail: str = "") -> None:
        status = Status(state, detail)
        if status == self.status:
            return
        before, self.status = self.status, status
        if before.state is not state:
            self.status_since = self._reactor.seconds()
        if (before.state, state) != (State.BOOTSTRAPPING, State.BOOTSTRAPPING):
            self.log.info("the onion service: {status}", status=status)
        self._changed(status)


def _shielded(waited_for: Deferred[Any]) -> Deferred[Any]:
    """The same result, for who may stop waiting for it."""
    result: Deferred[Any] = Deferred()

    def done(value: Any) -> None:
        if not result.called:
            result.callback(value)

    waited_for.addBoth(done)
    return result


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
