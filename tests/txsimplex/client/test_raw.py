"""The raw client: what it sends is what it was told, and nothing happens behind its back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from twisted.internet import reactor

from tests.coroutines import in_reactor
from tests.txsimplex.client.conftest import RunningRelay
from txsimplex.client.errors import DisconnectedError, TimedOutError
from txsimplex.client.raw import RawClient
from txsimplex.client.session import open_blocks, open_session
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import errors
from txsimplex.smp.commands import New, Ping, QueueMode, QueueRequest, Send, Sub
from txsimplex.smp.hellos import ServerHello
from txsimplex.smp.messages import Err, Ids, Msg, Ok, Pong, Sok
from txsimplex.smp.transmissions import Received
from txsimplex.smp.versions import VersionRange

any_reactor: Any = reactor


@asynccontextmanager
async def raw_client(relay: RunningRelay, version: int = 18) -> AsyncIterator[RawClient]:
    session = await open_session(relay.endpoint(), relay.address, versions=VersionRange(6, version))
    client = RawClient(session, any_reactor)
    try:
        yield client
    finally:
        client.close()
        await session.blocks.lost()


def new_key(algorithm: Algorithm = Algorithm.ED25519) -> PrivateKey:
    return PrivateKey.generate(algorithm, os.urandom)


@pytest.mark.parametrize("corr_id", [b"", b"a", bytes(23), bytes(24), bytes(255)], ids=len)
@pytest.mark.parametrize("version", [6, 10, 18])
@in_reactor
async def test_chosen_correlation_ids(relay: RunningRelay, version: int, corr_id: bytes) -> None:
    async with raw_client(relay, version) as client:
        assert await client.request(Ping(), corr_id=corr_id) == Received(corr_id, b"", Pong())
        request = QueueRequest(QueueMode.MESSAGING)
        for key in (new_key(), new_key(Algorithm.X25519 if version >= 7 else Algorithm.ED448)):
            new = New(key.public, new_key(Algorithm.X25519).public, request=request)
            created = await client.request(new, corr_id=corr_id, key=key)
            assert created.corr_id == corr_id
            assert isinstance(created.message, Ids)


@in_reactor
async def test_chosen_authenticators(relay: RunningRelay) -> None:
    async with raw_client(relay) as client:
        for authenticator in (b"a", bytes(63), bytes(81), bytes(255)):
            client.send_transmissions(
                client.transmission(
                    Sub(), corr_id=b"1", entity_id=b"q", authenticator=authenticator
                )
            )
            assert await client.next_message() == Received(b"1", b"", Err(errors.BLOCK))
        client.send_transmissions(
            client.transmission(
                Sub(),
                corr_id=b"1",
                entity_id=b"q",
                key=new_key(),
                service_signature=bytes(64),
            )
        )
        assert await client.next_message() == Received(b"1", b"q", Err(errors.SERVICE))


@in_reactor
async def test_any_bytes_as_a_command(relay: RunningRelay) -> None:
    async with raw_client(relay) as client:
        answer = await client.request(b"HELLO", corr_id=b"abcd", entity_id=b"1234")
        assert answer == Received(b"abcd", b"1234", Err(errors.UNKNOWN))


@in_reactor
async def test_any_content(relay: RunningRelay) -> None:
    async with raw_client(relay) as client:
        for content in (b"", b"\0", b"\1", os.urandom(1000), bytes(16366)):
            client.send_content(content)
            assert await client.next_batch() == [Received(b"", b"", Err(errors.BLOCK))]


@in_reactor
async def test_blocks_that_the_session_does_not_know(relay: RunningRelay) -> None:
    async with raw_client(relay) as client:
        client.send_block(os.urandom(16384))
        assert await client.next_message() == Received(b"", b"", Err(errors.BLOCK))


@in_reactor
async def test_transmissions_of_one_block(relay: RunningRelay) -> None:
    async with raw_client(relay) as client:
        pings = [client.transmission(Ping(), corr_id=b"%d" % n) for n in range(5)]
        client.send_transmissions(*pings)
        first = await client.next_message()
        rest = await client.next_batch()
        assert [r.corr_id for r in (first, *rest)] == [b"0", b"1", b"2", b"3", b"4"]


@in_reactor
async def test_events_and_answers_as_they_come(relay: RunningRelay) -> None:
    key, dh_key = new_key(), new_key(Algorithm.X25519)
    async with raw_client(relay) as client:
        created = await client.request(New(key.public, dh_key.public), corr_id=b"1", key=key)
        assert isinstance(created.message, Ids)
        queue = created.message
        client.send(Send(False, b"hello"), corr_id=b"2", entity_id=queue.sender_id)
        received = [await client.next_message(), await client.next_message()]
        assert [type(r.message) for r in received] == [Msg, Ok]
        assert [r.corr_id for r in received] == [b"", b"2"]
        client.send(Sub(), corr_id=b"3", entity_id=queue.recipient_id, key=key)
        assert [type(r.message) for r in await client.next_batch()] == [Sok, Msg]


@in_reactor
async def test_waiting_for_nothing(relay: RunningRelay) -> None:
    session = await open_session(relay.endpoint(), relay.address)
    client = RawClient(session, any_reactor, timeout=0.05)
    with pytest.raises(TimedOutError):
        await client.next_message()
    with pytest.raises(TimedOutError):
        await client.lost()
    client = RawClient(session, any_reactor)
    assert (await client.request(Ping(), corr_id=b"1")).message == Pong()
    client.close()
    await client.lost()
    with pytest.raises(DisconnectedError):
        await client.next_block()


@in_reactor
async def test_a_handshake_by_hand(relay: RunningRelay) -> None:
    blocks = await open_blocks(relay.endpoint())
    block = await blocks.next_block()
    hello = ServerHello.decode(block[2:])
    assert hello.session_id == blocks.transport.session_id
    assert (hello.versions.minimum, hello.versions.maximum) == (6, 18)
    blocks.send(os.urandom(16384))
    await blocks.lost()
    with pytest.raises(DisconnectedError):
        await blocks.next_block()
