"""A SOCKS 5 proxy as an endpoint (RFC 1928, RFC 1929)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, strategies as st
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from txsimplex.client.socks import (
    SocksCredentials,
    SocksEndpoint,
    SocksError,
    SocksHandshake,
)

NONE = b"\x05\x00"
"""The proxy wants no credentials."""
PASSWORD = b"\x05\x02"
DONE = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"


def test_a_name_is_given_to_the_proxy_as_it_is() -> None:
    handshake = SocksHandshake("abc.onion", 5223, None)
    assert handshake.begin() == b"\x05\x01\x00"
    assert handshake.receive(NONE) == b"\x05\x01\x00\x03\x09abc.onion\x14\x67"
    assert handshake.receive(DONE + b"TLS") == b""
    assert handshake.done
    assert handshake.rest == b"TLS"


def test_addresses_are_given_as_such() -> None:
    ipv4, ipv6 = SocksHandshake("1.2.3.4", 1, None), SocksHandshake("::1", 1, None)
    assert ipv4.receive(NONE) == b"\x05\x01\x00\x01\x01\x02\x03\x04\x00\x01"
    assert ipv6.receive(NONE) == b"\x05\x01\x00\x04" + bytes(15) + b"\x01\x00\x01"


def test_credentials() -> None:
    handshake = SocksHandshake("a.b", 1, SocksCredentials(b"name", b"secret"))
    assert handshake.begin() == b"\x05\x01\x02"
    assert handshake.receive(PASSWORD) == b"\x01\x04name\x06secret"
    assert handshake.receive(b"\x01\x00")[:3] == b"\x05\x01\x00"
    assert handshake.receive(DONE) == b""
    assert handshake.done
    assert "secret" not in repr(SocksCredentials(b"name", b"secret"))


@pytest.mark.parametrize(
    ("received", "says"),
    [
        (b"\x05\xff", "does not accept"),
        (b"\x04\x00", "does not accept"),
        (NONE + b"\x05\x05\x00\x01\x00", "connection refused"),
        (NONE + b"\x05\x63\x00\x01\x00", "code 99"),
        (NONE + b"\x04\x00\x00\x01\x00", "does not speak"),
        (NONE + b"\x05\x00\x00\x09\x00", "does not speak"),
    ],
)
def test_refusals(received: bytes, says: str) -> None:
    with pytest.raises(SocksError, match=says):
        SocksHandshake("a.b", 1, None).receive(received)


def test_wrong_credentials() -> None:
    handshake = SocksHandshake("a.b", 1, SocksCredentials(b"name", b"secret"))
    with pytest.raises(SocksError, match="credentials"):
        handshake.receive(PASSWORD + b"\x01\x01")


@given(st.lists(st.integers(0, 40)), st.sampled_from([DONE, b"\x05\0\0\3\2ab\0\1"]))
def test_it_may_come_in_any_pieces(cuts: list[int], done: bytes) -> None:
    whole, handshake = NONE + done + b"rest", SocksHandshake("a.b", 1, None)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    for start, end in itertools.pairwise(places):
        handshake.receive(whole[start:end])
    assert handshake.done
    assert handshake.rest == b"rest"


@given(st.binary(max_size=60))
def test_any_bytes_are_a_refusal_or_nothing_else(data: bytes) -> None:
    handshake = SocksHandshake("a.b", 1, None)
    try:
        handshake.receive(data)
    except SocksError:
        return
    assert handshake.done == (data[:2] == NONE and data[2:4] == b"\x05\x00" and len(data) > 8)


class Inner(Protocol):
    """What is connected through the proxy."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = Failure(Exception())) -> None:  # noqa: B008
        self.lost = reason


def connecting() -> tuple[MemoryReactorClock, Any, list[Any]]:
    """A reactor, the connection to the proxy, and what became of the endpoint's."""
    reactor = MemoryReactorClock()
    endpoint = SocksEndpoint(TCP4ClientEndpoint(reactor, "127.0.0.1", 9050), "a.onion", 5223)
    results: list[Any] = []
    made = endpoint.connect(Factory.forProtocol(Inner))
    made.addBoth(results.append)
    results.append(made)
    factory = reactor.tcpClients[0][2]
    return reactor, factory, results


def connected(factory: Any) -> tuple[Any, StringTransport]:
    """The proxy's side: the protocol that talks to it, and what it is sent."""
    protocol, transport = factory.buildProtocol(None), StringTransport()
    protocol.makeConnection(transport)
    return protocol, transport


def test_the_endpoint_gives_the_protocol_when_the_proxy_has_connected() -> None:
    _, factory, results = connecting()
    protocol, transport = connected(factory)
    protocol.dataReceived(NONE)
    assert b"a.onion" in transport.value()
    assert len(results) == 1
    protocol.dataReceived(DONE + b"first")
    inner = results[1]
    assert isinstance(inner, Inner)
    assert inner.received == b"first"
    protocol.dataReceived(b" and next")
    assert inner.received == b"first and next"
    protocol.connectionLost(Failure(Exception()))
    assert inner.lost is not None


def test_a_refusal_fails_the_endpoint_and_closes_the_connection() -> None:
    _, factory, results = connecting()
    protocol, transport = connected(factory)
    protocol.dataReceived(NONE + b"\x05\x04\x00\x01\x00")
    assert results[1].check(SocksError)
    assert transport.disconnecting
    protocol.connectionLost(Failure(Exception()))
    assert len(results) == 2


def test_a_proxy_that_closes_fails_the_endpoint() -> None:
    _, factory, results = connecting()
    protocol, _ = connected(factory)
    protocol.connectionLost(Failure(Exception()))
    assert results[1].check(SocksError)


def test_cancelled_while_the_proxy_is_asked() -> None:
    _, factory, results = connecting()
    _, transport = connected(factory)
    results[0].cancel()
    assert transport.disconnecting
    assert len(results) == 2
