"""The store in memory keeps the contract of stores."""

from __future__ import annotations

from smpd.stores.memory import MemoryStore
from tests.smpd.stores.contract import StoreContract
from tests.smpd.stores.machines import machines


class TestMemoryStore(StoreContract):
    """The contract, in memory."""

    new_store = MemoryStore


TestMessages, TestRecords = machines(MemoryStore)
