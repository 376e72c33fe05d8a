"""From the configuration to the store of the relay."""

from __future__ import annotations

from typing import Any

from smpd.config import StoreSettings
from smpd.stores.drivers import without_postgres
from smpd.stores.interface import Store
from smpd.stores.memory import MemoryStore
from smpd.stores.snapshot import discard, load as load_snapshot
from smpd.stores.sqlite import open_sqlite


def open_store(settings: StoreSettings, reactor: Any) -> Store:
    """The store that the configuration names. Raises `StoreUnusable`."""
    if settings.kind == "memory":
        store = MemoryStore()
        if settings.snapshot is not None and load_snapshot(settings.snapshot, store):
            discard(settings.snapshot)
        return store
    if settings.kind == "postgres":
        return _open_shared(settings, reactor)
    return open_sqlite(
        settings.path,
        call_later=reactor.callLater,
        call_from_thread=reactor.callFromThread,
        commit_interval=settings.commit_interval,
        cached_queues=settings.cached_queues,
    )


def _open_shared(settings: StoreSettings, reactor: Any) -> Store:
    try:
        from smpd.stores.postgres import open_postgres
    except ImportError as error:
        raise without_postgres(error) from None
    assert settings.database is not None
    return open_postgres(
        settings.database,
        call_later=reactor.callLater,
        call_from_thread=reactor.callFromThread,
        connections=settings.connections,
        commit_interval=settings.commit_interval,
        cached_queues=settings.cached_queues,
        answer_timeout=settings.answer_timeout,
    )
