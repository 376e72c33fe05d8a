"""Primitive encodings and padding: smp-wire.md §1, conformance 1 to 9."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.vectors import Vector, load, name_of, same, value
from txsimplex import encoding
from txsimplex.encoding import (
    LargeMessageError,
    ParseError,
    Reader,
    boolean,
    i64,
    large,
    maybe,
    nonempty,
    pad,
    short,
    text,
    u8,
    u16,
    u32,
    unpad,
    whole,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
PRIMITIVES: list[tuple[Callable[[Any], bytes], Callable[[Reader], Any], st.SearchStrategy[Any]]] = [
    (u8, Reader.u8, st.integers(0, 2**8 - 1)),
    (u16, Reader.u16, st.integers(0, 2**16 - 1)),
    (u32, Reader.u32, st.integers(0, 2**32 - 1)),
    (i64, Reader.i64, INT64),
    (boolean, Reader.bool, st.booleans()),
    (short, Reader.short, st.binary(max_size=255)),
    (large, Reader.large, st.binary(max_size=1000)),
    (text, Reader.text, st.text(max_size=60)),
    (lambda v: maybe(v, short), lambda r: r.maybe(r.short), st.none() | st.binary(max_size=9)),
    (
        lambda v: nonempty(v, large),
        lambda r: r.nonempty(r.large),
        st.lists(st.binary(max_size=9), min_size=1, max_size=255),
    ),
    (
        lambda v: u8(len(v)) + b"".join(map(u16, v)),
        lambda r: r.items(r.u16),
        st.lists(st.integers(0, 9), max_size=255),
    ),
]
NAMES = ["u8", "u16", "u32", "i64", "bool", "short", "large", "text", "maybe", "nonempty", "items"]


def test_a_known_number() -> None:
    """Conformance 1, 4."""
    data = bytes.fromhex("112210f47de98115")
    assert i64(1234567890123456789) == data
    assert whole(data, Reader.i64) == 1234567890123456789
    moment = datetime(2022, 1, 1, 10, 24, 5, tzinfo=UTC)
    assert i64(int(moment.timestamp())) == (1641032645).to_bytes(8, "big")


@pytest.mark.parametrize(("encode", "decode", "values"), PRIMITIVES, ids=NAMES)
def test_round_trip(
    encode: Callable[[Any], bytes], decode: Callable[[Reader], Any], values: st.SearchStrategy[Any]
) -> None:
    """Conformance 2, 3; also in the middle of other bytes, and not with any of them missing."""

    @given(values, st.binary(max_size=3), st.binary(max_size=3))
    def check(value: object, before: bytes, behind: bytes) -> None:
        data = encode(value)
        assert whole(data, decode) == value
        reader = Reader(before + data + behind, len(before), len(before) + len(data))
        assert decode(reader) == value
        assert reader.remaining == 0
        reader.finish()
        if data:
            with pytest.raises(ParseError):
                decode(Reader(before + data + behind, len(before), len(before) + len(data) - 1))

    check()


@pytest.mark.parametrize(("encode", "decode", "values"), PRIMITIVES, ids=NAMES)
def test_arbitrary_bytes(
    encode: Callable[[Any], bytes], decode: Callable[[Reader], Any], values: object
) -> None:
    @given(st.binary(max_size=40))
    def check(data: bytes) -> None:
        try:
            value = whole(data, decode)
        except ParseError:
            return
        assert encode(value) == data

    check()


@pytest.mark.parametrize(
    ("data", "decode"),
    [
        (b"0", Reader.bool),
        (b"\x01", Reader.bool),
        (b"t", Reader.bool),
        (b"\x00", lambda r: r.maybe(r.u8)),
        (b"\x01x", lambda r: r.maybe(r.u8)),
        (b"2x", lambda r: r.maybe(r.u8)),
        (b"\x00", lambda r: r.nonempty(r.u8)),
        (b"\x02\xff\xfe", Reader.text),
        (b"xz", lambda r: r.expect(b"xy")),
        (b"x", lambda r: r.expect(b"xy")),
        (b"\x01ab", Reader.short),
    ],
)
def test_what_is_not_of_the_form(data: bytes, decode: Callable[[Reader], object]) -> None:
    with pytest.raises(ParseError):
        whole(data, decode)


@pytest.mark.parametrize(
    ("encode", "value"),
    [
        (u8, 256),
        (u8, -1),
        (u16, 2**16),
        (u16, -1),
        (u32, 2**32),
        (i64, 2**63),
        (short, bytes(256)),
        (large, bytes(2**16)),
        (text, "ж" * 128),
        (text, "\ud800"),
        (lambda values: nonempty(values, u8), []),
        (lambda values: nonempty(values, u8), [0] * 256),
    ],
)
def test_values_that_do_not_fit(encode: Callable[[Any], bytes], value: object) -> None:
    """The reference cuts lengths off modulo 256 (§1); here that is the caller's mistake."""
    with pytest.raises(ValueError):  # noqa: PT011 - the message depends on the value
        encode(value)


def test_rest_is_what_is_left_up_to_the_end_given() -> None:
    reader = Reader(b"abcdef", 1, 5)
    assert reader.take(2) == b"bc"
    assert reader.remaining == 2
    assert reader.rest() == b"de"
    assert reader.rest() == b""
    with pytest.raises(ParseError):
        reader.u8()


def test_trailing_bytes() -> None:
    with pytest.raises(ParseError):
        whole(b"\x00\x01\x02", Reader.u16)


@pytest.mark.parametrize("vector", load("crypto", "pad"), ids=name_of)
def test_pad_as_the_reference(vector: Vector) -> None:
    """Conformance 5, 6."""
    repeat = vector["msg_repeat"]
    message = value(vector["msg"]) if repeat is None else b"z" * int(repeat.split()[0])
    assert same(vector["msg"], message)
    size = vector["padded_len"]
    if "error" in vector:
        with pytest.raises(LargeMessageError):
            pad(message, size)
    else:
        assert same(vector["ok"], pad(message, size))


@pytest.mark.parametrize("vector", load("crypto", "unpad"), ids=name_of)
def test_unpad_as_the_reference(vector: Vector) -> None:
    """Conformance 7 to 9."""
    padded = bytes.fromhex(vector["padded"])
    if "error" in vector:
        with pytest.raises(ParseError):
            unpad(padded)
    else:
        assert unpad(padded).hex() == vector["ok"]


def test_padding_in_the_conformance_list() -> None:
    """Conformance 5 to 9."""
    assert pad(b"abc", 5) == b"\x00\x03abc"
    assert len(pad(bytes(65533), 65535)) == 65535
    for message, size in ((b"abc", 4), (bytes(65534), 65536), (bytes(65534), 100_000)):
        with pytest.raises(LargeMessageError):
            pad(message, size)
    assert unpad(b"\x00\x00") == b""
    assert unpad(b"\x00\x03abc") == b"abc"
    assert unpad(b"\x00\x03abc\x01\x02") == b"abc"
    for padded in (b"", b"\x00", b"\x00\x03ab"):
        with pytest.raises(ParseError):
            unpad(padded)


@given(st.binary(max_size=500), st.integers(0, 600))
def test_padding_round_trip(message: bytes, size: int) -> None:
    if len(message) + 2 > size:
        with pytest.raises(LargeMessageError):
            pad(message, size)
    else:
        padded = pad(message, size)
        assert len(padded) == size
        assert padded[2 + len(message) :] == b"#" * (size - 2 - len(message))
        assert unpad(padded) == message


@given(st.binary(max_size=40))
def test_unpad_arbitrary_bytes(padded: bytes) -> None:
    try:
        message = unpad(padded)
    except ParseError:
        assert len(padded) < 2 or int.from_bytes(padded[:2], "big") > len(padded) - 2
    else:
        assert padded[2:].startswith(message)


def test_errors_are_of_two_kinds() -> None:
    """Bytes of others give `ParseError`, our own values `ValueError`."""
    assert not issubclass(ParseError, ValueError)
    assert issubclass(LargeMessageError, ValueError)
    assert encoding.MAX_PADDED == 65533
