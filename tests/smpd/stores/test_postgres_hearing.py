"""Relays on one PostgreSQL database hear of each other (docs/spec/smp-server.md §5, §7).

The rules of the relay over real stores, without sockets; `tests/e2e/test_cluster.py` has processes.
"""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
import pytest
from psycopg import OperationalError

from smpd.relay import Outcome
from smpd.stores.group_commit import WriterThread
from smpd.stores.interface import Wanted, What
from smpd.stores.postgres_rows import Rows
from smpd.stores.postgres_store import PostgresStore
from tests.smpd.people import (
    Person,
    expect,
    new_notifier,
    new_queue,
    new_relay,
    random,
)
from tests.smpd.stores.disk_stores import Loop
from tests.smpd.stores.postgres_sites import before
from tests.smpd.stores.postgres_stores import PostgresStores
from txsimplex.smp import commands as c, messages as m
from txsimplex.smp.errors import NO_MSG, Error
from txsimplex.smp.transmissions import frame

stores = PostgresStores()


@pytest.fixture(autouse=True)
def _closed(postgres_server: object) -> Iterator[None]:
    yield
    stores.close_all()


class Station:
    """A relay and its store."""

    def __init__(self, database: str, **options: Any) -> None:
        self.loop = Loop()
        self.store: PostgresStore = stores.open(database, self.loop, worker=WriterThread, **options)
        self.relay = new_relay(self.store)
        self._last = time.monotonic()

    def person(self) -> Client:
        """A connection to it."""
        return Client(self)

    def service(self) -> Client:
        """The connection of a new notification service."""
        fingerprint, role = random(32), c.Role.NOTIFIER
        made: list[object] = []

        def introduce() -> None:
            made.append(self.relay.service(role, (b"leaf",), fingerprint))

        self.store.admit([Wanted(What.CERTIFICATE, fingerprint)], introduce, self)
        self.wait(lambda: made and self.store.committed == self.store.noted)
        return Client(self, service=role, fingerprint=fingerprint)

    def turn(self) -> None:
        """The reactor's part."""
        now = time.monotonic()
        self.loop.turn(now - self._last)
        self._last = now

    def wait(self, until: Callable[[], object], seconds: float = 10.0) -> None:
        """Lets it do what it has to until something is so."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, "it does not come"
            self.turn()
            time.sleep(0.001)

    def wait_for_events(self, person: Client) -> None:
        """Lets it do what it has to, and what it does in rounds, until somebody is told."""

        def told() -> object:
            self.relay.send_events()
            self.relay.send_notifications()
            return person.events

        self.wait(told)

    def rest(self, seconds: float = 0.1) -> None:
        """Lets it do what it has to for so long."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end)
        self.relay.send_events()


class Client(Person):
    """A connection whose blocks are carried out when the store admits them."""

    def __init__(self, station: Station, **options: Any) -> None:
        self.station = station
        self.problem: str | None = None
        """Why the last block's changes were not made."""
        super().__init__(station.relay, **options)

    def has_failed(self) -> bool:
        """Whether they were not."""
        return self.problem is not None

    def batch(self, transmissions: Sequence[bytes]) -> Outcome:
        """The relay's outcome for a block, when its changes are safe or given up."""
        items = self.framing.read_commands(frame(transmissions))
        store, outcomes = self.station.store, []
        wanted = self.relay.lookups(self.peer, items)
        assert wanted is not None
        store.admit(wanted, lambda: outcomes.append(self.relay.process(self.peer, items)), self)
        self.station.wait(lambda: outcomes)
        (outcome,) = outcomes
        need = max(outcome.needs, default=0)
        told: list[str | None] = []
        if need > store.committed:
            # As `Conversation` asks.
            store.on_commit = lambda: (
                told.append(store.spoiled(need)) if need <= store.committed else None
            )
            self.station.wait(lambda: told)
        self.problem = told[0] if told else None
        return outcome


def heard(station: Station, person: Client) -> list[m.Message | Error]:
    """What the relay has sent by itself."""
    station.rest()
    return [message for _, message in person.all_events()]


def test_a_former_subscriber_gets_nothing_before_it_hears_of_the_new_one() -> None:
    """Its relay sees it in the queue: it need not have heard of it (§5.2)."""
    database = stores.emptied()
    here, there = Station(database), Station(database)
    former, new = here.person(), there.person()
    queue = new_queue(former)
    assert queue.send(former, b"one") == m.Ok()
    one = queue.event()
    # Here nothing is heard while nobody turns the loop.
    expect(queue.ask(c.Sub(), new), m.Sok)
    assert queue.event(new) == one
    assert queue.ask(c.Ack(one.msg_id), former) == NO_MSG
    assert queue.ask(c.Ack(one.msg_id), new) == m.Ok()
    assert queue.send(former, b"two") == m.Ok()
    here.relay.send_events()
    assert [message for _, message in former.all_events()] == [m.End()]
    there.wait(lambda: new.events)
    assert queue.body(queue.event(new)) == b"two"
    assert heard(here, former) == []


def test_one_that_subscribes_again_is_told_nothing_untrue() -> None:
    database = stores.emptied()
    here, there = Station(database), Station(database)
    first, second = here.person(), there.person()
    queue = new_queue(first)
    for _ in range(5):
        expect(queue.ask(c.Sub(), second), m.Sok)
        expect(queue.ask(c.Sub(), first), m.Sok)
    assert heard(here, first) == []
    there.wait_for_events(second)
    assert heard(there, second) == [m.End()]


def test_a_queue_that_was_locked_when_it_was_told_of() -> None:
    """It is looked at again, until that is possible: nobody tells twice."""
    database = stores.emptied()
    here, there = Station(database, answer_timeout=2.5), Station(database)
    recipient, sender = here.person(), there.person()
    locked, other = new_queue(recipient), new_queue(recipient)
    with psycopg.connect(database) as holder:
        assert locked.send(sender, b"hello") == m.Ok()
        # By somebody who stops in the middle of a transaction, before the notice is heard.
        holder.execute(
            "SELECT FROM smpd.queue_state JOIN smpd.queue USING (number)"
            " WHERE recipient_id = %s FOR UPDATE OF queue_state",
            (locked.recipient_id,),
        )
        here.rest(3.0)
        # What is told of other queues meanwhile does not wait for it.
        assert other.send(sender, b"other") == m.Ok()
        here.wait(lambda: recipient.events)
        (event,) = recipient.all_events()
        assert event[0] == other.recipient_id
        here.rest(3.0)
        assert not recipient.events
        holder.rollback()
    here.wait(lambda: recipient.events)
    assert locked.body(locked.event()) == b"hello"


def test_a_new_queue_is_looked_at_before_it_is_committed() -> None:
    """As happens when a relay hears again of others at this moment: it is there."""
    database = stores.emptied()
    station = Station(database, connections=2)
    person = station.person()
    for each in station.store._admission._lanes:
        before(each.lane, "write", lambda: time.sleep(0.3))
    station.loop.clock.callLater(0.1, station.store.listening)
    queue = new_queue(person)
    assert heard(station, person) == []
    assert queue.send(person, b"hello") == m.Ok()
    assert queue.body(queue.event()) == b"hello"


def test_a_claim_that_was_not_written() -> None:
    """NSUBS that was answered with an error, once more: now other relays know of it (§7.2)."""
    database = stores.emptied()
    station = Station(database, answer_timeout=3.0, connections=1)
    service = station.service()
    lane = station.store._admission._lanes[0].lane

    def fail(rows: Rows) -> None:
        lane.leave()
        raise OperationalError("the connection is lost")

    with pytest.MonkeyPatch.context() as patch:
        for step in ("write", "again"):
            patch.setattr(lane, step, fail)
        service.ask(c.Nsubs(), service.service_id, service.service_key)
        assert service.has_failed()

    def subscriber() -> int:
        with psycopg.connect(database) as connection:
            row = connection.execute("SELECT max(subscriber) FROM smpd.service").fetchone()
        assert row is not None
        return int(row[0])

    assert subscriber() == 0
    assert service.ask(c.Nsubs(), service.service_id, service.service_key) == m.Soks(0)
    assert not service.has_failed()
    assert subscriber() == station.store.number


def test_what_waits_for_a_service_when_its_relay_hears_again() -> None:
    """It was told of while nothing was heard."""
    database = stores.emptied()
    here, there = Station(database), Station(database)
    service = here.service()
    recipient = there.person()
    queue = new_queue(recipient, subscribe=False)
    notifier = new_notifier(queue)
    expect(notifier.nsub(service), m.Sok)
    # What it has asked for when it came, and a second later.
    here.rest(1.5)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND query LIKE 'LISTEN smpd%'"
        )
    assert queue.send(recipient, notify=True) == m.Ok()
    # After the second in which it connects again.
    here.wait_for_events(service)
    (event,) = service.all_events()
    assert event[0] == notifier.notifier_id


def test_listening_again_with_many_connections() -> None:
    """A busy relay has more than a thousand files open, and `select` takes no higher numbers."""
    database = stores.emptied()
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 2000:
        pytest.skip("may not have so many files open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 2000), most))
    taken: list[socket.socket] = []
    try:
        here, there = Station(database), Station(database)
        recipient, sender = here.person(), there.person()
        queue = new_queue(recipient)
        taken += [socket.socket() for _ in range(1100)]
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE 'LISTEN smpd%'"
            )
        here.rest(1.5)
        assert queue.send(sender, b"hello") == m.Ok()
        here.wait(lambda: recipient.events)
        assert queue.body(queue.event()) == b"hello"
    finally:
        for each in taken:
            each.close()
        stores.close_all()
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
