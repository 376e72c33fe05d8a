"""The blocks of the handshake: smp-wire.md §6."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.smp.strategies import contents, dh_keys, ids, mutated, versions
from txsimplex.encoding import ParseError, short
from txsimplex.keys import Algorithm, PublicKey
from txsimplex.smp.commands import Role
from txsimplex.smp.errors import Error
from txsimplex.smp.hellos import (
    ClientHello,
    ServerHello,
    ServerKey,
    ServiceHello,
    ServiceResponse,
)
from txsimplex.smp.versions import VersionRange

KEY = PublicKey(Algorithm.X25519, bytes(32))

chains = st.lists(contents, min_size=1, max_size=4)
server_hellos = st.builds(
    ServerHello,
    st.tuples(versions, versions).map(lambda pair: VersionRange(min(pair), max(pair))),
    ids,
    st.none() | st.builds(ServerKey, chains, contents),
)
client_hellos = st.builds(
    ClientHello,
    versions,
    ids,
    st.none() | dh_keys,
    st.booleans(),
    st.none() | st.builds(ServiceHello, st.sampled_from(Role), chains, contents),
)
service_responses = st.one_of(
    st.builds(ServiceResponse, ids),
    st.sampled_from(["BAD_AUTH", "BAD_SERVICE"]).map(
        lambda word: ServiceResponse(error=Error(("HANDSHAKE", word)))
    ),
)


@given(server_hellos)
def test_server_hello_round_trip(hello: ServerHello) -> None:
    if hello.versions.maximum < 7:
        hello.key = None
    assert ServerHello.decode(hello.encode()) == hello


@given(client_hellos)
def test_client_hello_round_trip(hello: ClientHello) -> None:
    if hello.version < 7:
        hello.key = None
    if hello.version < 14:
        hello.proxy = False
    if hello.version < 16:
        hello.service = None
    assert ClientHello.decode(hello.encode()) == hello


@given(service_responses)
def test_service_response_round_trip(response: ServiceResponse) -> None:
    assert ServiceResponse.decode(response.encode()) == response


@given(
    st.one_of(
        st.binary(max_size=120),
        mutated(server_hellos.map(ServerHello.encode)),
        mutated(client_hellos.map(ClientHello.encode)),
        mutated(service_responses.map(ServiceResponse.encode)),
    )
)
def test_arbitrary_bytes_are_a_block_or_a_parse_error(content: bytes) -> None:
    read = 0
    for form in (ServerHello, ClientHello, ServiceResponse):
        try:
            block = form.decode(content)
        except ParseError:
            continue
        read += 1
        assert form.decode(block.encode()) == block
    assert read <= 3


@given(client_hellos, st.binary(max_size=20))
def test_bytes_behind_the_known_fields_are_ignored(hello: ClientHello, more: bytes) -> None:
    """Conformance 79; only from version 14 on something stands between key and end."""
    if hello.version >= 14:
        assert ClientHello.decode(hello.encode() + more) == ClientHello.decode(hello.encode())


def test_bytes_behind_a_server_hello_are_ignored() -> None:
    """Conformance 79."""
    hello = ServerHello(VersionRange(6, 18), bytes(32), ServerKey([b"leaf", b"ca"], b"key"))
    assert ServerHello.decode(hello.encode() + b"more") == hello
    old = ServerHello(VersionRange(6, 6), bytes(32))
    assert old.encode() == b"\0\x06\0\x06\x20" + bytes(32)
    assert ServerHello.decode(old.encode() + b"more") == old


@pytest.mark.parametrize(
    ("version", "end"),
    [
        (6, b""),
        (7, short(KEY.encode())),
        (13, short(KEY.encode())),
        (14, short(KEY.encode()) + b"F"),
        (16, short(KEY.encode()) + b"F0"),
        (18, short(KEY.encode()) + b"F0"),
    ],
)
def test_client_hello_in_every_version(version: int, end: bytes) -> None:
    """The row of smp-wire.md §17."""
    head = version.to_bytes(2, "big") + b"\x20" + bytes(32)
    assert ClientHello(version, bytes(32), KEY).encode() == head + end
    without = ClientHello(version, bytes(32))
    assert without.encode() == head + end.removeprefix(short(KEY.encode()))
    assert ClientHello.decode(without.encode()) == without


def test_responses_to_services() -> None:
    """§6.3."""
    assert ServiceResponse(b"id").encode() == b"R\x02id"
    refusal = ServiceResponse(error=Error(("HANDSHAKE", "BAD_SERVICE")))
    assert refusal.encode() == b"EHANDSHAKE BAD_SERVICE"
    for content in (b"", b"X", b"R\x03id", b"EHANDSHAKE", b"ENOTHING"):
        with pytest.raises(ParseError):
            ServiceResponse.decode(content)
