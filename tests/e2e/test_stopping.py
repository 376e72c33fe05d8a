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
from txsimplex.keys import Algorithm
from txsimplex.smp.transmissions import frame

IN_ORDER = 5.0
"""Seconds that connections have at a stop to take what is buffered for them."""


async def ended(process: RelayProcess, seconds: float) -> float:
    """Waits until the process has ended; how long that took."""
    began = time.monotonic()
    while process.running:
        assert time.monotonic() - began < seconds, "it still runs"
        await pause(0.02)
    return time.monotonic() - began


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
        await ended(process, 3)
        assert not process.new_faults()
        assert "Server Shut Down" in process.log


@ensureDeferred
async def test_a_second_signal_stops_it_at_once(
    tmp_path: Path, connections: list[Connection]
) -> None:
    """Not even a client that takes nothing delays it any more."""
    with RelayProcess(tmp_path, Credentials.make(Algorithm.ED25519)) as process:
        client = await Relay(process, connections).raw()
        stop_reading(client.session.blocks)
        content = frame([client.transmission(b"PING")])
        for _ in range(1500):
            client.send_content(content)
        await pause(1)
        os.kill(process.pid, signal.SIGTERM)
        await pause(1)
        assert process.running
        os.kill(process.pid, signal.SIGTERM)
        assert await ended(process, 3) < IN_ORDER - 1
        assert not process.new_faults()
