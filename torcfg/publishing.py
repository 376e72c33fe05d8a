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
from traceback import format_tb
from typing import Any, Final

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from torcfg.control_connections import ControlConnection, RefusedError, TroubleError, open_control
from torcfg.onion_keys import KeyFileError, OnionKey
from torcfg.onion_services import OnionService, add_onion, delete_onion, rendezvous_circuits

__all__ = ["OnionPublisher", "State", "Status"]

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
        self._tor: ControlConnection | None = None
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
            except CancelledError:
                raise
            except TroubleError as trouble:
                why = str(trouble)
            except Exception as error:  # noqa: BLE001 - whatever it is, the service comes back
                why = f"a fault of the relay: {type(error).__name__}"
                # Without the error itself and what led to it: there may be a key in them.
                frames = "".join(format_tb(error.__traceback__))
                self.log.error("the onion service: {why}\n{frames}", why=why, frames=frames)
            if not self.running:
                # Of having been stopped while it was connecting.
                raise CancelledError
            self._note(State.AWAY, why)
            delay = _retry_delay(self._failures)
            self._failures += 1
            await deferLater(self._reactor, delay)

    async def _publish(self) -> None:
        """Publishes, and stays until that has an end. Raises `TroubleError`, always."""
        if self.status.state is not State.AWAY:
            # Otherwise it stays so, and is not told again with each attempt.
            self._note(State.CONNECTING)
        tor = await open_control(self._reactor, self._control, self._password)
        try:
            await self._bootstrapped(tor)
            await tor.listen("HS_DESC", self._descriptor)
            self._let_in = ()
            self._tor = tor
            async with self._commands:
                await self._add(tor, self._may_connect())
            await tor.end()
        finally:
            self._tor = None
            tor.close()

    async def _bootstrapped(self, tor: ControlConnection) -> None:
        while True:
            progress = _PROGRESS.search(await tor.status("status/bootstrap-phase"))
            if progress is None:
                raise TroubleError("tor does not say how far it is")
            if progress[1] == "100":
                return
            self._note(State.BOOTSTRAPPING, f"{progress[1]} %")
            await tor.pause(BOOTSTRAP_INTERVAL)

    def _may_connect(self) -> tuple[str, ...] | None:
        try:
            return self._clients()
        except KeyFileError as error:
            raise TroubleError(str(error)) from None

    async def _add(self, tor: ControlConnection, clients: tuple[str, ...] | None) -> None:
        answer = await tor.ask(add_onion(self._service, self._key, clients))
        name = self._key.address.removesuffix(".onion")
        if f"ServiceID={name}" not in answer.split():
            raise TroubleError("tor has published another address")
        if self.status.state is not State.PUBLISHED:
            # Not before tor has taken it: one that is refused stays away.
            self._note(State.PUBLISHING)
        before, self._let_in = self._let_in, clients
        if clients is not None and (not before or not set(before) <= set(clients)):
            await self._close_circuits(tor)

    async def _close_circuits(self, tor: ControlConnection) -> None:
        """Ends the connections of all clients; those that still may come again do so.

        A circuit outlives the service, and a client may connect by it as before.
        """
        for circuit in rendezvous_circuits(await tor.status("circuit-status"), self._key):
            # Of one that has gone meanwhile tor says that there is none.
            with suppress(RefusedError):
                await tor.ask(f"CLOSECIRCUIT {circuit}")

    def _descriptor(self, event: str) -> None:
        action, address, *_ = (*event.split(), "", "")
        if address == self._key.address.removesuffix(".onion") and action == "UPLOADED":
            self._failures = 0
            self._note(State.PUBLISHED)

    async def republish(self) -> None:
        """Has the clients that may connect now take effect; without tor, when it is there again.

        When that cannot be, the service is away: who may connect no more must not.
        """
        tor = self._tor
        if tor is None:
            return
        try:
            async with self._commands:
                if self._tor is not tor:
                    # It has been lost, and the next one begins with them.
                    return
                clients = self._may_connect()
                if clients == self._let_in:
                    # No need to disturb what is as it should be.
                    return
                await tor.ask(delete_onion(self._key))
                self._note(State.PUBLISHING)
                await self._add(tor, clients)
        except TroubleError as trouble:
            if self._tor is tor and self.running:
                self._note(State.AWAY, str(trouble))
            tor.close(str(trouble))

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
