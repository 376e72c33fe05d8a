"""Errors: smp-wire.md §12, against the reference's encodings (smp_encoding.json).

Errors inside ``ERR`` are tested with the other messages too, in test_messages.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.smp.fields import error_of
from tests.txsimplex.smp.strategies import error_as_sent, mutated, smp_errors, versions
from tests.txsimplex.vectors import Vector, load, name_of
from txsimplex.encoding import ParseError
from txsimplex.smp import errors
from txsimplex.smp.errors import (
    BlockingInformation,
    BlockingReason,
    Error,
    Notice,
    blocked,
    decode_error,
    decode_transport_error,
    store_error,
)


@pytest.mark.parametrize("vector", load("smp_encoding", "err-text"), ids=name_of)
def test_text_form(vector: Vector) -> None:
    """What the reference reads back from a text ("text_decodes_to") has no use here."""
    assert str(error_of(vector["error"])) == vector["text"]


@given(smp_errors, versions)
def test_round_trip(error: Error, version: int) -> None:
    data = error.encode(version)
    expected = error_as_sent(error, version)
    assert decode_error(data) == expected
    assert expected.encode(version) == data


@given(st.binary(max_size=80) | mutated(smp_errors.map(Error.encode)))
def test_arbitrary_bytes_are_an_error_or_a_parse_error(data: bytes) -> None:
    try:
        error = decode_error(data)
    except ParseError:
        return
    assert decode_error(error.encode()) == error_as_sent(error, 18)


@given(st.binary(max_size=40) | st.sampled_from([b"HANDSHAKE PARSE", b"VERSION", b"HANDSHAKE"]))
def test_arbitrary_bytes_as_a_transport_error(data: bytes) -> None:
    try:
        error = decode_transport_error(data)
    except ParseError:
        return
    assert error.encode() == data


def test_blocked_is_rewritten_only_when_it_stands_alone() -> None:
    """§12.1, conformance 185."""
    full = blocked(BlockingInformation(BlockingReason.SPAM, Notice(60)))
    encoded = b'BLOCKED reason=spam,notice={"ttl":60}'
    for version in range(6, 19):
        if version < 12:
            assert full.encode(version) == b"AUTH"
        elif version < 18:
            assert full.encode(version) == b"BLOCKED reason=spam"
        else:
            assert full.encode(version) == encoded
        within = full.within("PROXY", "PROTOCOL")
        assert within.encode(version) == b"PROXY PROTOCOL " + encoded
    assert full.encode() == encoded


@pytest.mark.parametrize(
    "data",
    [
        b"reason=",
        b"reason=spam,",
        b"reason=spam,notice=",
        b"reason=spam,notice=[]",
        b"reason=spam,notice=null",
        b'reason=spam,notice={"ttl":"5"}',
        b'reason=spam,notice={"ttl":true}',
        b'reason=spam,notice={"ttl":5}}',
        b"reason=spam,notice=\xff",
        b"reason=spam,notice=" + b"[" * 10_000,
        b'reason=spam,notice={"ttl":' + b"9" * 10_000 + b"}",
        b"reason=\xff",
        b"spam",
    ],
)
def test_information_that_is_none(data: bytes) -> None:
    with pytest.raises(ParseError):
        BlockingInformation.decode(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"STORE \xff\xfe", "??"),
        (b"STORE \xd0\x96\xff!", "Ж?!"),
        (b"STORE \xe2\x82", "??"),
        (b"STORE ", ""),
    ],
)
def test_store_texts_are_read_leniently(data: bytes, text: str) -> None:
    """§12.1: each byte that is not UTF-8 is read as a question mark."""
    assert decode_error(data) == store_error(text)


def test_texts_of_brokers_are_bytes() -> None:
    """§12.3: the type is String, one character per byte (§1), not UTF-8."""
    error = Error(("PROXY", "BROKER", "RESPONSE"), "\xff")
    assert error.encode() == b"PROXY BROKER RESPONSE \x01\xff"
    assert decode_error(error.encode()) == error


def test_nesting_has_an_end() -> None:
    """The reference nests without a bound; nothing real nests more than once."""
    assert decode_error(b"PROXY PROTOCOL " * 31 + b"AUTH").path[-1] == "AUTH"
    with pytest.raises(ParseError):
        decode_error(b"PROXY PROTOCOL " * 40 + b"AUTH")


def test_examples_of_proxied_errors() -> None:
    """The last lines of §12.4."""
    assert decode_error(b"PROXY BROKER NETWORK").path[-1] == "FAILED"
    assert errors.AUTH.within("PROXY", "PROTOCOL").encode() == b"PROXY PROTOCOL AUTH"
    version = decode_transport_error(b"VERSION").within("PROXY", "BROKER", "TRANSPORT")
    assert version.encode() == b"PROXY BROKER TRANSPORT VERSION"


def test_errors_are_values() -> None:
    assert Error(("CMD", "SYNTAX")) == errors.SYNTAX
    assert hash(Error(("CMD", "SYNTAX"))) == hash(errors.SYNTAX)
    assert len({errors.SYNTAX, errors.UNKNOWN, Error(("CMD", "SYNTAX"))}) == 2
