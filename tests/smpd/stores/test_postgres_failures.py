"""The PostgreSQL store when connections are lost: answers are true, nothing is half done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from bench.postgres_server import PostgresServer
from smpd.queues import Status
from smpd.stores.interface import StoreUnusable, Wanted, What
from tests.smpd.stores.postgres_proxy import Lose, Proxy
from tests.smpd.stores.postgres_sites import WAIT, Site, before, messages_of, pid_of, terminate
from tests.smpd.stores.postgres_stores import PostgresStores, new_database
from tests.smpd.stores.records import NOW
from tests.stalls import Stalls

stores = PostgresStores()


@pytest.fixture(autouse=True)
def _closed(postgres_server: object) -> Iterator[None]:
    yield
    stores.close_all()


# -- where the connection is lost


def test_before_the_transaction() -> None:
    """All connections in the pool are dead: others are taken, and nobody notices."""
    database = stores.emptied()
    site = Site(stores, database)
    queue = site.add()
    terminate(database)
    site.send(queue)
    assert site.answer() == "OK"
    assert messages_of(database, queue) == (1, 1)


def test_between_reading_and_writing() -> None:
    """The transaction is made again: once."""
    database = stores.emptied()
    site = Site(stores, database)
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
        site = Site(stores, proxy.dsn)
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
        site = Site(stores, proxy.dsn)
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
        site, other = Site(stores, proxy.dsn), Site(stores, database)
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
    site, other = Site(stores, database), Site(stores, database)
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
    site = Site(stores, database)
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
        site, other = Site(stores, database), Site(stores, database)
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


def test_a_queue_that_is_locked_when_its_messages_expire() -> None:
    """It is not left for the next round, which is hours later, but for the end of this one."""
    database = stores.emptied()
    site = Site(stores, database)
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
        site = Site(stores, proxy.dsn, answer_timeout=2.0)
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
        site = Site(stores, proxy.dsn, answer_timeout=3.0)
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
        site = Site(stores, proxy.dsn)
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
