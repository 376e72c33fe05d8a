"""AUTH takes as long for a queue that this relay has never read as for none (smp-server.md §3)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest
import pytest_twisted
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from bench.postgres_server import PostgresServer
from tests.conformance.clients import Queue, close_all, err, make_queue, new_id, new_key
from tests.e2e.test_cluster import Cluster
from txsimplex.client.raw import RawClient
from txsimplex.client.smp import SMPClient
from txsimplex.smp.commands import Command, Send, Sub
from txsimplex.smp.transmissions import Received, frame

pytestmark = pytest.mark.slow

AT_A_TIME = 20
ROUNDS = 30
TOLERANCE = 0.45
"""That of the reference's tests with PostgreSQL."""


@pytest.fixture
def cluster(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Cluster]:
    """Relays of the test's own."""
    cluster = Cluster(tmp_path)
    yield cluster
    pytest_twisted.blockon(Deferred.fromCoroutine(close_all(cluster.connections)))
    cluster.end()


async def refusals(client: RawClient, command: Command, ids: list[bytes]) -> float:
    """How many seconds as many refusals take, each of another queue."""
    key, corr_ids = new_key(), [new_id() for _ in ids]
    content = frame(
        [
            client.transmission(command, corr_id=corr_id, entity_id=entity_id, key=key)
            for corr_id, entity_id in zip(corr_ids, ids, strict=True)
        ]
    )
    start = perf_counter()
    client.send_content(content)
    answers = await client.next_batch()
    seconds = perf_counter() - start
    assert answers == [
        Received(corr_id, entity_id, err("AUTH"))
        for corr_id, entity_id in zip(corr_ids, ids, strict=True)
    ]
    return seconds


async def many_queues(client: SMPClient, count: int) -> list[Queue]:
    """Queues, made some at a time."""
    made: list[Queue] = []
    while len(made) < count:
        made += await gatherResults(
            [Deferred.fromCoroutine(make_queue(client, subscribe=False)) for _ in range(50)]
        )
    return made


@pytest.mark.parametrize("with_message", [False, True], ids=["empty", "with a message"])
@ensureDeferred
async def test_the_first_time(cluster: Cluster, with_message: bool) -> None:
    """By the recipient's and the sender's id, of queues that another relay has made."""
    first, second = [await deferToThread(cluster.relay) for _ in range(2)]
    maker, raw = await first.connect(), await second.raw()
    queues = await many_queues(maker, 2 * ROUNDS * AT_A_TIME)
    if with_message:
        for start in range(0, len(queues), 50):
            await gatherResults(
                [
                    Deferred.fromCoroutine(maker.send(queue.sender_id, bytes(15_000)))
                    for queue in queues[start : start + 50]
                ]
            )
    commands = ((Sub(), True), (Send(False, b"hello"), False))
    for place, (command, by_recipient) in enumerate(commands):
        ratios, there, missing = [], [], []
        for number in range(ROUNDS):
            begin = (place * ROUNDS + number) * AT_A_TIME
            some = queues[begin : begin + AT_A_TIME]
            ids = [each.recipient_id if by_recipient else each.sender_id for each in some]
            none = [new_id() for _ in ids]
            if number % 2:
                missing.append(await refusals(raw, command, none))
                there.append(await refusals(raw, command, ids))
            else:
                there.append(await refusals(raw, command, ids))
                missing.append(await refusals(raw, command, none))
            ratios.append(there[-1] / missing[-1])
        # Both in seconds, for who looks why.
        figures = (median(there) / AT_A_TIME, median(missing) / AT_A_TIME)
        assert abs(median(ratios) - 1) < TOLERANCE, (command, figures)
