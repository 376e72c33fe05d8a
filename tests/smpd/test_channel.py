"""What core and edges say to each other: values to bytes and back (docs/architecture.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from smpd.channel import (
    MAX_PAYLOAD,
    NO_PROOFS,
    SINGLE_HEAD_SIZE,
    Decoder,
    Frame,
    Kind,
    Level,
    Start,
    content_head,
    decode_entry,
    decode_identity,
    decode_learned,
    decode_opened,
    decode_proofs,
    encode_entry,
    encode_identity,
    encode_learned,
    encode_opened,
    encode_proofs,
    head,
    single_head,
)
from smpd.peers import Opened
from tests.smpd.people import key
from tests.smpd.wires import new_identity
from txsimplex.encoding import ParseError, large
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp.commands import Role
from txsimplex.smp.handshake import ServiceClaim
from txsimplex.smp.transmissions import Proof, frame

numbers = st.integers(0, 2**32 - 1)
kinds = st.sampled_from([kind.value for kind in Kind])
frames = st.tuples(kinds, numbers, st.binary(max_size=300))
ids = st.binary(max_size=255)
private_keys = st.binary(min_size=32, max_size=32).map(
    lambda raw: PrivateKey(Algorithm.X25519, raw)
)
public_keys = st.sampled_from([Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519]).flatmap(
    lambda a: st.binary(min_size=a.key_size, max_size=a.key_size).map(lambda raw: PublicKey(a, raw))
)
claims = st.builds(
    ServiceClaim,
    st.sampled_from(Role),
    st.lists(st.binary(max_size=2000), min_size=1, max_size=4).map(tuple),
    st.binary(min_size=32, max_size=32),
    public_keys,
)
opened = st.builds(
    Opened,
    st.integers(6, 18),
    st.binary(min_size=12, max_size=32),
    st.none() | private_keys,
    st.none() | st.binary(min_size=32, max_size=32),
    st.none() | claims,
)
proofs = st.none() | st.builds(Proof, st.booleans(), st.binary(max_size=57))


def encoded(given: Frame) -> bytes:
    """A frame as bytes."""
    kind, connection, payload = given
    return head(len(payload), kind, connection) + payload


def decoded(data: bytes, pieces: int) -> list[Frame]:
    """The frames in `data`, of which so many bytes are received each time."""
    decoder = Decoder()
    found: list[Frame] = []
    while data:
        space = decoder.space()
        count = min(pieces, len(data), len(space))
        space[:count] = data[:count]
        data = data[count:]
        found += decoder.take(count)
    return found


@given(st.lists(frames, max_size=20), st.integers(1, 1000))
def test_frames_come_as_they_were_sent(sent: list[Frame], pieces: int) -> None:
    assert decoded(b"".join(map(encoded, sent)), pieces) == sent


def test_many_large_frames_pass_the_space_of_a_decoder() -> None:
    sent = [(Kind.BLOCK.value, number, bytes([number]) * 16382) for number in range(100)]
    data = b"".join(map(encoded, sent))
    for pieces in (1000, 65536, 10**6):
        assert decoded(data, pieces) == sent


def test_the_largest_frame_and_one_that_is_too_large() -> None:
    largest = (1, 2, bytes(MAX_PAYLOAD))
    assert decoded(encoded(largest), 10_000) == [largest]
    with pytest.raises(ParseError):
        decoded(head(MAX_PAYLOAD + 1, 1, 2), 100)


@given(st.binary(max_size=500))
def test_any_bytes_are_frames_or_an_error(data: bytes) -> None:
    try:
        found = decoded(data, 100)
    except ParseError:
        return
    assert data.startswith(b"".join(map(encoded, found)))


@given(numbers, st.lists(st.binary(max_size=100), max_size=3))
def test_the_head_of_a_single_transmission(number: int, parts: list[bytes]) -> None:
    transmission = b"".join(parts)
    data = single_head(number, len(transmission)) + transmission
    assert decoded(data, 1000) == [(Kind.CONTENT, number, large(frame([transmission])))]
    assert len(data) == SINGLE_HEAD_SIZE + len(transmission)


@given(numbers, st.binary(max_size=1000))
def test_the_head_of_a_content(number: int, content: bytes) -> None:
    data = content_head(number, len(content)) + content
    assert decoded(data, 1000) == [(Kind.CONTENT, number, large(content))]


def unequal_parts(one: Opened) -> tuple[Any, ...]:
    """What an `Opened` consists of, keys as bytes."""
    raw = None if one.session_key is None else one.session_key.raw
    return one.version, one.session_id, raw, one.secret, one.service


@given(opened)
def test_opened(one: Opened) -> None:
    assert unequal_parts(decode_opened(encode_opened(one))) == unequal_parts(one)


@given(ids, public_keys)
def test_learned(entity_id: bytes, public: PublicKey) -> None:
    assert decode_learned(encode_learned(entity_id, public)) == (entity_id, public)


@given(st.lists(proofs, min_size=1, max_size=255), st.binary(max_size=100))
def test_proofs(found: list[Proof | None], content: bytes) -> None:
    payload = encode_proofs(found) + content
    read, start = decode_proofs(payload)
    assert (read, payload[start:]) == (found, content)


def test_no_proofs() -> None:
    assert decode_proofs(NO_PROOFS + b"content") == ([], 1)


@given(st.sampled_from(Level), st.text(max_size=100))
def test_entries_of_the_log(level: Level, text: str) -> None:
    assert decode_entry(encode_entry(level, text)) == (
        level,
        text.encode("utf-8", "replace").decode(),
    )


def test_a_long_entry_is_cut() -> None:
    payload = encode_entry(Level.ERROR, "é" * MAX_PAYLOAD)
    assert len(payload) == MAX_PAYLOAD
    assert decode_entry(payload)[0] is Level.ERROR


START = Start((4, 5), 120.0, 128, 6, 18, True, 60.0, 5.0, 8, 2, 7)


def test_start() -> None:
    assert Start.decode(START.encode()) == START


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"{}", b"\xff", START.encode()[:-1], b'{"listening": 1}', b"[" * 100_000],
)
def test_what_is_no_start(payload: bytes) -> None:
    with pytest.raises(ParseError):
        Start.decode(payload)


def test_identity() -> None:
    identity = new_identity()
    read = decode_identity(encode_identity(identity))
    assert (read.chain, read.signing_key.raw, read.key_hash) == (
        identity.chain,
        identity.signing_key.raw,
        identity.key_hash,
    )


SOME = encode_opened(Opened(18, bytes(32), key(Algorithm.X25519), bytes(32)))


DECODERS: list[Callable[[bytes], object]] = [
    decode_opened,
    decode_learned,
    decode_proofs,
    decode_entry,
    decode_identity,
    Start.decode,
]


@given(
    st.sampled_from(DECODERS),
    st.binary(max_size=200) | st.integers(0, len(SOME)).map(lambda size: SOME[:size]),
)
def test_any_bytes_raise_nothing_but_the_parse_error(
    decode: Callable[[bytes], object], payload: bytes
) -> None:
    try:
        assert decode(payload) is not None
    except ParseError:
        return


def test_no_repr_shows_what_identifies_a_user() -> None:
    one = Opened(18, b"SESSION", PrivateKey(Algorithm.X25519, b"K" * 32), b"K" * 32)
    assert "SESSION" not in repr(one)
    assert "KKK" not in repr(one)
