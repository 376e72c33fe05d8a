"""A connection to tor's control socket or port: opened, asked by, and lost.

connection = await open_control(reactor, endpoint, password)
answer = await connection.ask("GETINFO version")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, TimeoutError as TookTooLong
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from txtorcon import TorProtocolError
from txtorcon.torcontrolprotocol import TorControlProtocol, TorDisconnectError, TorProtocolFactory

__all__ = ["ControlConnection", "RefusedError", "TroubleError", "open_control"]

ANSWER_TIME: Final = 30.0
"""Seconds that tor has for an answer, and for all of the authentication."""


class TroubleError(Exception):
    """What is wrong with tor; the text is for the log."""


class RefusedError(TroubleError):
    """Tor refuses what it was asked for."""


class ControlConnection:
    """One that tor has let in. `protocol` is txtorcon's."""

    def __init__(self, reactor: Any, protocol: TorControlProtocol) -> None:
        self._is_lost = False
        self._why_lost = "tor has closed the control connection"
        self._reactor = reactor
        self._protocol = protocol
        self._waiting: set[Deferred[Any]] = set()
        # With a value in txtorcon 22, with a failure in 26.
        protocol.when_disconnected().addBoth(self._lost)

    async def ask(self, command: str) -> str:
        """What tor answers to a command, which may have a key in it.

        Raises `RefusedError`, or another `TroubleError`, none of which tells the command.
        """
        if not command.isascii():
            # txtorcon raises an error that has the command in it.
            raise TroubleError("tor cannot be told of what is not ASCII")
        return str(await self._answered(self._protocol.queue_command, command))

    async def status(self, name: str) -> str:
        """What tor says of itself (GETINFO). Raises `TroubleError`."""
        return str(await self._answered(self._protocol.get_info_raw, name))

    async def listen(self, event: str, told: Callable[[str], None]) -> None:
        """Has `told` called with each event of a kind. Raises `TroubleError`."""
        await self._answered(self._protocol.add_event_listener, event, told)

    async def pause(self, seconds: float) -> None:
        """Waits, but not for longer than the connection is there. Raises `TroubleError`."""
        await self._while_there(deferLater(self._reactor, seconds))

    async def end(self) -> None:
        """Waits until the connection is lost. Raises `TroubleError`, always."""
        await self._while_there(Deferred())

    def close(self, why: str | None = None) -> None:
        """Leaves tor, which takes back at once what is bound to the connection.

        `why` is what those are told who still wait for something.
        """
        self._why_lost = why or self._why_lost
        self._protocol.transport.abortConnection()

    async def _answered(self, ask: Callable[..., Deferred[Any]], *arguments: Any) -> Any:
        if self._is_lost:
            raise TroubleError(self._why_lost)
        try:
            asked = ask(*arguments).addTimeout(ANSWER_TIME, self._reactor)
            return await self._while_there(asked)
        except TorProtocolError as error:
            raise RefusedError(f"tor refuses: {error.code} {error.text}") from None
        except TookTooLong:
            raise TroubleError("tor does not answer") from None
        except TorDisconnectError:
            raise TroubleError(self._why_lost) from None

    async def _while_there(self, waited_for: Deferred[Any]) -> Any:
        # txtorcon 22 never answers what was asked shortly before the connection was lost.
        self._waiting.add(waited_for)
        if self._is_lost:
            waited_for.cancel()
        try:
            return await waited_for
        except CancelledError:
            if self._is_lost:
                raise TroubleError(self._why_lost) from None
            raise
        finally:
            self._waiting.discard(waited_for)

    def _lost(self, _: Any) -> None:
        self._is_lost = True
        for waiting in tuple(self._waiting):
            waiting.cancel()


async def open_control(
    reactor: Any, endpoint: IStreamClientEndpoint, password: str | None
) -> ControlConnection:
    """Connects, and is let in by tor's cookie, or by the password. Raises `TroubleError`."""
    factory = TorProtocolFactory(password_function=lambda: password)
    try:
        connecting: Deferred[Any] = endpoint.connect(factory)
        protocol: TorControlProtocol = await connecting.addTimeout(ANSWER_TIME, reactor)
    except (ConnectError, ConnectingCancelledError, OSError, TookTooLong) as error:
        raise TroubleError(f"tor's control socket cannot be reached: {error}") from None
    try:
        await _shielded(protocol.post_bootstrap).addTimeout(ANSWER_TIME, reactor)
    except CancelledError:
        protocol.transport.abortConnection()
        raise
    except Exception as error:  # noqa: BLE001 - of many kinds, and none holds a secret
        protocol.transport.abortConnection()
        raise TroubleError(f"tor does not let us in: {_first_line(error)}") from None
    return ControlConnection(reactor, protocol)


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
