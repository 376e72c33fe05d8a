"""The calls below pyOpenSSL and their substitutes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st
from OpenSSL import SSL

from tests.txsimplex.block_peers import block, context_of_server
from txsimplex import openssl
from txsimplex.blocks_transport import BLOCK_SIZE
from txsimplex.tls import client_context

SocketPair = tuple[Any, Any]
SERVER = context_of_server()


def kinds(direct: Any, public: Any, selected: Any) -> list[Any]:
    return [direct, public] if selected is direct else [public]


SOCKETS = kinds(openssl.DirectSocketTLS, openssl.PublicSocketTLS, openssl.SocketTLS)
MEMORIES = kinds(openssl.DirectMemoryTLS, openssl.PublicMemoryTLS, openssl.MemoryTLS)


@pytest.fixture(params=SOCKETS, ids=lambda kind: kind.__name__)
def ends(request: pytest.FixtureRequest) -> Iterator[SocketPair]:
    """A client and a server that have shaken hands, each on its socket."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    client = request.param(client_context(alpn=(b"smp/1",)), near, False)
    server = request.param(context_of_server(), far, True)
    done = [False, False]
    for _ in range(6):
        for index, end in enumerate((client, server)):
            done[index] = done[index] or end.handshake()
    assert all(done)
    yield client, server
    near.close()
    far.close()


def test_what_the_handshake_gave(ends: SocketPair) -> None:
    client, server = ends
    assert client.session_id == server.session_id
    assert len(client.session_id) == 32
    assert client.alpn == server.alpn == b"smp/1"
    assert len(client.peer_chain) == 2
    assert server.peer_chain == ()
    for end in ends:
        end.settle()
    assert client.write(block(1))
    assert server.read() == block(1)


def test_there_may_be_nothing_to_read(ends: SocketPair) -> None:
    client, server = ends
    assert server.read() is None
    assert client.write(block(1))
    assert server.read() == block(1)
    assert server.read() is None


def test_a_block_that_does_not_fit_is_offered_again(ends: SocketPair) -> None:
    client, server = ends
    sent = 0
    while client.write(block(sent)):
        sent += 1
        assert sent < 1000
    assert not client.write(block(sent))
    received = [server.read()]
    while not client.write(bytearray(block(sent))):
        received.append(server.read())
    while (record := server.read()) is not None:
        received.append(record)
    assert received == [block(number) for number in range(sent + 1)]


def test_goodbye(ends: SocketPair) -> None:
    client, server = ends
    assert client.write(block(1))
    assert client.close_notify()
    assert server.read() == block(1)
    for _ in range(2):
        with pytest.raises(openssl.TLSEndedError) as caught:
            server.read()
        assert caught.value.clean


def test_goodbye_that_does_not_fit(ends: SocketPair) -> None:
    client, server = ends
    while client.write(block(1)):
        pass
    for _ in range(3):
        assert server.read() is not None
    written = client.write(block(1))
    while written:
        written = client.write(block(1))
    while server.read() is not None:
        pass
    assert client.write(block(1))
    assert client.close_notify()
    assert server.read() == block(1)
    with pytest.raises(openssl.TLSEndedError):
        server.read()


def test_bytes_that_are_no_record(ends: SocketPair) -> None:
    _, server = ends
    for _ in range(2):
        forge(ends)
        with pytest.raises(openssl.TLSEndedError) as caught:
            server.read()
        assert not caught.value.clean
    with pytest.raises(openssl.TLSEndedError):
        server.write(block(1))


def forge(ends: SocketPair) -> None:
    """Puts a record on the wire that nobody has encrypted."""
    client, _ = ends
    connection = getattr(client, "_connection", None)
    assert connection is not None
    connection._socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))


@pytest.mark.parametrize("kind", SOCKETS, ids=lambda kind: kind.__name__)
def test_a_handshake_with_something_else(kind: Any) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        server = kind(context_of_server(), near, True)
        assert server.handshake() is False
        far.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(openssl.TLSEndedError):
            server.handshake()


def client_hello() -> bytes:
    client = openssl.PublicMemoryTLS(client_context(alpn=(b"smp/1",)), False)
    assert not client.handshake()
    return bytes(client.drain())


@given(st.binary(min_size=1, max_size=600), st.integers(0, 600), st.booleans())
def test_whatever_comes_in_place_of_a_hello(data: bytes, position: int, alone: bool) -> None:
    """Only the one error comes of it, or nothing until the time is up."""
    hello = client_hello()
    sent = data if alone else hello[:position] + data + hello[position + len(data) :]
    server = openssl.MemoryTLS(SERVER, True)
    server.feed(sent)
    try:
        done = server.handshake()
    except openssl.TLSEndedError as error:
        done = error.clean
    assert done is False


def foreign_error() -> None:
    """Leaves in OpenSSL's queue what another user of the library might."""
    lib: Any = SSL._lib  # type: ignore[attr-defined]
    lib.ERR_put_error(6, 0, 100, b"", 0)
    assert lib.ERR_peek_error() != 0


def test_errors_of_others_are_not_taken_for_ours(ends: SocketPair) -> None:
    client, server = ends
    if type(server) is openssl.PublicSocketTLS:
        pytest.skip("pyOpenSSL itself does not tell them apart")
    foreign_error()
    assert server.read() is None
    foreign_error()
    sent = 0
    while client.write(block(sent)):
        sent += 1
        foreign_error()
    for number in range(sent):
        foreign_error()
        assert server.read() == block(number)
    foreign_error()
    assert server.read() is None
    foreign_error()
    assert client.write(block(sent))
    foreign_error()
    assert client.close_notify()
    foreign_error()
    assert server.read() == block(sent)
    foreign_error()
    with pytest.raises(openssl.TLSEndedError) as caught:
        server.read()
    assert caught.value.clean
    getattr(SSL, "_lib").ERR_clear_error()  # noqa: B009


@pytest.mark.parametrize("kind", MEMORIES, ids=lambda kind: kind.__name__)
def test_two_ends_in_memory(kind: Any) -> None:
    client, server = kind(client_context(alpn=()), False), kind(context_of_server(), True)
    done = [False, False]
    for _ in range(4):
        for index, (end, other) in enumerate(((client, server), (server, client))):
            done[index] = done[index] or end.handshake()
            if flight := bytes(end.drain()):
                other.feed(flight)
    assert all(done)
    assert client.session_id == server.session_id != b""
    client.settle()
    server.settle()
    assert server.read() is None
    assert len(client.drain()) == 0
    for number in range(9):
        client.write(memoryview(block(number)))
    flights = []
    while len(flight := bytes(client.drain())):
        flights.append(flight)
    assert max(map(len, flights)) <= openssl.DRAIN_SIZE
    server.feed(b"".join(flights))
    assert [server.read() for _ in range(9)] == [block(number) for number in range(9)]
    assert server.read() is None
    client.close_notify()
    server.feed(bytes(client.drain()))
    with pytest.raises(openssl.TLSEndedError) as caught:
        server.read()
    assert caught.value.clean
    with pytest.raises(openssl.TLSEndedError):
        client.write(bytes(BLOCK_SIZE))
