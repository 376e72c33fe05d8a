"""How a relay stops: in order at the first signal, at once at the second (smp-server.md §13).

The reference saves what it has only on SIGINT, and SIGTERM kills it.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred

from tests.conformance.clients import Connection, Relay, pause, soon
from tests.conformance.relays import Credentials, RelayProcess
from tests.e2e.streams import stop_reading
from tests.stalls import at_most
from txsimplex.client.raw import RawClient
from txsimplex.keys import Algorithm
from txsimplex.smp.transmissions import frame

IN_ORDER = 5.0
"""Seconds that connections have at a stop to take what is buffered for them."""


async def ended(process: RelayProcess, seconds: float = 3.0) -> None:
    """Waits until the process has ended, in so short a time."""
    with at_most(seconds):
        began = time.monotonic()
        while process.running:
            assert time.monotonic() - began < 30, "it still runs"
            await pause(0.02)


async def until_logged(process: RelayProcess, text: str) -> None:
    """Waits until the process has logged something."""
    while text not in process.log:
        await pause(0.02)


async def stopping(process: RelayProcess) -> None:
    """Has the process stop in order, which takes a while."""
    os.kill(process.pid, signal.SIGTERM)
    await soon(until_logged(process, "Received SIGTERM"))
    await pause(0.5)
    assert process.running


async def stalled(relay: Relay) -> RawClient:
    """A client that takes none of so many answers that a stop in order is not over soon."""
    client, other = await relay.raw(), await relay.connect()
    stop_reading(client.session.blocks)
    content = frame([client.transmission(b"PING")])
    for _ in range(1500):
        client.send_content(content)
    # Until the relay, which runs all the time, takes no more: it cannot get rid of answers.
    former, same = 0, 0
    while same < 10:
        await pause(0.1)
        await other.ping()
        buffered = client.session.blocks.transport.buffered
        same = same + 1 if buffered and buffered == former else 0
        former = buffered
    return client


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@ensureDeferred
async def test_either_signal_stops_it_in_order(
    number: signal.Signals, tmp_path: Path, connections: list[Connection]
) -> None:
    with RelayProcess(tmp_path, Credentials.make(Algorithm.ED25519)) as process:
        client = await Relay(process, connections).connect()
        await client.ping()
        os.kill(process.pid, number)
        # The client is told, and does not have to find out.
        await soon(client.lost())
        await ended(process)
        assert not process.new_faults()
        assert "Server Shut Down" in process.log


@ensureDeferred
async def test_a_second_signal_stops_it_at_once(
    tmp_path: Path, connections: list[Connection]
) -> None:
    """Not even a client that takes nothing delays it any more."""
    with RelayProcess(tmp_path, Credentials.make(Algorithm.ED25519)) as process:
        relay = Relay(process, connections)
        await stalled(relay)
        await stopping(process)
        os.kill(process.pid, signal.SIGTERM)
        await ended(process)
        assert process.status == 128 + signal.SIGTERM
        assert not process.new_faults()


@ensureDeferred
async def test_sighup_does_not_end_a_stop(tmp_path: Path, connections: list[Connection]) -> None:
    """What is in memory is written at its end."""
    snapshot = tmp_path / "snapshot"
    settings = {"store.kind": "memory", "store.snapshot": str(snapshot)}
    with RelayProcess(tmp_path, Credentials.make(Algorithm.ED25519), settings) as process:
        client = await stalled(Relay(process, connections))
        await stopping(process)
        os.kill(process.pid, signal.SIGHUP)
        await ended(process, IN_ORDER + 3)
        assert not process.new_faults()
        assert "Server Shut Down" in process.log
        assert snapshot.exists()
        await soon(client.lost())
