"""Bodies of messages and notifications: smp-wire.md §14, against smp_bodies.json.

The vectors of the kinds "client-…" are in test_envelopes.py; those of the kind "proxy"
belong to the layers of private routing, which are not made yet.
"""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.vectors import Vector, det, load, name_of, same
from txsimplex.boxes import BoxError, BoxKey
from txsimplex.encoding import LargeMessageError, ParseError
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.bodies import (
    META_SIZE,
    SEALED_BODY_SIZE,
    SEALED_META_SIZE,
    MessageBody,
    QuotaBody,
    decode_body,
    encode_message_body,
    encode_quota_body,
    open_body,
    open_meta,
    seal_body,
    seal_message,
    seal_meta,
)
from txsimplex.smp.messages import Nmsg

KEY = BoxKey(bytes(range(32)))
TIMES = st.integers(-(2**63), 2**63 - 1)


def body_of(given: str | Vector) -> bytes:
    if isinstance(given, str):
        return bytes.fromhex(given)
    return det(given["len"], given["det"])


def shared_secret(vector: Vector) -> bytes:
    """The DH secret of a vector, computed from both sides."""
    relay, recipient = (
        PrivateKey(Algorithm.X25519, bytes.fromhex(vector[f"{side}_private_raw"]))
        for side in ("server", "recipient")
    )
    secret = relay.exchange(recipient.public)
    assert secret == recipient.exchange(relay.public)
    assert secret.hex() == vector["secret"]
    return secret


@pytest.mark.parametrize("vector", load("smp_bodies", "msg-body"), ids=name_of)
def test_messages(vector: Vector) -> None:
    body, msg_id = body_of(vector["body"]), bytes.fromhex(vector["msg_id"])
    key = BoxKey(shared_secret(vector))
    plain = encode_message_body(vector["ts"], vector["notification"], body)
    assert same(vector["plain"], plain)
    sealed = seal_body(key, msg_id, plain)
    assert len(sealed) == SEALED_BODY_SIZE
    assert same(vector["enc_body"], sealed)
    assert seal_message(key, msg_id, vector["ts"], vector["notification"], body) == sealed
    expected = vector["client_decodes"]
    if expected == "failure":
        with pytest.raises(ParseError):
            open_body(key, msg_id, sealed)
        return
    opened = open_body(key, msg_id, sealed)
    assert isinstance(opened, MessageBody)
    assert (opened.timestamp, opened.notify) == (expected["ts"], expected["notification"])
    assert hashlib.sha256(opened.body).hexdigest() == expected["body_sha256"]


@pytest.mark.parametrize("vector", load("smp_bodies", "msg-quota"), ids=name_of)
def test_quota_notices(vector: Vector) -> None:
    key, msg_id = BoxKey(bytes.fromhex(vector["secret"])), bytes.fromhex(vector["msg_id"])
    plain = encode_quota_body(vector["ts"])
    assert plain.hex() == vector["plain"]
    sealed = seal_body(key, msg_id, plain)
    assert same(vector["enc_body"], sealed)
    assert open_body(key, msg_id, sealed) == QuotaBody(vector["ts"])


@pytest.mark.parametrize("vector", load("smp_bodies", "body-decode"), ids=name_of)
def test_crafted_bodies(vector: Vector) -> None:
    plain, result = bytes.fromhex(vector["plain"]), vector["result"]
    if result == "failure":
        with pytest.raises(ParseError):
            decode_body(plain)
    else:
        assert decode_body(plain) == MessageBody(
            result["ts"], result["notification"], bytes.fromhex(result["body"])
        )


@pytest.mark.parametrize("vector", load("smp_bodies", "nmsg-meta"), ids=name_of)
def test_meta_data_of_notifications(vector: Vector) -> None:
    key, nonce = BoxKey(shared_secret(vector)), bytes.fromhex(vector["nonce"])
    msg_id = bytes.fromhex(vector["msg_id"])
    sealed = seal_meta(key, nonce, msg_id, vector["ts"])
    assert len(sealed) == SEALED_META_SIZE
    assert sealed.hex() == vector["enc_meta"]
    assert key.open_padded(sealed, nonce).hex() == vector["plain"]
    assert open_meta(key, nonce, sealed) == (msg_id, vector["ts"])
    assert Nmsg(nonce, sealed).encode(18).hex() == vector["message"]


def test_bytes_behind_the_meta_data_are_ignored() -> None:
    """§14.3."""
    sealed = KEY.seal_padded(b"\x02id" + bytes(7) + b"\x09" + b"more", bytes(24), META_SIZE)
    assert open_meta(KEY, bytes(24), sealed) == (b"id", 9)


def test_limits() -> None:
    """§14.2: 10 bytes and the longest body of version 6 leave room to spare."""
    assert len(seal_message(KEY, b"", 0, True, bytes(16088))) == SEALED_BODY_SIZE
    assert len(seal_message(KEY, b"", 0, True, bytes(16094))) == SEALED_BODY_SIZE
    with pytest.raises(LargeMessageError):
        seal_message(KEY, b"", 0, True, bytes(16095))
    with pytest.raises(LargeMessageError):
        seal_body(KEY, b"", encode_message_body(0, True, bytes(16095)))
    with pytest.raises(LargeMessageError):
        seal_meta(KEY, bytes(24), bytes(118), 0)


@given(st.binary(max_size=40), TIMES, st.booleans(), st.binary(max_size=500))
def test_round_trip(msg_id: bytes, timestamp: int, notify: bool, body: bytes) -> None:
    sealed = seal_message(KEY, msg_id, timestamp, notify, body)
    assert sealed == seal_body(KEY, msg_id, encode_message_body(timestamp, notify, body))
    if timestamp.to_bytes(8, "big", signed=True).startswith(b"QUOTA "):
        return
    assert open_body(KEY, msg_id, sealed) == MessageBody(timestamp, notify, body)
    assert decode_body(encode_quota_body(timestamp)) == QuotaBody(timestamp)
    short_id = msg_id[:24]
    meta = seal_meta(KEY, bytes(24), short_id, timestamp)
    assert open_meta(KEY, bytes(24), meta) == (short_id, timestamp)


@given(st.binary(max_size=60) | st.binary(max_size=20).map(lambda data: b"QUOTA " + data))
def test_arbitrary_plain_texts(plain: bytes) -> None:
    try:
        body = decode_body(plain)
    except ParseError:
        return
    if isinstance(body, QuotaBody):
        assert encode_quota_body(body.timestamp) == plain
    else:
        assert plain.startswith(encode_message_body(body.timestamp, body.notify, b"")[:9])
        assert plain.endswith(b" " + body.body)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_as_bodies(data: bytes) -> None:
    with pytest.raises(BoxError):
        open_body(KEY, b"id", data)
    with pytest.raises(BoxError):
        open_meta(KEY, bytes(24), data)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_inside_meta_data(plain: bytes) -> None:
    sealed = KEY.seal_padded(plain, bytes(24), META_SIZE)
    try:
        msg_id, timestamp = open_meta(KEY, bytes(24), sealed)
    except ParseError:
        return
    again = seal_meta(KEY, bytes(24), msg_id, timestamp)
    assert plain.startswith(KEY.open_padded(again, bytes(24)))
