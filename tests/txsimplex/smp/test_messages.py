"""Broker messages: smp-wire.md §11, against the reference's encodings (smp_encoding.json)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.smp.fields import error_of, message_of
from tests.txsimplex.smp.strategies import message_as_sent, mutated, smp_messages, versions
from tests.txsimplex.vectors import Vector, load, name_of, same, value
from txsimplex.encoding import ParseError, Reader
from txsimplex.keys import Algorithm, PublicKey
from txsimplex.smp import errors, messages
from txsimplex.smp.commands import QueueMode
from txsimplex.smp.errors import Error
from txsimplex.smp.messages import Message, check_entity, read_message

WITH_PARAMETERS = ("IDS", "LNK", "SOK", "SOKS", "MSG", "NID", "NMSG", "PKEY", "INFO", "ENDS")


def read(data: bytes, version: int) -> Message | Error:
    """Reads from the middle of a block, as `Framing` does."""
    block = b"END " + data + b" \0"
    return read_message(block, 4, 4 + len(data), version)


@pytest.mark.parametrize("vector", load("smp_encoding", "msg"), ids=name_of)
def test_encodings_of_the_reference(vector: Vector) -> None:
    message = message_of(vector["fields"])
    for encoding in vector["encodings"]:
        expected = message
        if "decoded_as" in encoding:
            expected = message_of(encoding["decoded_as"])
        for version in encoding["versions"]:
            data = message.encode(version)
            if isinstance(message, messages.Info):
                # The order of members in a JSON object says nothing (§14.4).
                given_json = value(encoding["encoded"]).removeprefix(b"INFO ")
                assert json.loads(data.removeprefix(b"INFO ")) == json.loads(given_json)
                assert read(b"INFO " + given_json, version) == expected
            else:
                assert same(encoding["encoded"], data)
            assert read(data, version) == expected


@pytest.mark.parametrize("vector", load("smp_encoding", "msg-decode"), ids=name_of)
def test_crafted_messages(vector: Vector) -> None:
    data = value(vector["bytes"])
    for part in vector["results"]:
        result = part["result"]
        expected = message_of(result["ok"]) if "ok" in result else error_of(result["error"])
        for version in part["versions"]:
            assert read(data, version) == expected


@given(smp_messages, versions)
def test_round_trip(message: Message, version: int) -> None:
    data = message.encode(version)
    expected = message_as_sent(message, version)
    assert read(data, version) == expected
    assert expected.encode(version) == data


@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda tag, rest: tag.encode() + b" " + rest,
            st.sampled_from(WITH_PARAMETERS),
            st.binary(max_size=200),
        ),
        mutated(st.builds(Message.encode, smp_messages, versions)),
    ),
    versions,
)
def test_arbitrary_bytes_give_a_message_or_an_error(data: bytes, version: int) -> None:
    message = read(data, version)
    if isinstance(message, Error):
        assert message in (errors.UNKNOWN, errors.SYNTAX)
    elif isinstance(message, messages.Info):
        assert isinstance(message.state, dict)
    elif isinstance(message, messages.Err):
        assert isinstance(read(message.encode(version), version), messages.Err)
    elif isinstance(message, (messages.Sok, messages.Deld)):
        # Read at every version, though older ones are sent something else.
        assert message.encode(18) == data
    else:
        assert message.encode(version) == data


def test_ids_in_every_version() -> None:
    """The row of smp-wire.md §17."""
    key = PublicKey(Algorithm.X25519, bytes(32))
    ids = messages.Ids(b"r", b"s", key, QueueMode.MESSAGING)
    head = len(b"IDS ") + 2 + 2 + 45
    ends = {version: ids.encode(version)[head:] for version in range(6, 19)}
    assert {ends[version] for version in (6, 7, 8)} == {b""}
    assert {ends[version] for version in range(9, 15)} == {b"T"}
    assert [ends[version] for version in (15, 16, 17, 18)] == [b"1M0", b"1M00", b"1M000", b"1M000"]


@pytest.mark.parametrize(
    ("data", "version", "expected"),
    [
        (b"SOK 0", 6, messages.Sok()),
        (b"OK", 18, messages.Ok()),
        (b"DELD", 6, messages.Deld()),
        (b"ALLS", 18, errors.UNKNOWN),
        (b"INFO []", 18, errors.SYNTAX),
        (b"INFO " + b"[" * 10_000, 18, errors.SYNTAX),
    ],
)
def test_what_a_client_accepts(data: bytes, version: int, expected: Message | Error) -> None:
    """§11, below the table."""
    assert read(data, version) == expected


def test_entity_rules() -> None:
    """The last line of smp-wire.md §9.3."""
    classes = {
        cls.tag.decode(): cls
        for cls in vars(messages).values()
        if isinstance(cls, type) and issubclass(cls, Message) and cls.tag
    }
    assert len(classes) == 17
    for tag, cls in classes.items():
        message = object.__new__(cls)
        with_id, without = check_entity(message, True), check_entity(message, False)
        if tag in {"PONG", "PKEY", "RRES"}:
            assert (with_id, without) == (errors.HAS_AUTH, None)
        elif tag in {"IDS", "ERR"}:
            assert (with_id, without) == (None, None)
        else:
            assert (with_id, without) == (None, errors.NO_ENTITY)


def test_a_class_that_reads_nothing_of_its_own_refuses_parameters() -> None:
    with pytest.raises(ParseError):
        messages.End.read(Reader(b""), 18)
