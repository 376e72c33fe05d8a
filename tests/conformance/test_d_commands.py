"""Conformance D: command syntax and credentials, where no queue exists."""

from __future__ import annotations

import pytest
from pytest_twisted import ensureDeferred

from tests.conformance.clients import ALGORITHMS, Relay, err, new_id, new_key
from txsimplex.addresses import Host, RelayLocation
from txsimplex.client.raw import RawClient
from txsimplex.encoding import short
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.commands import Ack, Command, Key, New, Pfwd, Prxy, Send
from txsimplex.smp.messages import Pong
from txsimplex.smp.transmissions import Received

CORR_ID = b"abcd"
ENTITY_ID = b"1234"


async def answer(
    client: RawClient,
    command: Command | bytes,
    entity_id: bytes = b"",
    key: PrivateKey | None = None,
) -> str:
    """The error that a command is answered with; the ids must be those of the command."""
    received = await client.request(command, corr_id=CORR_ID, entity_id=entity_id, key=key)
    assert (received.corr_id, received.entity_id) == (CORR_ID, entity_id)
    text = str(getattr(received.message, "error", received.message))
    assert received == Received(CORR_ID, entity_id, err(text))
    return text


@pytest.fixture
def key() -> PrivateKey:
    return new_key()


def new() -> New:
    return New(new_key().public, new_key(Algorithm.X25519).public)


@ensureDeferred
async def test_055_unknown_command(relay: Relay) -> None:
    client = await relay.raw()
    assert await answer(client, b"HELLO", ENTITY_ID) == "CMD UNKNOWN"


@ensureDeferred
async def test_056_new_without_parameters(relay: Relay, key: PrivateKey) -> None:
    client = await relay.raw()
    for command in (b"NEW", b"NEW "):
        assert await answer(client, command, b"", key) == "CMD SYNTAX"


@ensureDeferred
async def test_057_new_with_malformed_parameters(relay: Relay, key: PrivateKey) -> None:
    client = await relay.raw()
    good = new().encode(18)
    ed25519, ed448 = new_key().public, new_key(Algorithm.ED448).public
    x25519, x448 = new_key(Algorithm.X25519).public, new_key(Algorithm.X448).public
    for command in (
        b"NEW hello",
        good[:-1],
        good + b"x",
        # Modes of subscription and of queues that do not exist.
        good.replace(b"0S0", b"0X0"),
        good[:-2] + b"1X00",
        # A key that does not authorise, and those that do no key exchange.
        b"NEW " + short(x448.encode()) + short(x25519.encode()) + b"0S00",
        b"NEW " + short(ed25519.encode()) + short(ed25519.encode()) + b"0S00",
        b"NEW " + short(ed25519.encode()) + short(ed448.encode()) + b"0S00",
        # A password with a space.
        good.replace(b"0S0", b"1" + short(b"a b") + b"S0"),
    ):
        assert await answer(client, command, b"", key) == "CMD SYNTAX"


@ensureDeferred
async def test_058_new_without_authorization(relay: Relay) -> None:
    client = await relay.raw()
    assert await answer(client, new()) == "CMD NO_AUTH"


@ensureDeferred
async def test_059_new_with_an_entity_id(relay: Relay, key: PrivateKey) -> None:
    client = await relay.raw()
    assert await answer(client, new(), ENTITY_ID, key) == "CMD HAS_AUTH"


@ensureDeferred
async def test_060_key_on_unknown_queue(relay: Relay) -> None:
    client = await relay.raw()
    for algorithm in ALGORITHMS:
        command = Key(new_key(algorithm).public)
        assert await answer(client, command, ENTITY_ID, new_key(algorithm)) == "AUTH"
        assert await answer(client, command, new_id(), new_key(algorithm)) == "AUTH"


@ensureDeferred
async def test_061_key_with_malformed_parameter(relay: Relay, key: PrivateKey) -> None:
    """The reference closes the connection when the DER has a length that could be shorter."""
    client = await relay.raw()
    spki = key.public.encode()
    long_form = b"\x30\x81" + spki[1:]
    for command in (
        b"KEY",
        b"KEY ",
        b"KEY 11",
        b"KEY " + short(spki[:-1]),
        b"KEY " + short(spki + b"\0"),
        b"KEY " + short(spki) + b"x",
        b"KEY " + short(new_key(Algorithm.X448).public.encode()),
        b"KEY " + short(long_form),
    ):
        assert await answer(client, command, ENTITY_ID, key) == "CMD SYNTAX"
    assert await client.request(b"PING", corr_id=b"c") == Received(b"c", b"", Pong())


@ensureDeferred
async def test_062_key_without_credentials(relay: Relay, key: PrivateKey) -> None:
    client = await relay.raw()
    assert await answer(client, Key(key.public), ENTITY_ID) == "CMD NO_AUTH"
    assert await answer(client, Key(key.public), b"", key) == "CMD NO_AUTH"


@pytest.mark.parametrize("command", [b"SUB", b"OFF", b"DEL"])
@ensureDeferred
async def test_063_unknown_queue(relay: Relay, command: bytes) -> None:
    client = await relay.raw()
    for algorithm in ALGORITHMS:
        assert await answer(client, command, new_id(), new_key(algorithm)) == "AUTH"


@pytest.mark.parametrize("command", [b"SUB=", b"OFF=", b"DEL=", b"SUB\n", b"sub", b""])
@ensureDeferred
async def test_064_wrong_terminator(relay: Relay, key: PrivateKey, command: bytes) -> None:
    client = await relay.raw()
    assert await answer(client, command, ENTITY_ID, key) == "CMD UNKNOWN"


@pytest.mark.parametrize("command", [b"SUB", b"OFF", b"DEL"])
@ensureDeferred
async def test_065_without_credentials(relay: Relay, key: PrivateKey, command: bytes) -> None:
    client = await relay.raw()
    assert await answer(client, command, ENTITY_ID) == "CMD NO_AUTH"
    assert await answer(client, command, b"", key) == "CMD NO_AUTH"


@ensureDeferred
async def test_066_send(relay: Relay, key: PrivateKey) -> None:
    client = await relay.raw()
    assert await answer(client, Send(True, b"hello"), ENTITY_ID, key) == "AUTH"
    assert await answer(client, Send(True, b"hello"), ENTITY_ID) == "AUTH"
    for command in (b"SEND", b"SEND ", b"SEND T", b"SEND F", b"SEND hello", b"SEND  hello"):
        assert await answer(client, command, ENTITY_ID, key) == "CMD SYNTAX"
    assert await answer(client, Send(True, b"hello"), b"", key) == "CMD NO_ENTITY"
    assert await answer(client, Send(True, b"hello")) == "CMD NO_ENTITY"


@ensureDeferred
async def test_067_ack(relay: Relay, key: PrivateKey) -> None:
    client = await relay.raw()
    assert await answer(client, Ack(new_id()), ENTITY_ID, key) == "AUTH"
    for command in (b"ACK", b"ACK ", b"ACK 1234", b"ACK " + short(b"1234") + b"x"):
        assert await answer(client, command, ENTITY_ID, key) == "CMD SYNTAX"
    assert await answer(client, Ack(new_id()), b"", key) == "CMD NO_AUTH"
    assert await answer(client, Ack(new_id()), ENTITY_ID) == "CMD NO_AUTH"


@ensureDeferred
async def test_068_ping(relay: Relay) -> None:
    client = await relay.raw()
    assert await client.request(b"PING", corr_id=CORR_ID) == Received(CORR_ID, b"", Pong())


@ensureDeferred
async def test_069_ping_with_credentials(relay: Relay, key: PrivateKey) -> None:
    client = await relay.raw()
    assert await answer(client, b"PING", b"", key) == "CMD HAS_AUTH"
    assert await answer(client, b"PING", ENTITY_ID) == "CMD HAS_AUTH"
    assert await answer(client, b"PING", ENTITY_ID, key) == "CMD HAS_AUTH"


@ensureDeferred
async def test_070_broker_message(relay: Relay) -> None:
    client = await relay.raw()
    assert await answer(client, b"OK", ENTITY_ID) == "CMD UNKNOWN"
    assert await answer(client, b"OK") == "CMD UNKNOWN"


@ensureDeferred
async def test_071_length_of_the_authenticator(relay: Relay) -> None:
    client = await relay.raw()
    refused = Received(CORR_ID, b"", err("BLOCK"))
    for size in (1, 63, 65, 79, 81, 113, 115, 255):
        client.send_transmissions(
            client.transmission(
                b"SUB", corr_id=CORR_ID, entity_id=ENTITY_ID, authenticator=bytes(size)
            )
        )
        assert await client.next_batch() == [refused]
    for size in (64, 80, 114):
        client.send_transmissions(
            client.transmission(
                b"SUB", corr_id=CORR_ID, entity_id=ENTITY_ID, authenticator=bytes(size)
            )
        )
        assert await client.next_batch() == [Received(CORR_ID, ENTITY_ID, err("AUTH"))]


@ensureDeferred
async def test_072_link_commands(relay: Relay, key: PrivateKey) -> None:
    client = await relay.raw()
    assert await answer(client, b"LGET", ENTITY_ID, key) == "CMD HAS_AUTH"
    link_key = b"LKEY " + short(key.public.encode())
    assert await answer(client, link_key, ENTITY_ID) == "CMD NO_AUTH"


@ensureDeferred
async def test_073_proxy_commands(relay: Relay, key: PrivateKey) -> None:
    client = await relay.raw()
    proxy = Prxy(RelayLocation((Host.parse("localhost"),), "5223", bytes(32)))
    assert await answer(client, proxy, ENTITY_ID) == "CMD HAS_AUTH"
    assert await answer(client, proxy, b"", key) == "CMD HAS_AUTH"
    forward = Pfwd(18, new_key(Algorithm.X25519).public, bytes(100))
    assert await answer(client, forward) == "CMD NO_ENTITY"


@pytest.mark.parametrize("command", [b"SUB", b"OFF", b"DEL", b"QUE", b"GET", b"NDEL", b"LDEL"])
@ensureDeferred
async def test_074_trailing_bytes(relay: Relay, key: PrivateKey, command: bytes) -> None:
    client = await relay.raw()
    for trailing in (b" x", b" "):
        assert await answer(client, command + trailing, ENTITY_ID, key) == "CMD SYNTAX"
