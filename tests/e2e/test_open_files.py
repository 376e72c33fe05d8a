"""Clients cannot take the open files that the relay needs for its store."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred

from tests.conformance import relays
from tests.conformance.clients import Connection, Relay, make_queue, pause
from tests.conformance.relays import Credentials, RelayProcess
from txsimplex.client.errors import ClientError
from txsimplex.keys import Algorithm

LIMIT = 128


@pytest.fixture
def few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays that are started may have so many."""
    begin = relays._die_with_parent

    def begin_with_few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
        begin()

    monkeypatch.setattr(relays, "_die_with_parent", begin_with_few)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.usefixtures("few_open_files")
@ensureDeferred
async def test_messages_are_stored_while_connections_are_refused(
    processes: int, tmp_path: Path, connections: list[Connection]
) -> None:
    settings = {"store.kind": "sqlite", "server.processes": processes, "queues.quota": 1000}
    with RelayProcess(tmp_path, Credentials.make(Algorithm.ED25519), settings) as process:
        relay = Relay(process, connections)
        client = await relay.connect()
        queue = await make_queue(client, subscribe=False)
        with ExitStack() as flood:
            for _ in range(3 * LIMIT):
                flood.enter_context(socket.create_connection(("127.0.0.1", process.port)))
            while "more are refused" not in process.log:
                await pause(0.02)
            # Bodies as large as these are files of their own.
            for number in range(30):
                await client.send(queue.sender_id, b"%d" % number * 8000)
        while True:
            try:
                await (await relay.connect()).ping()
            except ClientError:
                await pause(0.05)
            else:
                break
        assert "rror" not in process.log.replace("more are refused", "")
