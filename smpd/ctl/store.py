"""`smpctl store convert`: copies everything of a store into an empty one of another kind."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from smpd.ctl.errors import CommandError, UsageError
from smpd.stores.conversion import Counts, Source, Target, copy
from smpd.stores.drivers import without_postgres
from smpd.stores.interface import StoreUnusable
from smpd.stores.snapshot_conversion import SnapshotSource, SnapshotTarget
from smpd.stores.sqlite_conversion import SqliteSource, SqliteTarget

_EXAMPLES = """\
examples:
  smpctl store convert sqlite:/var/lib/smpd/store postgres:dbname=smpd
  smpctl store convert sqlite:store postgresql://smpd@db.example.com/smpd
  smpctl store convert 'postgres:host=/run/postgresql dbname=smpd' sqlite:store
"""
_STORES = (
    "sqlite:PATH with the directory of a store, postgres:DSN with a connection string of libpq "
    "or a URL, or snapshot:PATH"
)
_ON_TERMINAL = 0.2
_IN_FILE = 5.0
"""Seconds between two reports of progress."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a store is; no message shows a database, which may have a password in it."""

    kind: str
    where: str = field(repr=False)


def add_to(commands: Any) -> None:
    """Adds the subcommand to the command line."""
    command = commands.add_parser(
        "store",
        help="copy a store into one of another kind",
        description="Copies what a relay keeps into a store of another kind.",
        epilog=_EXAMPLES,
    )
    actions = command.add_subparsers(title="actions", metavar="ACTION", required=True)
    convert = actions.add_parser(
        "convert",
        help="copy everything of a store into an empty one",
        description="Copies everything of a store into an empty one, which is made if it is not "
        "there, and counts what is in both. No relay may run on either meanwhile. If anything "
        "goes wrong, the first store is as it was, and nothing is in the second. "
        f"A store is {_STORES}.",
        epilog=_EXAMPLES,
    )
    convert.add_argument("source", type=_place, metavar="FROM", help="the store that is there")
    convert.add_argument("target", type=_place, metavar="TO", help="the store to be made")
    # argparse would show what is too much, and it may be the end of a connection string.
    convert.add_argument("more", nargs="*", help=argparse.SUPPRESS)
    convert.set_defaults(command=_convert)


def _place(text: str) -> _Place:
    kind, _, where = text.partition(":")
    if kind in ("postgres", "postgresql") and where.startswith("//"):
        return _Place("postgres", text)
    if kind in ("sqlite", "postgres", "snapshot") and where:
        return _Place(kind, where)
    raise argparse.ArgumentTypeError(f"allowed: {_STORES}")


def _convert(arguments: argparse.Namespace) -> None:
    if arguments.more:
        raise UsageError("there is more behind FROM and TO: put what has spaces in it into quotes")
    if arguments.source == arguments.target:
        raise UsageError("FROM and TO are the same store")
    try:
        there, written = _copy(arguments.source, arguments.target)
    except (KeyboardInterrupt, StoreUnusable) as error:
        if not _is_interrupt(error):
            raise
        raise CommandError(
            "interrupted: FROM is as it was, and nothing is in TO, or all if it was at the end"
        ) from None
    _show(there, written)
    if there != written:
        raise CommandError("the counts differ, so FROM is damaged: nothing is in TO")


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it came up by Ctrl-C: to undo what was begun can fail after that."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _copy(origin: _Place, destination: _Place) -> tuple[Counts, Counts]:
    """Copies everything; how much is in both stores. Raises `StoreUnusable`."""
    source = _source(origin)
    try:
        target = _target(destination)
        try:
            progress = Progress(source.counts(), sys.stderr, time.monotonic)
            try:
                return copy(source, target, progress)
            finally:
                progress.end()
        finally:
            target.close()
    finally:
        source.close()


def _source(place: _Place) -> Source:
    if place.kind == "postgres":
        try:
            from smpd.stores.postgres_conversion import PostgresSource
        except ImportError as error:
            raise without_postgres(error) from None
        return PostgresSource(place.where)
    return {"sqlite": SqliteSource, "snapshot": SnapshotSource}[place.kind](Path(place.where))


def _target(place: _Place) -> Target:
    if place.kind == "postgres":
        try:
            from smpd.stores.postgres_conversion import PostgresTarget
        except ImportError as error:
            raise without_postgres(error) from None
        return PostgresTarget(place.where)
    return {"sqlite": SqliteTarget, "snapshot": SnapshotTarget}[place.kind](Path(place.where))


class Progress:
    """Tells how far it is: in one line of a terminal, or in a new one every few seconds."""

    def __init__(self, total: Counts, out: TextIO, seconds: Callable[[], float]) -> None:
        self._total = total
        self._out = out
        self._seconds = seconds
        self._on_terminal = out.isatty()
        self._interval = _ON_TERMINAL if self._on_terminal else _IN_FILE
        self._start = seconds()
        self._next = self._start + self._interval
        self._told = False

    def __call__(self, done: Counts) -> None:
        """So much is copied."""
        now = self._seconds()
        if now < self._next:
            return
        self._next = now + self._interval
        self._told = True
        rate = (done.queues + done.messages) / (now - self._start)
        text = (
            f"{done.queues:,} of {self._total.queues:,} queues,"
            f" {done.messages:,} of {self._total.messages:,} messages, {rate:,.0f} a second"
        )
        self._out.write(f"\r{text}\x1b[K" if self._on_terminal else f"{text}\n")
        self._out.flush()

    def end(self) -> None:
        """Nothing is told any more."""
        if self._told and self._on_terminal:
            self._out.write("\n")


def _show(there: Counts, written: Counts) -> None:
    print(f"{'':<16}{'FROM':>12}{'TO':>12}")
    for (kind, one), (_, other) in zip(there.items(), written.items(), strict=True):
        print(f"{kind:<16}{one:>12,}{other:>12,}")
