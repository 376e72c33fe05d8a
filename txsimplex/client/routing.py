"""Which relays a sender reaches by way of its proxy, and the sessions with all of them.

    router = Router(reactor, via=proxy_address, rules=RoutingRules(RoutingMode.ALWAYS))
    relay = router.relay(location)
    await relay.send(sender_id, b"hello")

What clients check of a relay behind a proxy is in `txsimplex.client.proxied`; when a session
is opened again, and when a relay is connected to directly instead, in smp-proxy.md §4.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from txsimplex.addresses import DEFAULT_SMP_PORT, RelayLocation, ServerAddress
from txsimplex.client.errors import DisconnectedError, HandshakeError, ProxyError
from txsimplex.client.link import BROKER, VERSION
from txsimplex.client.network import Network, for_each_connection
from txsimplex.client.proxied import ProxiedRelay, through
from txsimplex.client.sending import SenderCommands
from txsimplex.client.session import CONNECT_TIMEOUT
from txsimplex.client.smp import COMMAND_TIMEOUT, SMPClient, connect
from txsimplex.keys import PrivateKey, Random
from txsimplex.smp.commands import Command
from txsimplex.smp.errors import PROXY_NO_SESSION, Error
from txsimplex.smp.handshake import BAD_VERSION
from txsimplex.smp.messages import Message

_INCOMPATIBLE: Final = (VERSION, Error((*BROKER, "HOST")))
"""What a proxy answers that can never reach the relay, being too old or without Tor."""


_OPEN_NETWORK: Final = Network()


class RoutingMode(Enum):
    """Which relays are reached by way of the proxy."""

    ALWAYS = "always"
    UNKNOWN = "unknown"
    """Those that are not among the known ones."""
    UNPROTECTED = "unprotected"
    """Unknown ones, where a direct connection would show them the client's address."""
    NEVER = "never"


class Fallback(Enum):
    """Whether a relay that the proxy cannot reach, by its version or hosts, is connected to."""

    ALLOWED = "allowed"
    PROTECTED = "protected"
    """Only where that does not show it the client's address."""
    PROHIBITED = "prohibited"


@dataclass(frozen=True, slots=True)
class RoutingRules:
    """The user's decisions about the proxy; `known` are the relays that the user has chosen."""

    mode: RoutingMode = RoutingMode.UNKNOWN
    fallback: Fallback = Fallback.PROTECTED
    known: frozenset[RelayLocation] = field(default=frozenset(), repr=False)

    def by_proxy(self, location: RelayLocation, *, protected: bool) -> bool:
        """Whether a relay is reached by way of the proxy.

        `protected` says whether a direct connection hides the client's address from it.
        """
        if self.mode in (RoutingMode.ALWAYS, RoutingMode.NEVER):
            return self.mode is RoutingMode.ALWAYS
        if any(_is(location, known) for known in self.known):
            return False
        return self.mode is RoutingMode.UNKNOWN or not protected

    def directly_after(self, error: Exception, *, protected: bool) -> bool:
        """Whether a relay is connected to when the proxy has failed to reach it like this.

        The proxy could say so of any relay; who does not trust it so far prohibits it.
        """
        if self.fallback is Fallback.PROHIBITED:
            return False
        if self.fallback is Fallback.PROTECTED and not protected:
            return False
        if isinstance(error, ProxyError):
            return error.error in _INCOMPATIBLE
        return isinstance(error, HandshakeError) and error.error == BAD_VERSION


def _is(location: RelayLocation, known: RelayLocation) -> bool:
    """Whether a location is that of a known relay, perhaps with fewer of its hosts.

    One host more would be a way to have the client connect to it, whose it ever is.
    """
    default = str(DEFAULT_SMP_PORT)
    return (
        location.key_hash == known.key_hash
        and (location.port or default) == (known.port or default)
        and set(location.hosts) <= set(known.hosts)
    )


class _Connected(Protocol):
    @property
    def connected(self) -> bool:
        """Whether it can be used."""


_Opened = TypeVar("_Opened", bound=_Connected)


class _Kept(Generic[_Opened]):
    """What is opened once for all who ask for it, and again when it is not connected any more."""

    def __init__(self, opening: Callable[[], Coroutine[Any, Any, _Opened]]) -> None:
        self._open = opening
        self._opened: _Opened | None = None
        self._opening = False
        self._waiting: list[Deferred[_Opened]] = []

    def get(self) -> Deferred[_Opened]:
        """Fails as opening does; who does not wait any more leaves the others waiting."""
        waiting: Deferred[_Opened] = Deferred(self._leave)
        if self._opened is not None and self._opened.connected:
            waiting.callback(self._opened)
            return waiting
        self._waiting.append(waiting)
        if not self._opening:
            self._opening = True
            Deferred.fromCoroutine(self._open()).addCallbacks(self._succeeded, self._failed)
        return waiting

    def drop(self, opened: object) -> None:
        """Opens again the next time, unless that was done already."""
        if self._opened is opened:
            self._opened = None

    def _leave(self, waiting: Deferred[_Opened]) -> None:
        # It is there no more when another's callback has it cancelled at the last moment.
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def _succeeded(self, opened: _Opened) -> None:
        self._opened = opened
        for each in self._ended():
            if not each.called:
                each.callback(opened)

    def _failed(self, failure: Failure) -> None:
        for each in self._ended():
            if not each.called:
                each.errback(failure.value)

    def _ended(self) -> list[Deferred[_Opened]]:
        self._opening = False
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting


class Router:
    """Sessions with relays for the commands of senders, by way of the proxy `via` or directly.

    Sessions are opened when they are needed, shared, and opened again for the next command
    when they were lost. `network` is how the client connects, to relays and to the proxy;
    `via` may be None where the mode is NEVER. `timeout` is in seconds for connecting and
    `command_timeout` for an answer, twice that by way of the proxy (smp-proxy.md §5).
    """

    def __init__(
        self,
        reactor: Any,
        *,
        via: ServerAddress | None,
        rules: RoutingRules = RoutingRules(),
        network: Network = _OPEN_NETWORK,
        timeout: float = CONNECT_TIMEOUT,
        command_timeout: float = COMMAND_TIMEOUT,
        random: Random = os.urandom,
    ) -> None:
        if via is None and rules.mode is not RoutingMode.NEVER:
            raise ValueError("this mode needs a proxy")
        self._reactor = reactor
        self._via = via
        self._rules = rules
        self._network = network
        self._timeout = timeout
        self._command_timeout = command_timeout
        self._random = random
        self._isolation = for_each_connection(random)
        self._closed = False
        self._clients: list[SMPClient] = []
        self._proxy = _Kept(self._connect_to_proxy)
        self._sessions: dict[RelayLocation, _Kept[SMPClient | ProxiedRelay]] = {}

    def relay(self, location: RelayLocation | ServerAddress) -> RoutedRelay:
        """The relay at a location; nothing is sent before its first command."""
        where = location.location if isinstance(location, ServerAddress) else location
        kept = self._sessions.get(where)
        if kept is None:
            kept = self._sessions[where] = _Kept(lambda: self._open(where))
        return RoutedRelay(kept, self._command_timeout)

    async def close(self) -> None:
        """Closes all connections, and makes no more."""
        self._closed = True
        clients, self._clients = self._clients, []
        for client in clients:
            await client.close()

    async def _open(self, location: RelayLocation) -> SMPClient | ProxiedRelay:
        protected = self._network.protects(location)
        if self._rules.by_proxy(location, protected=protected):
            # What goes wrong with the proxy itself says nothing of the relay: no fallback.
            proxy = await self._proxy.get()
            try:
                return await self._through(proxy, location)
            except (ProxyError, HandshakeError) as error:
                if not self._rules.directly_after(error, protected=protected):
                    raise
        return await self._connect(location)

    async def _through(self, proxy: SMPClient, location: RelayLocation) -> ProxiedRelay:
        assert self._via is not None
        password = self._via.password
        return await through(
            proxy,
            location,
            password=None if password is None else password.encode(),
            # The proxy has to connect before it answers.
            timeout=self._timeout + self._command_timeout,
            random=self._random,
        )

    async def _connect_to_proxy(self) -> SMPClient:
        assert self._via is not None
        return await self._connect(self._via.location)

    async def _connect(self, location: RelayLocation) -> SMPClient:
        self._refuse_when_closed()
        client = await connect(
            self._network.endpoint(self._reactor, location, self._isolation),
            location,
            timeout=self._timeout,
            command_timeout=self._command_timeout,
            # Senders expect no events, and those that wait would keep answers back.
            on_event=_ignore,
            clock=IReactorTime(self._reactor),
            random=self._random,
        )
        self._clients = [*(each for each in self._clients if each.connected), client]
        try:
            self._refuse_when_closed()
        except DisconnectedError:
            client.abort()
            raise
        return client

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise DisconnectedError("the router is closed")


def _ignore(event: object) -> None:
    """Takes an event that nobody waits for."""


class RoutedRelay(SenderCommands):
    """A relay as a router reaches it; `Router.relay` makes it."""

    def __init__(self, kept: _Kept[SMPClient | ProxiedRelay], command_timeout: float) -> None:
        self._kept = kept
        self._command_timeout = command_timeout

    async def request(
        self,
        command: Command,
        entity_id: bytes = b"",
        key: PrivateKey | None = None,
        *,
        timeout: float | None = None,
    ) -> Message:
        """The relay's answer to a command; `timeout` begins when the session is there.

        Raises what `connect`, `through` and `ProxiedRelay.request` raise, and `NoWayError`.
        When the proxy has lost the relay, the session is opened again and the command, which
        was not forwarded, is sent once more (smp-proxy.md §4).
        """
        session = await self._kept.get()
        try:
            return await self._ask_in(session, command, entity_id, key, timeout)
        except ProxyError as error:
            if error.error != PROXY_NO_SESSION:
                raise
        self._kept.drop(session)
        session = await self._kept.get()
        return await self._ask_in(session, command, entity_id, key, timeout)

    async def _ask_in(
        self,
        session: SMPClient | ProxiedRelay,
        command: Command,
        entity_id: bytes,
        key: PrivateKey | None,
        timeout: float | None,
    ) -> Message:
        if timeout is None and isinstance(session, ProxiedRelay):
            timeout = 2 * self._command_timeout
        return await session.request(command, entity_id, key, timeout=timeout)
