"""Commands: smp-wire.md §10, against the reference's encodings (smp_encoding.json)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.smp.fields import command_of, error_of
from tests.txsimplex.smp.strategies import as_sent, mutated, smp_commands, versions
from tests.txsimplex.vectors import Vector, load, name_of, same, value
from txsimplex.encoding import ParseError, Reader
from txsimplex.keys import Algorithm, PublicKey
from txsimplex.smp import commands, errors
from txsimplex.smp.commands import (
    Command,
    LinkRequest,
    QueueMode,
    QueueRequest,
    Role,
    check_credentials,
    read_command,
)
from txsimplex.smp.errors import Error
from txsimplex.smp.versions import max_message_length

DIFFERENT = {
    # The reference throws here and closes the connection; to us it is a malformed key
    # as any other (SURPRISES.md 4; allowed by smp-wire.md §2).
    "cmd-decode/KEY-nonminimal-der": errors.SYNTAX,
    # The reference takes the last number of an IPv4 address modulo 256 without a word
    # (SURPRISES.md 3), which sends a proxy to another host than the one meant.
    "cmd-decode/PRXY-ip4-overflow": errors.SYNTAX,
}
"""Vectors where we differ from the reference on purpose."""


WITH_PARAMETERS = ("NEW", "KEY", "RKEY", "LSET", "NKEY", "ACK", "SEND", "PRXY", "PFWD", "RFWD")


def read(data: bytes, version: int) -> Command | Error:
    """Reads from the middle of a block, as `Framing` does."""
    block = b"SUB " + data + b" \0"
    return read_command(block, 4, 4 + len(data), version)


def encoding_of(vector: Vector, encoding: Vector) -> bytes:
    given = encoding["encoded"]
    if isinstance(given, str) or "base64" in given:
        return value(given)
    return command_of(vector["fields"]).encode(encoding["versions"][0])


@pytest.mark.parametrize("vector", load("smp_encoding", "cmd"), ids=name_of)
def test_encodings_of_the_reference(vector: Vector) -> None:
    command = command_of(vector["fields"])
    for encoding in vector["encodings"]:
        expected = command
        if "decoded_as" in encoding:
            expected = command_of(encoding["decoded_as"])
        for version in encoding["versions"]:
            data = command.encode(version)
            assert same(encoding["encoded"], data)
            assert read(data, version) == expected


@pytest.mark.parametrize("vector", load("smp_encoding", "cmd-decode"), ids=name_of)
def test_crafted_commands(vector: Vector) -> None:
    data = value(vector["bytes"])
    for part in vector["results"]:
        result = part["result"]
        expected: Command | Error
        if vector["name"] in DIFFERENT:
            expected = DIFFERENT[vector["name"]]
        elif "ok" in result:
            expected = command_of(result["ok"])
        else:
            expected = error_of(result["error"])
        for version in part["versions"]:
            assert read(data, version) == expected


@given(smp_commands, versions)
def test_round_trip(command: Command, version: int) -> None:
    data = command.encode(version)
    expected = as_sent(command, version)
    assert read(data, version) == expected
    assert expected.encode(version) == data


@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(
            lambda tag, rest: tag.encode() + b" " + rest,
            st.sampled_from(
                [
                    "NEW",
                    "KEY",
                    "RKEY",
                    "LSET",
                    "NKEY",
                    "ACK",
                    "SEND",
                    "PRXY",
                    "PFWD",
                    "RFWD",
                    "SUB",
                    "PING",
                ]
            ),
            st.binary(max_size=200),
        ),
        mutated(st.builds(Command.encode, smp_commands, versions)),
    ),
    versions,
)
def test_arbitrary_bytes_give_a_command_or_an_error(data: bytes, version: int) -> None:
    command = read(data, version)
    if isinstance(command, Error):
        assert command in (errors.UNKNOWN, errors.SYNTAX)
    elif isinstance(command, commands.Send):
        # Flags of later versions are skipped, and so are lost.
        assert data.endswith(b" " + command.body)
    elif isinstance(command, commands.Prxy):
        # Hosts are written in one form only.
        assert read(command.encode(version), version) == command
    else:
        assert command.encode(version) == data


def test_new_in_every_version() -> None:
    """The table of smp-wire.md §17."""
    recipient = PublicKey(Algorithm.ED25519, bytes(32))
    dh = PublicKey(Algorithm.X25519, bytes(32))
    head = len(b"NEW ") + 2 * (1 + 44)
    wanted = commands.New(recipient, dh, request=QueueRequest(QueueMode.MESSAGING))
    closed = commands.New(recipient, dh, b"pw", False, QueueRequest(QueueMode.CONTACT))
    unknown = commands.New(recipient, dh)
    for version in range(6, 19):
        ends = [command.encode(version)[head:] for command in (wanted, closed, unknown)]
        if version <= 8:
            assert ends == [b"S", b"A\x02pwC", b"S"]
        elif version <= 14:
            assert ends == [b"0ST", b"1\x02pwCF", b"0SF"]
        elif version <= 16:
            assert ends == [b"0S1M0", b"1\x02pwC1C0", b"0S0"]
        else:
            assert ends == [b"0S1M00", b"1\x02pwC1C00", b"0S00"]


def test_a_contact_link_without_id_is_written_with_an_empty_one() -> None:
    key = PublicKey(Algorithm.X25519, bytes(32))
    link = LinkRequest(b"s", commands.LinkData(b"", b""))
    new = commands.New(key, key, request=QueueRequest(QueueMode.CONTACT, link))
    assert new.encode(18).endswith(b"0S1C1\0\x01s\0\0\0\0" + b"0")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"SUB ", errors.SYNTAX),
        (b"sub", errors.UNKNOWN),
        (b"", errors.UNKNOWN),
        (b"SEND Fxyz hello", commands.Send(False, b"hello")),
        (b"SEND F ", commands.Send(False, b"")),
        (b"SEND F", errors.SYNTAX),
        (b"SEND", errors.SYNTAX),
        (b"OK", errors.UNKNOWN),
        (b"PONG", errors.UNKNOWN),
    ],
)
def test_decoder_facts_confirmed_by_execution(data: bytes, expected: Command | Error) -> None:
    """The last paragraph of smp-wire.md §17."""
    assert all(read(data, version) == expected for version in range(6, 19))


def test_the_space_behind_the_flag_must_be_in_the_transmission() -> None:
    """A space in the next transmission of the block does not count."""
    block = b"SEND Fxyz" + b" next"
    assert read_command(block, 0, 9, 18) == errors.SYNTAX


ALL_CLASSES = {
    cls.tag.decode(): cls
    for cls in vars(commands).values()
    if isinstance(cls, type) and issubclass(cls, Command) and cls.tag
}
OF_RECIPIENT = "SUB KEY RKEY LSET LDEL NKEY NDEL GET ACK OFF DEL QUE"
CREDENTIALS: dict[str, tuple[Error | None, Error | None, Error | None, Error | None]] = {
    "NEW": (errors.NO_AUTH, errors.NO_AUTH, None, errors.HAS_AUTH),
    "SEND": (errors.NO_ENTITY, None, errors.NO_ENTITY, None),
    "PING PRXY RFWD": (None, errors.HAS_AUTH, errors.HAS_AUTH, errors.HAS_AUTH),
    "PFWD LGET": (errors.NO_ENTITY, None, errors.NO_ENTITY, errors.HAS_AUTH),
    f"{OF_RECIPIENT} SUBS SKEY LKEY NSUB NSUBS": (
        errors.NO_AUTH,
        errors.NO_AUTH,
        errors.NO_AUTH,
        None,
    ),
}
"""Commands and what they give with neither, with an id, with an authenticator, with both."""


def test_credentials_table() -> None:
    """The table of smp-wire.md §9.3."""
    tags = [tag for row in CREDENTIALS for tag in row.split()]
    assert sorted(tags) == sorted(ALL_CLASSES)
    for row, expected in CREDENTIALS.items():
        for tag in row.split():
            command = object.__new__(ALL_CLASSES[tag])
            found = (
                check_credentials(command, False, False),
                check_credentials(command, False, True),
                check_credentials(command, True, False),
                check_credentials(command, True, True),
            )
            assert found == expected, tag


def test_parties() -> None:
    """Roles, service signatures and recipient commands: smp-server.md §3, §2.1."""

    def tags(wanted: Callable[[type[Command]], bool]) -> set[str]:
        return {tag for tag, cls in ALL_CLASSES.items() if wanted(cls)}

    assert tags(lambda cls: cls.role is Role.NOTIFIER) == {"NSUB", "NSUBS"}
    assert tags(lambda cls: cls.role is Role.PROXY) == {"RFWD"}
    assert tags(lambda cls: cls.role is None) == {"PING"}
    assert tags(lambda cls: cls.service_signed) == {"NEW", "SUB", "NSUB"}
    assert tags(lambda cls: cls.of_recipient) == set(OF_RECIPIENT.split())


def test_a_class_that_reads_nothing_of_its_own_refuses_parameters() -> None:
    with pytest.raises(ParseError):
        commands.Sub.read(Reader(b""), 18)


@pytest.mark.parametrize(
    ("version", "length"), [(6, 16088), (7, 16088), (8, 16064), (10, 16064), (11, 16048)]
)
def test_longest_message(version: int, length: int) -> None:
    """§14.1."""
    assert max_message_length(version) == length
    assert max_message_length(18) == 16048
