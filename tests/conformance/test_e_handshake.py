"""Conformance E: handshake and versions."""

from __future__ import annotations

from itertools import cycle

import pytest
from pytest_twisted import ensureDeferred

from tests.conformance.clients import (
    ALGORITHMS,
    SIGNING_ALGORITHMS,
    GetRelay,
    Relay,
    err,
    make_queue,
    new_id,
    new_key,
    next_content,
    next_message,
    next_msg,
    send_content,
    soon,
)
from tests.conformance.relays import Credentials
from txsimplex.boxes import PlainBlocks
from txsimplex.certificates import SignedKey
from txsimplex.client.blocks import BlockConnection
from txsimplex.client.errors import DisconnectedError, IdentityError
from txsimplex.client.session import SMP_ALPN
from txsimplex.client.smp import SMPClient
from txsimplex.keys import Algorithm
from txsimplex.smp.hellos import ClientHello, ServerHello
from txsimplex.smp.messages import Pong
from txsimplex.smp.transmissions import Received
from txsimplex.smp.versions import SENDER_SECURES, VersionRange

VERSIONS = (6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17, 18)
ALL = VersionRange(6, 18)
LEGACY = VersionRange(6, 6)


async def closed_without_a_block(connection: BlockConnection) -> bool:
    """Whether the relay closes, and sends nothing before."""
    with pytest.raises(DisconnectedError):
        await soon(connection.next_block())
    return True


def hello(relay: Relay, version: int, *, key_hash: bytes | None = None) -> ClientHello:
    return ClientHello(version, key_hash or relay.key_hash, new_key(Algorithm.X25519).public)


@ensureDeferred
async def test_075_hello_without_alpn(relay: Relay) -> None:
    connection = await relay.blocks(alpn=None)
    content = ServerHello.decode(await next_content(connection))
    assert connection.transport.alpn is None
    assert content.versions == LEGACY
    assert content.key is None


@pytest.mark.parametrize("alpn", [SMP_ALPN, b"h2", b"http/1.1"])
@ensureDeferred
async def test_075_hello_with_alpn(relay: Relay, alpn: bytes) -> None:
    connection = await relay.blocks(alpn=alpn)
    presented = list(connection.transport.peer_chain)
    content = ServerHello.decode(await next_content(connection))
    credentials = relay.process.credentials
    assert connection.transport.alpn == alpn
    assert content.versions == ALL
    assert content.key is not None
    assert content.key.chain == presented == [credentials.online, credentials.authority]
    signed = SignedKey.decode(content.key.signed_key)
    assert signed.key.algorithm is Algorithm.X25519
    assert signed.verify(credentials.online_key.public)


@ensureDeferred
async def test_075_session_key_of_each_connection(relay: Relay) -> None:
    keys = set()
    for _ in range(2):
        content = ServerHello.decode(await next_content(await relay.blocks()))
        assert content.key is not None
        keys.add(content.key.signed_key)
    assert len(keys) == 2


@ensureDeferred
async def test_075_relay_with_ed448_certificates(relays: GetRelay) -> None:
    relay = relays({}, Algorithm.ED448)
    content = ServerHello.decode(await next_content(await relay.blocks()))
    assert content.key is not None
    assert len(content.key.signed_key) == 173
    client = await relay.connect()
    await client.ping()


@pytest.mark.parametrize("alpn", [SMP_ALPN, None])
@ensureDeferred
async def test_076_session_id_is_the_clients_finished(relay: Relay, alpn: bytes | None) -> None:
    connection = await relay.blocks(alpn=alpn)
    content = ServerHello.decode(await next_content(connection))
    assert len(content.session_id) == 32
    assert content.session_id == connection.transport.session_id


@ensureDeferred
async def test_077_wrong_key_hash(relay: Relay) -> None:
    credentials = relay.process.credentials
    another = Credentials.make().key_hash
    for key_hash in (bytes(32), another, credentials.key_hash[:31], credentials.key_hash * 2):
        connection = await relay.blocks()
        await next_content(connection)
        send_content(connection, hello(relay, 18, key_hash=key_hash).encode())
        assert await closed_without_a_block(connection)


@ensureDeferred
async def test_078_version_not_offered(relay: Relay) -> None:
    for alpn, versions in ((SMP_ALPN, (0, 5, 19, 65535)), (None, (5, 7, 18))):
        for version in versions:
            connection = await relay.blocks(alpn=alpn)
            await next_content(connection)
            send_content(connection, hello(relay, version).encode())
            assert await closed_without_a_block(connection)


@ensureDeferred
async def test_078_version_not_offered_by_a_restricted_relay(relays: GetRelay) -> None:
    relay = relays({"protocol.minimum_version": 9, "protocol.maximum_version": 14})
    client = await relay.connect()
    assert client.version == 14
    for version in (8, 15):
        connection = await relay.blocks()
        content = ServerHello.decode(await next_content(connection))
        assert content.versions == VersionRange(9, 14)
        send_content(connection, hello(relay, version).encode())
        assert await closed_without_a_block(connection)


@ensureDeferred
async def test_079_extra_bytes_in_hellos(relay: Relay) -> None:
    for version in VERSIONS:
        connection = await relay.blocks()
        content = await next_content(connection)
        assert ServerHello.decode(content + b"extra") == ServerHello.decode(content)
        send_content(connection, ClientHello(version, relay.key_hash).encode() + b"extra")
        send_content(connection, ping(version, connection.transport.session_id))
        assert (await next_content(connection)).endswith(b"PONG")


def ping(version: int, session_id: bytes) -> bytes:
    """A block with PING, as version 6 or the later ones have it."""
    session = bytes((len(session_id),)) + session_id if version == 6 else b""
    transmission = b"\0" + session + b"\1c\0PING"
    return b"\1\0" + bytes((len(transmission),)) + transmission


@ensureDeferred
async def test_080_wrong_fingerprint_in_the_address(relay: Relay) -> None:
    with pytest.raises(IdentityError):
        await relay.connect(key_hash=Credentials.make().key_hash)


@pytest.mark.parametrize(
    ("version", "proxy", "session_key", "encrypted"),
    [
        (18, False, True, True),
        (14, False, True, True),
        (11, False, True, True),
        (10, False, True, False),
        (7, False, True, False),
        (18, True, True, False),
        (14, True, True, False),
        (18, False, False, False),
        (11, False, False, False),
    ],
)
@ensureDeferred
async def test_081_block_encryption(
    relay: Relay, version: int, proxy: bool, session_key: bool, encrypted: bool
) -> None:
    client = await relay.raw(version, proxy=proxy, session_key=session_key)
    assert client.session.version == version
    blocks = []
    for _ in range(3):
        client.send(b"PING", corr_id=b"c")
        block = await client.next_block()
        blocks.append(block)
        if encrypted:
            assert b"PONG" not in block
        else:
            assert PlainBlocks().open(block).endswith(b"PONG")
        (answer,) = client.session.framing.read_messages(client.session.open(block))
        assert (answer.corr_id, answer.message) == (b"c", Pong())
    # A chain of keys: the same content looks different each time.
    assert len(set(blocks)) == (3 if encrypted else 1)


@ensureDeferred
async def test_081_chains_of_both_directions_differ(relay: Relay) -> None:
    client = await relay.raw()
    client.send(b"PING", corr_id=b"c")
    block = await client.next_block()
    assert client.session.open(block).endswith(b"PONG")
    client.send_block(block)
    assert await client.next_batch() == [Received(b"", b"", err("BLOCK"))]


async def exchange(recipient: SMPClient, sender: SMPClient, algorithm: Algorithm) -> None:
    """Creates a queue, secures it, sends and receives, and deletes it again."""
    queue = await make_queue(recipient, algorithm)
    sender_key = new_key(algorithm)
    if recipient.version >= SENDER_SECURES and sender.version >= SENDER_SECURES:
        await sender.sender_secure(queue.sender_id, sender_key)
    else:
        await recipient.secure(*queue.own, sender_key.public)
    body = new_id()
    await sender.send(queue.sender_id, body, key=sender_key)
    message = await next_msg(recipient, queue)
    assert queue.open(message).body == body
    assert await recipient.ack(*queue.own, message.msg_id) is None
    await recipient.delete(*queue.own)


@ensureDeferred
async def test_082_versions_interoperate(relay: Relay) -> None:
    """Clients of all versions with each other; agents come with a later part of the work."""
    recipients = [await relay.connect(version) for version in VERSIONS]
    senders = [await relay.connect(version) for version in VERSIONS]
    algorithms = cycle(ALGORITHMS)
    for recipient in recipients:
        for sender in senders:
            algorithm = next(algorithms)
            if 6 in (recipient.version, sender.version) and algorithm is Algorithm.X25519:
                algorithm = Algorithm.ED25519
            await exchange(recipient, sender, algorithm)


@pytest.mark.parametrize("algorithm", SIGNING_ALGORITHMS)
@ensureDeferred
async def test_083_version_6_without_alpn(relay: Relay, algorithm: Algorithm) -> None:
    recipient, sender = await relay.connect(alpn=None), await relay.connect(alpn=None)
    assert recipient.version == sender.version == 6
    assert not recipient.session.encrypted
    queue = await make_queue(recipient, algorithm, mode=None)
    await sender.send(queue.sender_id, b"not secured yet")
    message = await next_msg(recipient, queue)
    assert queue.open(message).body == b"not secured yet"
    assert await recipient.ack(*queue.own, message.msg_id) is None
    sender_key = new_key(algorithm)
    await recipient.secure(*queue.own, sender_key.public)
    await sender.send(queue.sender_id, b"secured", key=sender_key)
    assert (await next_message(recipient, queue)).body == b"secured"
