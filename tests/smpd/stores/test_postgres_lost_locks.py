"""The PostgreSQL store when locks are lost with their connection, and others come between.

A version says what a relay knows of a queue. The same one may be given twice then: by a transaction
that was not committed and has to be made again, and by that of another relay.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from random import Random
from typing import Any, cast

import pytest

from smpd.queues import Queue
from smpd.stores.interface import Wanted, What
from tests.smpd.stores.held_threads import Held
from tests.smpd.stores.postgres_ledger import Ledger
from tests.smpd.stores.postgres_proxy import Lose, Proxy
from tests.smpd.stores.postgres_sites import QUOTA, WAIT, Site, messages_of, pid_of, terminate
from tests.smpd.stores.postgres_stores import PostgresStores
from tests.smpd.stores.records import message

stores = PostgresStores()


@pytest.fixture(autouse=True)
def _closed(postgres_server: object) -> Iterator[None]:
    yield
    stores.close_all()


class HeldSite(Site):
    """One whose lanes go on when they are told to."""

    def __init__(self, database: str, **options: Any) -> None:
        super().__init__(stores, database, worker=Held, commit_interval=0.0, **options)
        self.threads = [cast(Held, each.worker) for each in self.store._admission._lanes]
        self.go_on()
        assert not any(each.jobs for each in self.threads)

    def job(self) -> None:
        """Does the only job that there is, and takes its result."""
        (thread,) = [each for each in self.threads if each.jobs]
        thread.jobs.popleft()()
        self.loop.turn()

    def go_on(self) -> None:
        """Does all that there is to do."""
        for _ in range(100):
            self.step()

    def step(self) -> None:
        """Each lane does the next thing, and a moment passes."""
        for thread in self.threads:
            if thread.jobs:
                thread.jobs.popleft()()
        self.loop.turn(0.02)

    def write(self, queue: Queue) -> None:
        """Has a message written to a queue that is found by its other id."""

        def work() -> None:
            found = self.store.by_recipient(queue.recipient_id)
            assert found is not None
            self.store.write(found, message(), QUOTA)

        self.ask([Wanted(What.RECIPIENT, queue.recipient_id)], work, object())


def test_a_queue_that_is_not_in_memory_is_asked_for_by_two_ids() -> None:
    """The first transaction has lost its lock when the second one gets it, after another relay."""
    database = stores.emptied()
    other = Site(stores, database)
    queue = other.add()
    site = HeldSite(database, connections=2)
    site.send(queue)
    site.loop.turn()
    first = next(each for each in site.threads if each.jobs)
    lane = next(
        each.lane for each in site.store._admission._lanes if cast(object, each.worker) is first
    )
    first.jobs.popleft()()
    site.write(queue)
    # Both are under way now, and neither knows of the other.
    site.loop.turn(0.01)
    (second,) = [each for each in site.threads if each.jobs and each is not first]
    terminate(database, pid_of(lane))
    site.loop.turn()
    other.suspend(queue)
    assert other.answer() == "OK"
    second.jobs.popleft()()
    site.loop.turn()
    site.go_on()
    assert site.answers == ["STORE another relay was faster", "OK"]
    assert messages_of(database, queue) == (1, 1)


def test_a_queue_that_was_dropped_from_memory_while_it_was_written() -> None:
    """A transaction that is found to be committed ends while another one has the same queue."""
    database = stores.emptied()
    with Proxy(database) as proxy:
        other = Site(stores, database)
        queue, unrelated = other.add(), other.add()
        site = HeldSite(proxy.dsn, connections=3, cached_queues=1)
        site.send(queue)
        site.loop.turn()
        site.job()
        proxy.lose = Lose.ANSWER
        site.job()
        assert proxy.lost == 1
        # Too many queues are in memory.
        site.count(unrelated)
        site.loop.turn(0.01)
        site.job()
        site.job()
        assert site.answers == ["waits", "0"]
        site.write(queue)
        proxy.lose = Lose.REQUEST
        # The first one is found to be committed. The second one would wait to be made again.
        while site.answers[0] == "waits":
            site.step()
        assert site.answers == ["OK", "0", "waits"]
        other.acknowledge(queue)
        assert other.answer() == "OK"
        proxy.lose = None
        site.send(queue)
        site.go_on()
        # One of three was removed.
        assert messages_of(database, queue) == (2, 2)
        assert site.answers == ["OK", "0", "OK", "OK"]
        stores.close_all()


@pytest.mark.slow
@pytest.mark.parametrize("expires", [False, True])
def test_connections_that_are_lost_at_any_time(expires: bool) -> None:
    """Of three relays that do everything to the same queues; two have little in memory."""
    database = stores.emptied()
    chance = Random(1)
    with Proxy(database) as proxy:
        sites = [
            Site(stores, proxy.dsn, connections=3, cached_queues=cached, answer_timeout=2.0)
            for cached in (1, 3, 20_000)
        ]
        ledger = Ledger(chance, expires=expires)
        for _ in range(6):
            ledger.add(sites[0])
        start = time.monotonic()
        # On a slow machine longer, so that it is worth looking at.
        while (past := time.monotonic() - start) < 6.0 or (past < 60.0 and ledger.succeeded < 500):
            for site in sites:
                for _ in range(chance.randrange(4)):
                    ledger.do_something(site)
                site.wait(lambda: True)
                site.loop.turn(0.004)
            time.sleep(0.001)
            happens = chance.random()
            if happens < 0.01:
                proxy.cut()
            elif happens < 0.05:
                proxy.lose = chance.choice(list(Lose))
        proxy.lose = None
        deadline = time.monotonic() + WAIT
        while any("waits" in site.answers for site in sites):
            assert time.monotonic() < deadline
            for site in sites:
                site.loop.turn(0.005)
            time.sleep(0.005)
        stores.close_all()
    assert ledger.succeeded >= 300
    assert not ledger.faults
    ledger.check(database)
    ledger.check_reading(Site(stores, database))
