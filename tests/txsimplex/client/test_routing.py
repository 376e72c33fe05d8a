"""Which relays are reached by way of the proxy, and which directly (smp-proxy.md §4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock

from txsimplex.addresses import Host, RelayLocation
from txsimplex.client.errors import (
    ClientError,
    DisconnectedError,
    HandshakeError,
    IdentityError,
    ProxyError,
    RelayError,
    TimedOutError,
)
from txsimplex.client.routing import Fallback, Router, RoutingMode, RoutingRules, _Kept
from txsimplex.smp.errors import decode_error
from txsimplex.smp.handshake import BAD_IDENTITY, BAD_VERSION

ONION = Host.parse("a" * 56 + ".onion")
KNOWN = RelayLocation((Host.parse("smp.example.com"), ONION), "", b"k" * 32)
UNKNOWN = RelayLocation((Host.parse("smp.example.org"),), "", b"u" * 32)


@pytest.mark.parametrize(
    ("mode", "known", "protected", "by_proxy"),
    [
        (RoutingMode.ALWAYS, False, False, True),
        (RoutingMode.ALWAYS, False, True, True),
        (RoutingMode.ALWAYS, True, False, True),
        (RoutingMode.ALWAYS, True, True, True),
        (RoutingMode.UNKNOWN, False, False, True),
        (RoutingMode.UNKNOWN, False, True, True),
        (RoutingMode.UNKNOWN, True, False, False),
        (RoutingMode.UNKNOWN, True, True, False),
        (RoutingMode.UNPROTECTED, False, False, True),
        (RoutingMode.UNPROTECTED, False, True, False),
        (RoutingMode.UNPROTECTED, True, False, False),
        (RoutingMode.UNPROTECTED, True, True, False),
        (RoutingMode.NEVER, False, False, False),
        (RoutingMode.NEVER, False, True, False),
        (RoutingMode.NEVER, True, False, False),
        (RoutingMode.NEVER, True, True, False),
    ],
)
def test_which_relays_are_reached_by_the_proxy(
    mode: RoutingMode, *, known: bool, protected: bool, by_proxy: bool
) -> None:
    rules = RoutingRules(mode, known=frozenset({KNOWN}))
    location = KNOWN if known else UNKNOWN
    assert rules.by_proxy(location, protected=protected) is by_proxy


@pytest.mark.parametrize(
    ("location", "known"),
    [
        (replace(KNOWN, port="5223"), True),
        (replace(KNOWN, hosts=KNOWN.hosts[:1]), True),
        (replace(KNOWN, hosts=KNOWN.hosts[::-1]), True),
        (replace(KNOWN, port="443"), False),
        (replace(KNOWN, key_hash=bytes(32)), False),
        (replace(KNOWN, hosts=(*UNKNOWN.hosts, *KNOWN.hosts)), False),
    ],
)
def test_what_makes_a_relay_a_known_one(location: RelayLocation, *, known: bool) -> None:
    """Whoever makes a link could put a host of their own beside those of a known relay."""
    rules = RoutingRules(RoutingMode.UNKNOWN, known=frozenset({KNOWN}))
    assert rules.by_proxy(location, protected=False) is not known


def proxy_error(text: str) -> ProxyError:
    return ProxyError(decode_error(text.encode("ascii")))


CANNOT = [
    proxy_error("PROXY BROKER TRANSPORT VERSION"),
    proxy_error("PROXY BROKER HOST"),
    HandshakeError(BAD_VERSION),
]
DID_NOT = [
    proxy_error("PROXY BROKER NETWORK"),
    proxy_error("PROXY BROKER TIMEOUT"),
    proxy_error("PROXY BROKER TRANSPORT HANDSHAKE IDENTITY"),
    proxy_error("PROXY BROKER TRANSPORT NO_AUTH"),
    proxy_error("PROXY PROTOCOL AUTH"),
    proxy_error("PROXY BASIC_AUTH"),
    proxy_error("PROXY NO_SESSION"),
    proxy_error("AUTH"),
    RelayError(decode_error(b"PROXY BROKER TRANSPORT VERSION")),
    HandshakeError(BAD_IDENTITY),
    IdentityError("another chain"),
    TimedOutError("no answer"),
    DisconnectedError("lost"),
]


@pytest.mark.parametrize("protected", [False, True])
@pytest.mark.parametrize("fallback", Fallback)
def test_when_a_relay_is_connected_to_instead(fallback: Fallback, *, protected: bool) -> None:
    rules = RoutingRules(fallback=fallback)
    allowed = fallback is Fallback.ALLOWED or (fallback is Fallback.PROTECTED and protected)
    for error in CANNOT:
        assert rules.directly_after(error, protected=protected) is allowed
    for error in DID_NOT:
        assert not rules.directly_after(error, protected=protected)


def test_a_mode_that_needs_a_proxy() -> None:
    for mode in RoutingMode:
        rules = RoutingRules(mode)
        if mode is RoutingMode.NEVER:
            Router(MemoryReactorClock(), via=None, rules=rules)
            continue
        with pytest.raises(ValueError, match="needs a proxy"):
            Router(MemoryReactorClock(), via=None, rules=rules)


def test_known_relays_are_not_shown() -> None:
    assert "example" not in repr(RoutingRules(known=frozenset({KNOWN})))


# -- one session for all who ask


class Opened:
    """A session that is connected until it is said not to be."""

    connected = True


class Opening:
    """Opens when the test says so."""

    def __init__(self) -> None:
        self.begun: list[Deferred[Opened]] = []
        self.kept = _Kept(self._open)

    async def _open(self) -> Opened:
        self.begun.append(Deferred())
        return await self.begun[-1]


def outcomes(*waiting: Deferred[Opened]) -> list[Any]:
    results: list[Any] = []
    for each in waiting:
        each.addCallbacks(results.append, lambda failure: results.append(failure.value))
    return results


def test_all_who_ask_share_what_is_opened_once() -> None:
    opening = Opening()
    results = outcomes(opening.kept.get(), opening.kept.get())
    assert (len(opening.begun), results) == (1, [])
    opened = Opened()
    opening.begun[0].callback(opened)
    later = outcomes(opening.kept.get())
    assert (len(opening.begun), results, later) == (1, [opened, opened], [opened])


def test_what_fails_fails_for_all_and_is_tried_again() -> None:
    opening = Opening()
    results = outcomes(opening.kept.get(), opening.kept.get())
    opening.begun[0].errback(ClientError("no"))
    assert [str(each) for each in results] == ["no", "no"]
    outcomes(opening.kept.get())
    assert len(opening.begun) == 2


def test_who_does_not_wait_leaves_the_others_waiting() -> None:
    opening = Opening()
    first, second = opening.kept.get(), opening.kept.get()
    gone, results = outcomes(first), outcomes(second)
    first.cancel()
    assert len(gone) == 1
    opened = Opened()
    opening.begun[0].callback(opened)
    assert results == [opened]


def test_what_was_lost_or_dropped_is_opened_again() -> None:
    opening = Opening()
    outcomes(opening.kept.get())
    first, second = Opened(), Opened()
    opening.begun[0].callback(first)
    opening.kept.drop(first)
    outcomes(opening.kept.get())
    opening.begun[1].callback(second)
    opening.kept.drop(first)
    assert outcomes(opening.kept.get()) == [second]
    second.connected = False
    outcomes(opening.kept.get())
    assert len(opening.begun) == 3
