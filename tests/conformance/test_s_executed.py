"""Conformance S: what was executed on the reference itself."""

from __future__ import annotations

import socket
import ssl

import pytest
from OpenSSL import SSL
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from tests.conformance.clients import (
    WAIT,
    Relay,
    err,
    make_queue,
    make_secured_queue,
    new_id,
    new_key,
    next_content,
    next_message,
    refused,
    send_content,
    soon,
)
from tests.conformance.numbers import conforms
from txsimplex.client.blocks import BlockConnection
from txsimplex.client.errors import DisconnectedError
from txsimplex.client.session import SMP_ALPN
from txsimplex.client.smp import Request
from txsimplex.encoding import short, u16
from txsimplex.keys import Algorithm
from txsimplex.smp import commands
from txsimplex.smp.commands import QueueMode
from txsimplex.smp.hellos import ClientHello
from txsimplex.smp.messages import Ok, Pong
from txsimplex.smp.transmissions import Received
from txsimplex.tls import client_context


async def is_turned_away(connection: BlockConnection, hello: ClientHello) -> bool:
    """Whether the relay closes after this hello, without a block of its own."""
    await next_content(connection)
    send_content(connection, hello.encode())
    with pytest.raises(DisconnectedError):
        await soon(connection.next_block())
    return True


def set_up_tls(port: int, alpn: str) -> None:
    """Another implementation's handshake with the relay, which tells alerts by their names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    with (
        socket.create_connection(("127.0.0.1", port), WAIT) as connection,
        context.wrap_socket(connection) as secured,
    ):
        secured.recv(1)


@ensureDeferred
async def test_239_versions_5_and_19(relay: Relay) -> None:
    for version in (5, 19):
        hello = ClientHello(version, relay.key_hash, new_key(Algorithm.X25519).public)
        assert await is_turned_away(await relay.blocks(), hello)


@ensureDeferred
async def test_240_unknown_key_hash(relay: Relay) -> None:
    hello = ClientHello(18, bytes(32), new_key(Algorithm.X25519).public)
    assert await is_turned_away(await relay.blocks(), hello)


@ensureDeferred
async def test_241_alpn_without_a_supported_protocol(relay: Relay) -> None:
    with pytest.raises(ssl.SSLError, match="alert no application protocol"):
        await deferToThread(set_up_tls, relay.process.port, "xmpp-client")
    with pytest.raises(DisconnectedError):
        await relay.blocks(alpn=b"xmpp-client")
    context = client_context(alpn=(b"xmpp-client", b"http/1.1", SMP_ALPN))
    connection = await relay.blocks(context=context)
    assert connection.transport.alpn == b"http/1.1"


@ensureDeferred
async def test_241_hello_without_alpn_is_short(relay: Relay) -> None:
    connection = await relay.blocks(alpn=None)
    content = await next_content(connection)
    assert len(content) == 4 + 1 + 32
    assert content == u16(6) + u16(6) + short(connection.transport.session_id)


@ensureDeferred
async def test_242_tls_1_2(relay: Relay) -> None:
    contexts = [client_context(alpn=(SMP_ALPN,)) for _ in range(2)]
    for context in contexts:
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
    recipient = await relay.connect(context=contexts[0])
    sender = await relay.connect(context=contexts[1])
    assert len(recipient.session.session_id) == 12
    assert recipient.session.encrypted
    for algorithm in (Algorithm.ED25519, Algorithm.X25519):
        queue, sender_key = await make_secured_queue(recipient, algorithm)
        await sender.send(queue.sender_id, b"over TLS 1.2", key=sender_key)
        assert (await next_message(recipient, queue)).body == b"over TLS 1.2"


@ensureDeferred
async def test_243_missing_and_superfluous_entity(relay: Relay) -> None:
    client = await relay.raw()
    assert await client.request(b"SUB", corr_id=b"c", key=new_key()) == Received(
        b"c", b"", err("CMD NO_AUTH")
    )
    assert await client.request(b"SEND F x", corr_id=b"c") == Received(
        b"c", b"", err("CMD NO_ENTITY")
    )
    assert await client.request(b"PING", corr_id=b"c", entity_id=b"1234") == Received(
        b"c", b"1234", err("CMD HAS_AUTH")
    )


@pytest.mark.parametrize("tag", [b"OK", b"PONG", b"PKEY"])
@ensureDeferred
async def test_244_broker_tags(relay: Relay, tag: bytes) -> None:
    client = await relay.raw()
    for entity_id in (b"", b"1234"):
        answer = await client.request(tag, corr_id=b"c", entity_id=entity_id)
        assert answer == Received(b"c", entity_id, err("CMD UNKNOWN"))


@ensureDeferred
async def test_245_flags_of_send(relay: Relay) -> None:
    recipient, client = await relay.connect(), await relay.raw()
    queue = await make_queue(recipient)
    for command in (b"SEND X hello", b"SEND tf hello", b"SEND 1 hello"):
        answer = await client.request(command, corr_id=b"c", entity_id=queue.sender_id)
        assert answer == Received(b"c", queue.sender_id, err("CMD SYNTAX"))
    answer = await client.request(b"SEND TABC hello", corr_id=b"c", entity_id=queue.sender_id)
    assert answer == Received(b"c", queue.sender_id, Ok())
    message = await next_message(recipient, queue)
    assert (message.notify, message.body) == (True, b"hello")


@conforms(246, 204)
@ensureDeferred
async def test_246_rfwd_garbage(relay: Relay) -> None:
    client = await relay.raw()
    for garbage in (bytes(100), new_id() * 600):
        answer = await client.request(b"RFWD " + garbage, corr_id=b"c")
        assert answer == Received(b"c", b"", err("CRYPTO"))
    answer = await client.request(b"RFWD x", corr_id=b"c", entity_id=b"1234")
    assert answer == Received(b"c", b"1234", err("CMD HAS_AUTH"))


@ensureDeferred
async def test_250_suspended_queue(relay: Relay) -> None:
    recipient, sender = await relay.connect(), await relay.connect()
    queue, sender_key = await make_queue(recipient), new_key()
    await sender.sender_secure(queue.sender_id, sender_key)
    for _ in range(2):
        await recipient.suspend(*queue.own)
    await recipient.subscribe(*queue.own)
    assert (await recipient.queue_info(*queue.own))["qiSnd"] is True
    await sender.sender_secure(queue.sender_id, sender_key)
    with refused("AUTH"):
        await sender.send(queue.sender_id, b"hello", key=sender_key)
    await recipient.delete(*queue.own)


@ensureDeferred
async def test_251_number_of_recipient_keys(relay: Relay) -> None:
    client, raw = await relay.connect(), await relay.raw()
    queue = await make_queue(client, mode=QueueMode.CONTACT)
    answer = await raw.request(
        b"RKEY \0", corr_id=b"c", entity_id=queue.recipient_id, key=queue.key
    )
    assert answer == Received(b"c", queue.recipient_id, err("CMD SYNTAX"))
    keys = [new_key() for _ in range(50)]
    await client.set_recipient_keys(*queue.own, [key.public for key in keys])
    for key in (keys[0], keys[49]):
        await client.queue_info(queue.recipient_id, key)
    with refused("AUTH"):
        await client.queue_info(*queue.own)


@ensureDeferred
async def test_252_key_and_send_in_one_block(relay: Relay) -> None:
    """Both are verified before either is executed, so here too the SEND needs no key."""
    client = await relay.connect()
    queue = await make_queue(client)
    answers = await client.send_many(
        [
            Request(commands.Key(new_key().public), queue.recipient_id, queue.key),
            Request(commands.Send(False, b"hello"), queue.sender_id),
        ]
    )
    assert answers == [Ok(), Ok()]
    assert (await next_message(client, queue)).body == b"hello"
    with refused("AUTH"):
        await client.send(queue.sender_id, b"hello")


@ensureDeferred
async def test_253_block_with_count_0(relay: Relay) -> None:
    for version in (6, 10, 18):
        client = await relay.raw(version)
        client.send_content(b"\0")
        assert await client.next_batch() == [Received(b"", b"", err("BLOCK"))]
        assert await client.request(b"PING", corr_id=b"c") == Received(b"c", b"", Pong())


@ensureDeferred
async def test_253_block_that_does_not_decrypt(relay: Relay) -> None:
    client = await relay.raw()
    session = client.session

    def damaged(content: bytes) -> bytes:
        block = bytearray(session._seal(content))
        block[8000] ^= 1
        return bytes(block)

    for _ in range(2):
        session.blocks.send(b"\1\0\7\0\1c\0PING", damaged)
        assert await client.next_batch() == [Received(b"", b"", err("BLOCK"))]
    # The chains of keys have gone on on both sides.
    assert await client.request(b"PING", corr_id=b"c") == Received(b"c", b"", Pong())


@ensureDeferred
async def test_253_block_that_is_not_padded(relay: Relay) -> None:
    client = await relay.raw(10)
    client.send_block(b"\xff" * 16384)
    assert await client.next_batch() == [Received(b"", b"", err("BLOCK"))]
    assert await client.request(b"PING", corr_id=b"c") == Received(b"c", b"", Pong())
