"""Private routing, at the proxy: sessions with relays, and commands for them (smp-proxy.md).

A sender asks for a session with a relay (PRXY), and sends commands for it (PFWD), which the
proxy cannot read. Answers come in any order, apart from those to other commands. A relay
that is slow or dead holds up nobody else: each client has so many commands under way with each
relay, and the next ones wait for that relay only.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure

from smpd.counters import Counters
from smpd.peers import Peer
from txsimplex.addresses import RelayLocation
from txsimplex.client.link import (
    ANSWER_TIME,
    BAD_RESPONSE,
    NETWORK,
    NO_AUTH,
    TIMED_OUT,
    VERSION,
    RelayLink,
)
from txsimplex.client.pool import RelayPool, UnreachableError
from txsimplex.smp import commands as c, errors
from txsimplex.smp.errors import Error
from txsimplex.smp.forwarding import Forwarded
from txsimplex.smp.messages import Pres
from txsimplex.smp.transmissions import Transmission

ROUTED: Final = frozenset((c.Prxy, c.Pfwd))
"""The commands that the proxy answers."""


class ProxyClient(Protocol):
    """A connection of a sender."""

    peer: Peer

    def reply(self, header: bytes, message: bytes) -> bool:
        """Answers a command, whenever that is; or not, when that fits into no block."""


@dataclass(frozen=True, slots=True)
class ProxyRules:
    """What the operator decides about the proxy.

    `password` is that of NEW, None for none. `client_concurrency` is how many commands of one
    client to one relay may be under way, and how many relays it may ask for at the same
    time; `client_waiting` how many more of each may wait. `own_domains` are those of relays
    that are counted apart.
    """

    password: bytes | None = field(default=None, repr=False)
    client_concurrency: int = 32
    client_waiting: int = 128
    own_domains: tuple[str, ...] = ()

    def is_own(self, location: RelayLocation) -> bool:
        """Whether a relay is of one of the operator's own domains (§5.3)."""
        name = location.hosts[0].text
        return any(name == each or name.endswith("." + each) for each in self.own_domains)


@dataclass(slots=True)
class _Waiting:
    """A command that waits for others to the same relay."""

    transmission: Transmission
    forwarded: Forwarded
    since: float


@dataclass(slots=True)
class _Client:
    """What is under way for one client, and what waits, by relay."""

    asking: int = 0
    asks: deque[Transmission] = field(default_factory=deque)
    active: dict[RelayLink, int] = field(default_factory=dict)
    waiting: dict[RelayLink, deque[_Waiting]] = field(default_factory=dict)
    waiting_count: int = 0


class Proxy:
    """Answers PRXY and PFWD."""

    log = Logger()

    def __init__(
        self,
        pool: RelayPool,
        rules: ProxyRules,
        counters: Counters,
        seconds: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._rules = rules
        self._counters = counters
        self._seconds = seconds
        self._clients: dict[ProxyClient, _Client] = {}
        self._own: set[RelayLink] = set()

    def take(self, client: ProxyClient, t: Transmission) -> None:
        """Takes a PRXY or PFWD of a client, and answers it some time."""
        command = t.command
        if isinstance(command, c.Prxy):
            self._ask_for_relay(client, t, command)
        elif isinstance(command, c.Pfwd):
            self._forward(client, t, command)

    def leave(self, client: ProxyClient) -> None:
        """Forgets a client whose connection has ended; what is under way goes on."""
        known = self._clients.pop(client, None)
        if known is not None:
            known.asks.clear()
            known.waiting.clear()

    def close(self) -> None:
        """Ends all connections to relays."""
        self._pool.close()

    # -- PRXY

    def _ask_for_relay(self, client: ProxyClient, t: Transmission, command: c.Prxy) -> None:
        password = self._rules.password
        if password is not None and not hmac.compare_digest(password, command.password or b""):
            self._refuse(client, t, errors.PROXY_BASIC_AUTH)
            return
        self._count("relays_asked", self._rules.is_own(command.relay))
        known = self._known(client)
        if known.asking < self._rules.client_concurrency:
            self._ask(client, known, t, command.relay)
        elif len(known.asks) < self._rules.client_waiting:
            known.asks.append(t)
        else:
            self._unreachable(client, t, command.relay, TIMED_OUT)

    def _known(self, client: ProxyClient) -> _Client:
        known = self._clients.get(client)
        if known is None:
            known = self._clients[client] = _Client()
        return known

    def _ask(
        self, client: ProxyClient, known: _Client, t: Transmission, location: RelayLocation
    ) -> None:
        """Asks the pool for a relay, and then for the next one that this client waits for."""
        known.asking += 1

        def found(link: RelayLink) -> None:
            self._show(link, client, t, location)

        def failed(failure: Failure) -> None:
            error = failure.value
            reason = error.error if isinstance(error, UnreachableError) else errors.INTERNAL
            self._unreachable(client, t, location, reason)

        def ended(result: None) -> None:
            known.asking -= 1
            if known.asks and known.asking < self._rules.client_concurrency:
                waiting = known.asks.popleft()
                assert isinstance(waiting.command, c.Prxy)
                self._ask(client, known, waiting, waiting.command.relay)

        asked = self._pool.link(location).addCallbacks(found, failed)
        asked.addErrback(self._failed).addCallback(ended)

    def _show(
        self, link: RelayLink, client: ProxyClient, t: Transmission, location: RelayLocation
    ) -> None:
        key, own = link.key(), self._rules.is_own(location)
        if isinstance(key, Error):
            self._count("relays_incompatible", own)
            self._refuse(client, t, key)
            return
        if own and link not in self._own:
            self._own.add(link)
            link.when_lost(self._own.discard)
        if client.reply(t.header, key.encode(client.peer.version)):
            self._count("relays_connected", own)
        else:
            self._count("relays_failed", own)
            self._refuse(client, t, BAD_RESPONSE)

    def _unreachable(
        self, client: ProxyClient, t: Transmission, location: RelayLocation, reason: Error
    ) -> None:
        own = self._rules.is_own(location)
        if reason in (VERSION, NO_AUTH):
            self._count("relays_incompatible", own)
        elif reason in (NETWORK, TIMED_OUT):
            self._count("relays_unreachable", own)
        else:
            self._count("relays_failed", own)
        self._refuse(client, t, reason)

    def _failed(self, failure: Failure) -> None:
        self.log.failure("an answer of the proxy has failed", failure=failure)

    # -- PFWD

    def _forward(self, client: ProxyClient, t: Transmission, command: c.Pfwd) -> None:
        link = self._pool.session(t.entity_id)
        if link is None:
            self._counters.forwards += 1
            self._counters.forwards_unknown += 1
            self._refuse(client, t, errors.PROXY_NO_SESSION)
            return
        self._count("forwards", link in self._own)
        forwarded = Forwarded(t.corr_id, command.version, command.key, command.transmission)
        known = self._known(client)
        waiting = _Waiting(t, forwarded, self._seconds())
        if known.active.get(link, 0) < self._rules.client_concurrency:
            self._start(client, known, link, waiting)
        elif known.waiting_count < self._rules.client_waiting:
            known.waiting_count += 1
            known.waiting.setdefault(link, deque()).append(waiting)
        else:
            self._answer(client, link, t, TIMED_OUT)

    def _start(
        self, client: ProxyClient, known: _Client, link: RelayLink, waiting: _Waiting
    ) -> None:
        known.active[link] = known.active.get(link, 0) + 1

        def answered(answer: bytes | Error) -> None:
            if known.active[link] == 1:
                del known.active[link]
            else:
                known.active[link] -= 1
            self._answer(client, link, waiting.transmission, answer)
            self._start_next(client, known, link)

        link.forward(waiting.forwarded, answered)

    def _start_next(self, client: ProxyClient, known: _Client, link: RelayLink) -> None:
        others = known.waiting.get(link)
        while others and known.active.get(link, 0) < self._rules.client_concurrency:
            waiting = others.popleft()
            known.waiting_count -= 1
            if not others:
                known.waiting.pop(link, None)
            if self._seconds() - waiting.since >= ANSWER_TIME:
                self._answer(client, link, waiting.transmission, TIMED_OUT)
            else:
                self._start(client, known, link, waiting)

    def _answer(
        self, client: ProxyClient, link: RelayLink, t: Transmission, answer: bytes | Error
    ) -> None:
        own = link in self._own
        if not isinstance(answer, Error):
            if client.reply(t.header, Pres(answer).encode(client.peer.version)):
                self._count("forwards_answered", own)
                return
            answer = BAD_RESPONSE
        if answer.path[:2] == ("PROXY", "PROTOCOL"):
            self._count("forwards_answered", own)
        elif answer == VERSION:
            self._count("forwards_incompatible", own)
        else:
            self._count("forwards_failed", own)
        self._refuse(client, t, answer)

    def _refuse(self, client: ProxyClient, t: Transmission, error: Error) -> None:
        version = client.peer.version
        if not client.reply(t.header, b"ERR " + error.encode(version)):
            # The text of a relay's error.
            client.reply(t.header, b"ERR " + BAD_RESPONSE.encode(version))

    def _count(self, name: str, own: bool) -> None:
        counters = self._counters
        setattr(counters, name, getattr(counters, name) + 1)
        if own:
            setattr(counters, "own_" + name, getattr(counters, "own_" + name) + 1)
