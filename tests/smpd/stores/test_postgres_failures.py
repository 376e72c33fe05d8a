"""The PostgreSQL store when connections are lost: answers are true, nothing is half done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from bench.postgres_server import PostgresServer
from smpd.queues import Queue, Status
from smpd.stores.group_commit import WriterThread
from smpd.stores.interface import StoreError, StoreUnusable, Wanted, What
from smpd.stores.postgres_lane import Lane
from tests.smpd.stores.disk_stores import Loop
from tests.smpd.stores.postgres_proxy import Lose, Proxy
from tests.smpd.stores.postgres_stores import PostgresStores, new_database
from tests.smpd.stores.records import NOW, message, new_queue
from tests.stalls import Stalls

QUOTA = 4
WAIT = 20.0

stores = PostgresStores()


@pytest.fixture(autouse=True)
def _closed(postgres_server: object) -> Iterator[None]:
    yield
    stores.close_all()


class Site:
    """A store with a thread for its transactions, and queues that are asked for by id."""

    def __init__(self, database: str, **options: Any) -> None:
        self.loop = Loop()
        self.store = stores.open(
            database,
            self.loop,
            worker=WriterThread,
            **{"connections": 1, "answer_timeout": 5.0, **options},
        )
        self.answers: list[str] = []
        self._needs: list[tuple[int, int]] = []
        self.store.on_commit = self._committed

    @property
    def lane(self) -> Lane:
        """Its only lane."""
        return self.store._admission._lanes[0].lane

    def ask(self, wanted: Sequence[Wanted], work: Callable[[], Any], line: object = None) -> None:
        """Has something done, whose answer waits until it is safe: OK, what it gives, or STORE."""
        place = len(self.answers)
        self.answers.append("waits")

        def attempt() -> None:
            before = self.store.noted
            try:
                result = work()
            except StoreError as problem:
                self.answers[place] = f"STORE {problem}"
                return
            if self.store.noted != before:
                self._needs.append((place, self.store.noted))
            else:
                self.answers[place] = f"{result}"

        self.store.admit(wanted, attempt, line or self)

    def _committed(self) -> None:
        left = []
        for place, need in self._needs:
            if need > self.store.committed:
                left.append((place, need))
                continue
            problem = self.store.spoiled(need)
            self.answers[place] = "OK" if problem is None else f"STORE {problem}"
        self._needs = left

    def wait(self, until: Callable[[], bool] | None = None, seconds: float = WAIT) -> None:
        """Lets time pass until all is answered, or `until` says so."""
        deadline = last = time.monotonic()
        deadline += seconds
        while "waits" in self.answers if until is None else not until():
            now = time.monotonic()
            self.loop.turn(now - last)
            last = now
            assert now < deadline, self.answers
            time.sleep(0.001)

    def add(self) -> Queue:
        """A new queue."""
        new = new_queue()
        self.ask([Wanted(What.NEW_SENDER, new.sender_id)], lambda: self.store.add(new))
        self.wait()
        assert self.answers[-1] == "OK"
        return new

    def send(self, queue: Queue) -> None:
        """Has a message written."""

        def work() -> None:
            found = self.store.by_sender(queue.sender_id)
            assert found is not None
            self.store.write(found, message(), QUOTA)

        self.ask([Wanted(What.SENDER, queue.sender_id)], work)

    def count(self, queue: Queue) -> None:
        """Asks how many messages wait."""

        def work() -> int | None:
            found = self.store.by_recipient(queue.recipient_id)
            return None if found is None else self.store.message_count(found)

        self.ask([Wanted(What.RECIPIENT, queue.recipient_id)], work)

    def suspend(self, queue: Queue) -> None:
        """OFF."""

        def work() -> None:
            found = self.store.by_recipient(queue.recipient_id)
            assert found is not None
            self.store.set_status(found, Status.OFF)

        self.ask([Wanted(What.RECIPIENT, queue.recipient_id)], work)

    def answer(self) -> str:
        """The answer to what was asked last."""
        self.wait()
        return self.answers[-1]


def messages_of(database: str, queue: Queue) -> tuple[int, int]:
    """How many messages of a queue there are, and how many it says it has."""
    with psycopg.connect(database) as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM smpd.message WHERE queue = queue_state.number), messages"
            " FROM smpd.queue JOIN smpd.queue_state USING (number) WHERE recipient_id = %b",
            (queue.recipient_id,),
        ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def before(lane: Lane, step: str, action: Callable[[], None]) -> None:
    """Does something, once, in the lane's thread, right before its next `step`."""
    original: Callable[..., Any] = getattr(lane, step)

    def hooked(*arguments: Any) -> Any:
        setattr(lane, step, original)
        action()
        return original(*arguments)

    setattr(lane, step, hooked)


def terminate(database: str, pid: int | None = None) -> None:
    """Ends a connection to the database, or all of relays, as its administrator can."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND (pid = %s OR (%s::int IS NULL AND application_name = 'smpd'))",
            (pid, pid),
        )


def pid_of(lane: Lane) -> int:
    """The process of the database that does the lane's transaction."""
    assert lane._connection is not None
    return lane._connection.info.backend_pid


# -- where the connection is lost


def test_before_the_transaction() -> None:
    """All connections in the pool are dead: others are taken, and nobody notices."""
    database = stores.emptied()
    site = Site(database)
    queue = site.add()
    terminate(database)
    site.send(queue)
    assert site.answer() == "OK"
    assert messages_of(database, queue) == (1, 1)


def test_between_reading_and_writing() -> None:
    """The transaction is made again: once."""
    database = stores.emptied()
    site = Site(database)
    queue = site.add()
    before(site.lane, "write", lambda: terminate(database, pid_of(site.lane)))
    site.send(queue)
    site.count(queue)
    assert site.answer() == "1"
    assert site.answers[-2:] == ["OK", "1"]
    assert messages_of(database, queue) == (1, 1)


@pytest.mark.parametrize("lose", list(Lose))
def test_during_commit(lose: Lose) -> None:
    """Committed or not, the message is there once, and the sender is told so."""
    database = stores.emptied()
    with Proxy(database) as proxy:
        site = Site(proxy.dsn)
        queue = site.add()
        proxy.lose = lose
        site.send(queue)
        site.count(queue)
        assert site.answer() == "1"
        assert site.answers[-2:] == ["OK", "1"]
        assert proxy.lost == 1
        assert messages_of(database, queue) == (1, 1)
        for number in range(2, 4):
            site.send(queue)
            site.count(queue)
            assert site.answer() == str(number)
        stores.close_all()


@pytest.mark.parametrize("lose", list(Lose))
def test_a_new_queue_during_commit(lose: Lose) -> None:
    database = stores.emptied()
    with Proxy(database) as proxy:
        site = Site(proxy.dsn)
        proxy.lose = lose
        queue = site.add()
        assert proxy.lost == 1
        site.send(queue)
        assert site.answer() == "OK"
        assert messages_of(database, queue) == (1, 1)
        stores.close_all()


@pytest.mark.parametrize("lose", [None, *Lose])
def test_another_relay_was_faster(lose: Lose | None) -> None:
    """It changed the queue after the connection was lost: true is what is in the database."""
    database = stores.emptied()
    with Proxy(database) as proxy:
        site, other = Site(proxy.dsn), Site(database)
        queue = site.add()

        def change_it() -> None:
            other.suspend(queue)
            assert other.answer() == "OK"

        if lose is None:
            before(site.lane, "write", lambda: terminate(database, pid_of(site.lane)))
        proxy.lose = lose
        before(site.lane, "again", change_it)
        site.send(queue)
        expected = "OK" if lose is Lose.ANSWER else "STORE another relay was faster"
        assert site.answer() == expected
        count = int(lose is Lose.ANSWER)
        assert messages_of(database, queue) == (count, count)
        # What it has in memory is true again.
        site.count(queue)
        assert site.answer() == str(count)
        site.send(queue)
        assert site.answer() == "OK"
        assert messages_of(database, queue) == (count + 1, count + 1)
        stores.close_all()


def test_it_was_deleted_meanwhile() -> None:
    database = stores.emptied()
    site, other = Site(database), Site(database)
    queue = site.add()

    def delete_it() -> None:
        def work() -> None:
            found = other.store.by_recipient(queue.recipient_id)
            assert found is not None
            other.store.delete(found)

        other.ask([Wanted(What.RECIPIENT, queue.recipient_id)], work)
        assert other.answer() == "OK"

    before(site.lane, "write", lambda: terminate(database, pid_of(site.lane)))
    before(site.lane, "again", delete_it)
    site.send(queue)
    assert site.answer() == "STORE another relay was faster"
    site.count(queue)
    assert site.answer() == "None"
    with psycopg.connect(database) as connection:
        for table in ("queue", "queue_state", "message"):
            row = connection.execute(f"SELECT count(*) FROM smpd.{table}").fetchone()
            assert row == (0,), table


def test_another_server_takes_over() -> None:
    """It has not got what was changed last, so a version may be there twice: memory is empty."""
    database = stores.emptied()
    site = Site(database)
    queue = site.add()
    site.send(queue)
    site.suspend(queue)
    assert site.answer() == "OK"
    with psycopg.connect(database) as connection:
        # As if that had never been, and another relay had done something else in its place.
        connection.execute("UPDATE smpd.queue SET status = 'active'")
        connection.execute("DELETE FROM smpd.message")
        connection.execute("UPDATE smpd.queue_state SET messages = 0")
    terminate(database)
    site.count(queue)
    assert site.answer() == "0"
    found: list[Status] = []

    def look() -> None:
        one = site.store.by_sender(queue.sender_id)
        assert one is not None
        found.append(one.status)

    site.ask([Wanted(What.SENDER, queue.sender_id)], look)
    site.wait()
    assert found == [Status.ACTIVE]


def test_isolation_that_the_operator_has_chosen() -> None:
    """Others' changes are seen, whatever transactions are by default."""
    database = stores.emptied()
    with psycopg.connect(database, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(
            f'ALTER DATABASE "{name}" SET default_transaction_isolation = serializable'
        )
    try:
        site, other = Site(database), Site(database)
        queue = site.add()
        for number in range(4):
            (site, other)[number % 2].send(queue)
            assert (site, other)[number % 2].answer() == "OK"
            (other, site)[number % 2].count(queue)
            assert (other, site)[number % 2].answer() == str(number + 1)
        with psycopg.connect(database, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT pid FROM pg_locks WHERE mode = 'SIReadLock'"
            ).fetchall()
        assert not rows
    finally:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_isolation')


class Ledger:
    """What was answered about messages of some queues, by sites that send and acknowledge."""

    def __init__(self, queues: Sequence[Queue]) -> None:
        self.queues = queues
        self.sent: list[tuple[Site, int, Queue, bytes]] = []
        self.removed: list[tuple[Site, int, Queue, bytes]] = []

    def send(self, site: Site, queue: Queue) -> None:
        """A message."""
        one = message()

        def work() -> None:
            found = site.store.by_sender(queue.sender_id)
            assert found is not None
            assert site.store.write(found, one, 1000).accepted

        self.sent.append((site, len(site.answers), queue, one.msg_id))
        site.ask([Wanted(What.SENDER, queue.sender_id)], work, object())

    def acknowledge(self, site: Site, queue: Queue) -> None:
        """Of the first one."""
        place = len(site.answers)

        def work() -> None:
            found = site.store.by_recipient(queue.recipient_id)
            assert found is not None
            first = site.store.head(found)
            if first is not None:
                assert site.store.remove(found, first.msg_id) == first
                self.removed.append((site, place, queue, first.msg_id))

        site.ask([Wanted(What.RECIPIENT, queue.recipient_id, 2)], work, object())

    def check(self, database: str) -> None:
        """What was answered with OK is so, and each queue has what it says."""
        with psycopg.connect(database) as connection:
            rows = connection.execute(
                "SELECT recipient_id, messages, array_remove(array_agg(msg_id ORDER BY"
                " message.number), NULL) FROM smpd.queue JOIN smpd.queue_state USING (number)"
                " LEFT JOIN smpd.message ON message.queue = queue.number"
                " GROUP BY recipient_id, messages"
            ).fetchall()
        there = {row[0]: row[2] for row in rows}
        assert [row[1] for row in rows] == [len(row[2]) for row in rows]
        for queue in self.queues:
            left = there[queue.recipient_id]
            assert len(set(left)) == len(left)
            mine = [each for each in self.removed if each[2] is queue]
            surely = [each[3] for each in mine if each[0].answers[each[1]] == "OK"]
            assert len(set(surely)) == len(surely)
            assert not set(surely) & set(left)
            perhaps = {each[3] for each in mine}
            for site, place, of, msg_id in self.sent:
                if of is queue and site.answers[place] == "OK":
                    assert msg_id in left or msg_id in perhaps


@pytest.mark.slow
def test_connections_that_are_lost_at_any_time() -> None:
    """Of two relays that send to the same queues, and acknowledge; with little in memory."""

    def answered() -> int:
        return sum(site.answers.count("OK") for site in sites)

    database = stores.emptied()
    with Proxy(database) as proxy:
        sites = [
            Site(proxy.dsn, connections=3, cached_queues=cached, answer_timeout=2.0)
            for cached in (1, 20_000)
        ]
        ledger = Ledger([sites[0].add() for _ in range(5)])
        chance = Random(1)
        start = time.monotonic()
        # On a slow machine longer, so that it is worth looking at.
        while (past := time.monotonic() - start) < 8.0 or (past < 60.0 and answered() < 400):
            for site in sites:
                for _ in range(chance.randrange(4)):
                    queue = chance.choice(ledger.queues)
                    if chance.random() < 0.6:
                        ledger.send(site, queue)
                    else:
                        ledger.acknowledge(site, queue)
                site.wait(lambda: True)
                site.loop.turn(0.002)
            time.sleep(0.002)
            happens = chance.random()
            if happens < 0.01:
                proxy.cut()
            elif happens < 0.02:
                proxy.lose = chance.choice(list(Lose))
        proxy.lose = None
        while any("waits" in site.answers for site in sites):
            for site in sites:
                site.loop.turn(0.005)
            time.sleep(0.005)
        stores.close_all()
    assert answered() > 300
    ledger.check(database)


def test_a_queue_that_is_locked_when_its_messages_expire() -> None:
    """It is not left for the next round, which is hours later, but for the end of this one."""
    database = stores.emptied()
    site = Site(database)
    queues = [site.add() for _ in range(3)]
    for queue in queues:
        site.send(queue)
    assert site.answer() == "OK"
    expired: list[int] = []
    with psycopg.connect(database) as holder:
        holder.execute("SET search_path = smpd")
        holder.execute(
            "SELECT FROM queue_state JOIN queue USING (number) WHERE recipient_id = %b"
            " FOR UPDATE OF queue_state",
            (queues[1].recipient_id,),
        )
        for number, step in enumerate(site.store.expire_all(NOW + 1, 2)):
            assert not isinstance(step, int)
            came: list[int] = []
            step.addCallback(came.append)
            if number == 2:
                holder.rollback()
            site.wait(lambda: bool(came))  # noqa: B023
            expired += came
    assert expired == [1, 1, 0, 1]
    for queue in queues:
        assert messages_of(database, queue) == (0, 0)
        site.count(queue)
        assert site.answer() == "0"


# -- a database that is away for longer


@pytest.mark.slow
def test_answers_wait_and_become_errors() -> None:
    """As long as they may; when it is back, all goes on as before."""
    database = stores.emptied()
    with Proxy(database) as proxy:
        site = Site(proxy.dsn, answer_timeout=2.0)
        queue = site.add()
        proxy.refuses = True
        before(site.lane, "write", proxy.cut)
        for ask in (site.send, site.count):
            with Stalls() as stalls:
                start = time.monotonic()
                ask(queue)
                assert site.answer() == "STORE the database cannot be reached"
                took = time.monotonic() - start
            assert 1.9 < took < 4.0 + stalls.longest
        proxy.refuses = False
        deadline = time.monotonic() + WAIT
        while True:
            site.count(queue)
            if site.answer() == "0":
                break
            assert time.monotonic() < deadline
        site.send(queue)
        assert site.answer() == "OK"
        assert messages_of(database, queue) == (1, 1)
        stores.close_all()


def test_a_database_that_says_nothing() -> None:
    """Nothing goes through any more, in the middle of a transaction: no thread of ours waits."""
    database = stores.emptied()
    with Proxy(database) as proxy:
        site = Site(proxy.dsn, answer_timeout=3.0)
        queue = site.add()

        def hold() -> None:
            proxy.holds = True

        before(site.lane, "write", hold)
        site.send(queue)
        site.wait(lambda: proxy.holds)
        site.count(queue)
        longest, last = 0.0, time.monotonic()
        with Stalls() as stalls:
            while "waits" in site.answers:
                site.loop.turn(0.005)
                now = time.monotonic()
                longest, last = max(longest, now - last), now
                time.sleep(0.005)
        assert longest < 0.5 + stalls.longest
        assert site.answers[-2:] == [
            "STORE the database does not answer in time",
            "STORE the database does not answer in time",
        ]
        proxy.holds = False
        # It was written after all: told otherwise, but nothing is half.
        site.wait(lambda: messages_of(database, queue) == (1, 1))
        site.send(queue)
        assert site.answer() == "OK"
        assert messages_of(database, queue) == (2, 2)
        stores.close_all()


@pytest.mark.slow
def test_closing_while_the_database_is_away() -> None:
    """Takes seconds, and everything is answered."""
    database = stores.emptied()
    with Proxy(database) as proxy:
        site = Site(proxy.dsn)
        queue = site.add()
        proxy.holds = True
        site.send(queue)
        site.loop.turn()
        start = time.monotonic()
        stores.close_all()
        assert time.monotonic() - start < 15.0
        assert site.answers[-1].startswith("STORE ")
        proxy.holds = False


# -- at the start


def refusal(database: str) -> str:
    """Why a database cannot be used."""
    with pytest.raises(StoreUnusable) as caught:
        stores.open(database)
    return str(caught.value)


def test_a_database_that_can_only_be_read(postgres_server: PostgresServer) -> None:
    """Such as that of a server which stands by."""
    database = new_database()
    with psycopg.connect(database, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    assert refusal(database) == (
        "cannot use the database: cannot execute nextval() in a read-only transaction"
    )


def test_a_database_of_somebody_else(postgres_server: PostgresServer) -> None:
    database = new_database()
    parts = urlsplit(database)
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE stranger LOGIN PASSWORD 'secret'")
    try:
        strange = parts._replace(netloc=f"stranger:secret@{parts.hostname}:{parts.port}")
        told = refusal(urlunsplit(strange))
        assert told == "cannot use the database: permission denied for schema smpd"
        wrong = parts._replace(netloc=f"stranger:wrong@{parts.hostname}:{parts.port}")
        told = refusal(urlunsplit(wrong))
        assert told.startswith("cannot use the database: ")
        assert "authentication failed" in told
        assert "wrong" not in told
    finally:
        with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
            connection.execute("DROP ROLE stranger")
