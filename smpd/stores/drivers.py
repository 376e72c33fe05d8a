"""What a kind of store needs that need not be installed."""

from __future__ import annotations

from smpd.stores.interface import StoreUnusable


def without_postgres(error: ImportError) -> StoreUnusable:
    """What to tell when psycopg, its pool or libpq is not there."""
    # psycopg lists its attempts to find libpq in further lines.
    reason = (str(error).splitlines() or [""])[0].rstrip(".")
    return StoreUnusable(
        f"kind = postgres needs psycopg 3 ({reason}): install Debian's"
        " python3-psycopg, or simplexd[postgres]"
    )
