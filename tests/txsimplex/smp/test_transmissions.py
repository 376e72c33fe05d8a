"""Transmissions and their packing: smp-wire.md §8, §9 (smp_transmissions.json)."""

from __future__ import annotations

import hashlib
from functools import cache

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.smp.fields import command_of, error_of, message_of
from tests.txsimplex.smp.strategies import (
    as_sent,
    ids,
    message_as_sent,
    mutated,
    new_commands,
    smp_commands,
    smp_messages,
    versions,
)
from tests.txsimplex.vectors import Vector, det, load, name_of, value
from txsimplex.boxes import BlockChain, BoxKey, PlainBlocks, authenticator, verify_authenticator
from txsimplex.encoding import LargeMessageError, ParseError, large, short
from txsimplex.keys import Algorithm, PrivateKey, PublicKey, verify
from txsimplex.smp import commands, errors, messages
from txsimplex.smp.commands import Command, Credentials
from txsimplex.smp.errors import Error
from txsimplex.smp.messages import Message
from txsimplex.smp.transmissions import (
    BAD_BLOCK,
    EMPTY_HEADER,
    MAX_CONTENT,
    MAX_TRANSMISSIONS,
    Framing,
    Received,
    Refused,
    TooLarge,
    Transmission,
    cut,
    fits,
    frame,
    frame_padded,
    pack,
)

(KEYS,) = load("smp_transmissions", "keys")
SESSION_ID = bytes.fromhex(KEYS["session_id"])
FINGERPRINT = bytes.fromhex(KEYS["service_fingerprint"])
LABELLED = {key["label"]: key for key in KEYS["keys"] if "label" in key}
SESSION_KEY = PrivateKey(Algorithm.X25519, bytes.fromhex(LABELLED["sess"]["private_raw"]))
SERVICE_KEY = PrivateKey(Algorithm.ED25519, bytes.fromhex(LABELLED["svcsess"]["private_raw"]))
QUEUE_KEYS = {
    key["alg"]: PrivateKey(Algorithm[key["alg"].upper()], bytes.fromhex(key["private_raw"]))
    for key in KEYS["keys"]
    if "label" not in key
}
SIZE_OF_PROOF = {None: 0, "Ed25519": 64, "Ed448": 114, "X25519": 80}


def proof(key: PrivateKey, corr_id: bytes, authorized: bytes) -> bytes:
    """What a client puts before a transmission to authorise it with `key` (§9.1)."""
    if key.algorithm is Algorithm.X25519:
        return authenticator(BoxKey(key.exchange(SESSION_KEY.public)), corr_id, authorized)
    return key.sign(authorized)


def verified(key: PublicKey, transmission: Transmission, authorized: bytes) -> bool:
    """Whether a transmission's authenticator is by `key`, as a relay finds out (§9.1)."""
    given = transmission.authenticator
    if key.algorithm is Algorithm.X25519:
        secret = BoxKey(SESSION_KEY.exchange(key))
        return verify_authenticator(secret, transmission.corr_id, authorized, given)
    return verify(key, authorized, given)


# -- whole transmissions


@pytest.mark.parametrize("vector", load("smp_transmissions", "transmission"), ids=name_of)
def test_a_client_makes_the_transmissions_of_the_reference(vector: Vector) -> None:
    framing = Framing(vector["version"], SESSION_ID)
    corr_id, entity_id = bytes.fromhex(vector["corr_id"]), bytes.fromhex(vector["entity_id"])
    command = command_of(vector["command"]).encode(vector["version"])
    authorized = framing.authorized(corr_id, entity_id, command)
    assert authorized.hex() == vector["t_for_auth"]
    made = b""
    signature = None
    if vector["auth_key"] is not None:
        key = PrivateKey(
            Algorithm[vector["auth_key"]["alg"].upper()],
            bytes.fromhex(vector["auth_key"]["private_raw"]),
        )
        if vector["service_signed"]:
            signature = SERVICE_KEY.sign(authorized)
            made = proof(key, corr_id, FINGERPRINT + authorized)
        else:
            made = proof(key, corr_id, authorized)
    assert made.hex() == (vector["authenticator"] or "")
    assert (signature and signature.hex()) == vector["service_signature"]
    transmission = framing.transmission(authorized, made, signature)
    assert transmission.hex() == vector["transmission"]
    content = frame([transmission])
    assert content.hex() == vector["block_content"]
    block = PlainBlocks().seal(content)
    assert hashlib.sha256(block).hexdigest() == vector["block_sha256"]


@pytest.mark.parametrize("vector", load("smp_transmissions", "transmission"), ids=name_of)
def test_a_relay_verifies_the_transmissions_of_the_reference(vector: Vector) -> None:
    framing = Framing(vector["version"], SESSION_ID)
    (transmission,) = framing.read_commands(bytes.fromhex(vector["block_content"]))
    assert isinstance(transmission, Transmission)
    assert transmission.corr_id.hex() == vector["corr_id"]
    assert transmission.entity_id.hex() == vector["entity_id"]
    assert transmission.header == short(transmission.corr_id) + short(transmission.entity_id)
    assert transmission.command == as_sent(command_of(vector["command"]), vector["version"])
    authorized = transmission.authorized
    assert authorized.hex() == vector["server_authorized"]
    assert transmission.authenticator.hex() == (vector["authenticator"] or "")
    signature = transmission.service_signature
    assert (signature and signature.hex()) == vector["service_signature"]
    if vector["service_signed"]:
        assert signature is not None
        assert verify(SERVICE_KEY.public, authorized, signature)
        authorized = FINGERPRINT + authorized
    if vector["server_verifies"] is None:
        assert transmission.authenticator == b""
        return
    assert vector["server_verifies"] is True
    key = PublicKey.decode(bytes.fromhex(vector["auth_key"]["public_spki"]))
    assert verified(key, transmission, authorized)
    assert not verified(key, transmission, authorized + b"x")


@pytest.mark.parametrize("vector", load("smp_transmissions", "response"), ids=name_of)
def test_responses(vector: Vector) -> None:
    framing = Framing(vector["version"], SESSION_ID)
    corr_id, entity_id = bytes.fromhex(vector["corr_id"]), bytes.fromhex(vector["entity_id"])
    message = message_of(vector["message"])
    encoded = message.encode(vector["version"])
    answer = framing.answer(short(corr_id) + short(entity_id), encoded)
    assert answer.hex() == vector["transmission"]
    assert frame([answer]).hex() == vector["block_content"]
    expected = Received(corr_id, entity_id, message_as_sent(message, vector["version"]))
    assert framing.read_messages(frame([answer])) == [expected]
    if not corr_id:
        assert framing.event(entity_id, encoded) == answer


# -- contents of blocks, good and bad


@pytest.mark.parametrize("vector", load("smp_transmissions", "decode-server"), ids=name_of)
def test_what_a_relay_reads(vector: Vector) -> None:
    assert bytes.fromhex(vector["session_id"]) == SESSION_ID
    framing = Framing(vector["version"], SESSION_ID)
    items = framing.read_commands(value(vector["block_content"]))
    assert len(items) == len(vector["results"])
    for item, result in zip(items, vector["results"], strict=True):
        corr_id, entity_id = bytes.fromhex(result["corr_id"]), bytes.fromhex(result["entity_id"])
        header = short(corr_id) + short(entity_id)
        if "error" in result:
            assert item == Refused(header, error_of(result["error"]))
            continue
        assert isinstance(item, Transmission)
        assert (item.corr_id, item.entity_id, item.header) == (corr_id, entity_id, header)
        assert item.command == command_of(result["command"])
        assert item.authorized.hex() == result["authorized"]
        proof = result["auth"] or {"type": None, "service_signature": None}
        assert len(item.authenticator) == SIZE_OF_PROOF[proof["type"]]
        signature = item.service_signature
        assert (signature and signature.hex()) == proof["service_signature"]


@pytest.mark.parametrize("vector", load("smp_transmissions", "decode-client"), ids=name_of)
def test_what_a_client_reads(vector: Vector) -> None:
    assert bytes.fromhex(vector["session_id"]) == SESSION_ID
    framing = Framing(vector["version"], SESSION_ID)
    expected = [
        Received(
            bytes.fromhex(result["corr_id"]),
            bytes.fromhex(result["entity_id"]),
            error_of(result["error"]) if "error" in result else message_of(result["message"]),
        )
        for result in vector["results"]
    ]
    assert framing.read_messages(value(vector["block_content"])) == expected


def test_a_client_notices_another_session() -> None:
    """§9: up to version 6 the session id is in the transmission."""
    other = Framing(6, bytes(32)).answer(b"\x01c\x01e", b"OK")
    received = Framing(6, SESSION_ID).read_messages(frame([other]))
    assert received == [Received(b"c", b"", errors.SESSION)]


def test_the_batch_of_the_specification() -> None:
    """smp-wire.md §17, conformance 53: one transmission is framed too."""
    framing = Framing(18, bytes(range(32)))
    ping = framing.transmission(framing.authorized(bytes(range(24)), b"", b"PING"), b"")
    assert frame([ping]).hex() == (
        "01001f0018000102030405060708090a0b0c0d0e0f10111213141516170050494e47"
    )


@pytest.mark.parametrize("content", [b"", b"\0", b"\x01", b"\x01\0", b"\x01\0\x01", b"\x01\0\0x"])
def test_contents_that_are_none(content: bytes) -> None:
    """Conformance 54 and §8: the whole block is one BLOCK error."""
    with pytest.raises(ParseError):
        cut(content)
    assert Framing(18, SESSION_ID).read_commands(content) == [BAD_BLOCK]
    assert Refused(EMPTY_HEADER, errors.BLOCK) == BAD_BLOCK
    received = Framing(18, SESSION_ID).read_messages(content)
    assert received == [Received(b"", b"", errors.BLOCK)]


def test_a_transmission_ends_where_its_length_says() -> None:
    """Lengths inside must not reach into the next transmission of the block."""
    framing = Framing(18, SESSION_ID)
    good = b"\0\x01a\0PING"
    for start in (b"", b"\0", b"\0\x05a", b"\0\x01a", b"\0\x01a\x03b", b"\x40" + bytes(63)):
        items = framing.read_commands(frame([start, good]))
        assert items[0] == BAD_BLOCK
        assert isinstance(items[1], Transmission)
    signature = b"\x40" + bytes(64)
    for start in (signature + b"1\x40" + bytes(63), signature, signature + b"1"):
        assert framing.read_commands(frame([start, good + bytes(80)]))[0] == BAD_BLOCK


@pytest.mark.parametrize("version", [6, 7, 15, 16, 18])
def test_lengths_of_authenticators(version: int) -> None:
    """Conformance 71: all but four lengths give BLOCK with the correlation id."""
    framing = Framing(version, SESSION_ID)
    authorized = framing.authorized(b"corr", b"entity", b"SUB")
    for size in range(256):
        (item,) = framing.read_commands(frame([framing.transmission(authorized, bytes(size))]))
        if size in (64, 80, 114):
            assert isinstance(item, Transmission)
            assert item.authenticator == bytes(size)
            assert item.authorized == authorized
        elif size == 0:
            assert item == Refused(b"\x04corr\x06entity", errors.NO_AUTH)
        else:
            assert item == Refused(b"\x04corr\0", errors.BLOCK)


def test_order_of_checks() -> None:
    """§9.3: session, authenticator, tag, parameters, credentials; the first failure wins."""
    framing = Framing(6, SESSION_ID)
    other = Framing(6, bytes(32))

    def refused(by: Framing, authenticator: bytes, entity_id: bytes, command: bytes) -> Refused:
        authorized = by.authorized(b"c", entity_id, command)
        (item,) = framing.read_commands(frame([by.transmission(authorized, authenticator)]))
        assert isinstance(item, Refused)
        return item

    assert refused(other, b"x", b"e", b"NOPE") == Refused(b"\x01c\0", errors.SESSION)
    assert refused(framing, b"x", b"e", b"NOPE") == Refused(b"\x01c\0", errors.BLOCK)
    assert refused(framing, b"", b"", b"NOPE") == Refused(b"\x01c\0", errors.UNKNOWN)
    assert refused(framing, b"", b"", b"SUB x") == Refused(b"\x01c\0", errors.SYNTAX)
    assert refused(framing, b"", b"e", b"SUB") == Refused(b"\x01c\x01e", errors.NO_AUTH)


# -- packing


@cache
def _batched(algorithm: str, number: int) -> tuple[bytes, bytes]:
    """What the n-th SUB of the batches authorises, and its authenticator."""
    corr_id = det(24, f"batch/{number}")
    authorized = Framing(18, SESSION_ID).authorized(corr_id, det(24, f"bq/{number}"), b"SUB")
    if algorithm == "none":
        return authorized, b""
    (key,) = (key for name, key in QUEUE_KEYS.items() if name.lower() == algorithm)
    return authorized, proof(key, corr_id, authorized)


@pytest.mark.parametrize("vector", load("smp_transmissions", "batch"), ids=name_of)
def test_batches_of_the_reference(vector: Vector) -> None:
    framing = Framing(vector["version"], SESSION_ID)
    algorithm = vector["name"].split("/")[2].removeprefix("SUB-")
    transmissions = [
        framing.transmission(*_batched(algorithm, number)) for number in range(vector["n"])
    ]
    assert {len(transmission) for transmission in transmissions} == set(vector["item_sizes"])
    found = [
        {
            "content_len": len(content),
            "content_sha256": hashlib.sha256(content).hexdigest(),
            "count": content[0],
        }
        for content in pack(transmissions)
        if isinstance(content, bytes)
    ]
    assert found == vector["blocks"]


@pytest.mark.parametrize("vector", load("smp_transmissions", "batch-sizes"), ids=name_of)
def test_sizes_of_batches(vector: Vector) -> None:
    blocks = pack([b"a" * size for size in vector["item_sizes"]])
    found = [
        {"error": ["LARGE_MSG"]}
        if isinstance(block, TooLarge)
        else {"content_len": len(block), "count": block[0]}
        for block in blocks
    ]
    assert found == vector["blocks"]


def _subs(framing: Framing, count: int) -> list[bytes]:
    """SUBs with Ed25519 signatures and ids of 24 bytes."""
    authorized = framing.authorized(bytes(24), bytes(24), b"SUB")
    return [framing.transmission(authorized, bytes(64))] * count


def _send(framing: Framing, size: int) -> bytes:
    """A SEND with an X25519 authenticator."""
    command = commands.Send(False, bytes(size)).encode(18)
    authorized = framing.authorized(bytes(24), bytes(24), command)
    return framing.transmission(authorized, bytes(80))


def _counts(transmissions: list[bytes]) -> list[int | None]:
    """How many transmissions each block has; None for one that fits into none."""
    return [None if isinstance(block, TooLarge) else block[0] for block in pack(transmissions)]


NOW, OLD = Framing(18, SESSION_ID), Framing(6, SESSION_ID)


def test_045_300_subs() -> None:
    assert _counts(_subs(NOW, 300)) == [30, 135, 135]


def test_046_250_subs_at_version_6() -> None:
    assert _counts(_subs(OLD, 250)) == [38, 106, 106]


def test_047_a_long_send_among_subs() -> None:
    for framing, expected in ((NOW, [33, 68]), (OLD, [47, 54])):
        transmissions = [*_subs(framing, 60), _send(framing, 8000), *_subs(framing, 40)]
        assert _counts(transmissions) == expected


def test_048_a_send_too_large_in_the_middle() -> None:
    transmissions = [*_subs(NOW, 60), _send(NOW, 17000), *_subs(NOW, 150)]
    assert _counts(transmissions) == [60, None, 15, 135]
    assert pack(transmissions)[1] == TooLarge(60)


def test_049_a_send_too_large_in_front() -> None:
    transmissions = [_send(NOW, 17000), *_subs(NOW, 210)]
    assert _counts(transmissions) == [None, 75, 135]
    assert pack(transmissions)[0] == TooLarge(0)


def test_050_300_end_events() -> None:
    assert _counts([NOW.event(bytes(24), messages.End().encode(18))] * 300) == [45, 255]


def test_051_200_notifications() -> None:
    notification = messages.Nmsg(bytes(24), bytes(144))
    assert _counts([NOW.event(bytes(24), notification.encode(18))] * 200) == [40, 80, 80]


def test_three_sok_fit_beside_a_message() -> None:
    """The note at the end of §8."""
    ok = NOW.answer(short(bytes(24)) + short(bytes(24)), messages.Sok().encode(18))
    message = NOW.event(bytes(24), messages.Msg(bytes(24), bytes(16122)).encode(18))
    assert (len(ok), len(message)) == (56, 16178)
    assert fits([ok] * 3 + [message])
    assert not fits([ok] * 4 + [message])
    assert _counts([ok] * 4 + [message]) == [1, 4]


sizes = st.one_of(
    st.integers(0, 300), st.sampled_from([8180, 8181, 16000, 16362, 16363, 16364, 20000])
)


@given(st.lists(sizes, max_size=30), st.integers(0, 300))
def test_052_053_packing(sizes: list[int], more: int) -> None:
    """Order, limits, and that blocks are as full as they can be from the end."""
    transmissions = [bytes((number % 256,)) * size for number, size in enumerate(sizes)]
    transmissions += [b"x"] * more
    blocks = pack(transmissions)
    unpacked: list[bytes] = []
    previous: list[bytes] | None = None
    for block in blocks:
        if isinstance(block, TooLarge):
            assert block.position == len(unpacked)
            unpacked.append(transmissions[block.position])
            assert len(unpacked[-1]) + 2 > MAX_CONTENT
            previous = None
            continue
        items = [block[start:end] for start, end in cut(block)]
        assert block == bytes((len(items),)) + b"".join(map(large, items)) == frame(items)
        assert len(block) <= 16382
        assert fits(items)
        if previous is not None:
            assert not fits([previous[-1], *items])
        previous = items
        unpacked += items
    assert unpacked == transmissions


def test_packed_contents_fit_into_every_block() -> None:
    """Conformance 52: also into one that is encrypted."""
    (content,) = pack([bytes(MAX_CONTENT - 2)])
    assert isinstance(content, bytes)
    assert len(content) == MAX_CONTENT + 1 <= 16366
    assert not fits([b""] * (MAX_TRANSMISSIONS + 1))
    with pytest.raises(LargeMessageError):
        PlainBlocks().seal(bytes(16383))


@given(
    st.lists(st.binary(max_size=200), min_size=1, max_size=3),
    st.sampled_from([BlockChain, PlainBlocks]),
)
def test_a_block_framed_and_padded_in_one_go(
    parts: list[bytes], blocks: type[BlockChain] | type[PlainBlocks]
) -> None:
    """smp-wire.md §7, §8: the same as framed, padded and sealed one after the other."""

    def new() -> BlockChain | PlainBlocks:
        return BlockChain(bytes(32)) if blocks is BlockChain else PlainBlocks()

    sealed = new().seal_padded(frame_padded(parts, blocks.padded_size))
    assert sealed == new().seal(frame([b"".join(parts)]))
    assert new().open(sealed) == frame([b"".join(parts)])


# -- arbitrary bytes


REFUSALS = (
    errors.BLOCK,
    errors.SESSION,
    errors.UNKNOWN,
    errors.SYNTAX,
    errors.NO_AUTH,
    errors.HAS_AUTH,
    errors.NO_ENTITY,
)
authenticators = st.sampled_from([b"", bytes(64), bytes(80), bytes(114)])


@st.composite
def client_transmissions(draw: st.DrawFn, framing: Framing) -> bytes:
    """Transmissions of arbitrary commands and credentials."""
    command = draw(smp_commands).encode(framing.version)
    made = draw(authenticators)
    signature = draw(st.none() | st.just(bytes(64))) if framing.version >= 16 and made else None
    return framing.transmission(framing.authorized(draw(ids), draw(ids), command), made, signature)


@given(st.data(), versions)
def test_a_relay_reads_what_a_client_makes(data: st.DataObject, version: int) -> None:
    framing = Framing(version, SESSION_ID)
    command: Command = data.draw(new_commands | smp_commands)
    corr_id, made = data.draw(ids), b""
    entity_id = data.draw(ids.filter(bool))
    match command.credentials:
        case Credentials.CREATOR:
            entity_id, made = b"", bytes(80)
        case Credentials.BOTH:
            made = bytes(64)
        case Credentials.NEITHER:
            entity_id = b""
    signature = data.draw(st.none() | st.binary(min_size=64, max_size=64))
    if version < 16 or not made:
        signature = None
    encoded = command.encode(version)
    authorized = framing.authorized(corr_id, entity_id, encoded)
    (item,) = framing.read_commands(frame([framing.transmission(authorized, made, signature)]))
    assert isinstance(item, Transmission)
    assert item.command.encode(version) == encoded
    assert (item.corr_id, item.entity_id, item.authenticator) == (corr_id, entity_id, made)
    assert (item.service_signature, item.authorized) == (signature, authorized)


@given(st.lists(st.tuples(ids, ids, smp_messages), min_size=1, max_size=5), versions)
def test_a_client_reads_what_a_relay_makes(
    items: list[tuple[bytes, bytes, Message]], version: int
) -> None:
    framing = Framing(version, SESSION_ID)
    content = frame(
        [
            framing.answer(short(corr_id) + short(entity_id), message.encode(version))
            for corr_id, entity_id, message in items
        ]
    )
    received = framing.read_messages(content)
    for (corr_id, entity_id, message), one in zip(items, received, strict=True):
        assert (one.corr_id, one.entity_id) == (corr_id, entity_id)
        if isinstance(one.message, Error):
            assert one.message in (errors.NO_ENTITY, errors.HAS_AUTH)
        else:
            assert one.message == message_as_sent(message, version)


@given(st.data(), versions)
def test_arbitrary_contents(data: st.DataObject, version: int) -> None:
    framing = Framing(version, SESSION_ID)
    frames = st.lists(client_transmissions(framing), min_size=1, max_size=3).map(frame)
    pieces = st.lists(st.binary(max_size=60), min_size=1, max_size=5).map(frame)
    content = data.draw(st.one_of(st.binary(max_size=100), pieces, mutated(frames)))
    items = framing.read_commands(content)
    received = framing.read_messages(content)
    assert len(items) == len(received) >= 1
    for item in items:
        if isinstance(item, Transmission):
            assert isinstance(item.command, Command)
            assert item.authorized[33:] in content
        else:
            assert item.error in REFUSALS
            assert item.header[:-1] in content or item == BAD_BLOCK
    for one in received:
        assert isinstance(one.message, (Message, Error))
