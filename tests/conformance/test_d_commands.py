"""Conformance D: command syntax and credentials, where no queue exists."""

from __future__ import annotations

from pytest_twisted import ensureDeferred

from tests.conformance.clients import Relay, err
from txsimplex.smp.messages import Pong
from txsimplex.smp.transmissions import Received


@ensureDeferred
async def test_055_unknown_command(relay: Relay) -> None:
    client = await relay.raw()
    answer = await client.request(b"HELLO", corr_id=b"abcd", entity_id=b"1234")
    assert answer == Received(b"abcd", b"1234", err("CMD UNKNOWN"))


@ensureDeferred
async def test_068_ping(relay: Relay) -> None:
    client = await relay.raw()
    assert await client.request(b"PING", corr_id=b"abcd") == Received(b"abcd", b"", Pong())
