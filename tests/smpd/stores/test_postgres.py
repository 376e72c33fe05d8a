"""The PostgreSQL store keeps the contract of stores, on a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.smpd.stores.contract import StoreContract
from tests.smpd.stores.machines import machines
from tests.smpd.stores.postgres_stores import PostgresStores

stores = PostgresStores()


@pytest.fixture(autouse=True, scope="module")
def _closed_in_the_end(postgres_server: object) -> Iterator[None]:
    yield
    stores.close_all()


class TestPostgresStore(StoreContract):
    """The contract, each call a transaction."""

    new_store = stores.one_at_a_time


TestMessages, TestRecords = machines(stores.one_at_a_time)
