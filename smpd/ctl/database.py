"""`smpctl database`: makes the tables of a PostgreSQL store, and brings them up to date."""

from __future__ import annotations

import argparse
from typing import Any

from smpd.config import load
from smpd.ctl.errors import CommandError
from smpd.stores.interface import StoreUnusable

_EXAMPLES = """\
examples:
  smpctl database create
  smpctl database upgrade
  smpctl database show
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand to the command line."""
    command = commands.add_parser(
        "database",
        help="make or upgrade the tables of a PostgreSQL store",
        description="Makes the tables of the relay in the PostgreSQL database that the "
        "configuration names, brings those of an older version up to date, or tells how they "
        "are. The database itself and its user are made with PostgreSQL's own createdb and "
        "createuser. Stop all relays before an upgrade.",
        epilog=_EXAMPLES,
    )
    actions = command.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, action, help_text in (
        ("create", _create, "make the tables in an empty database"),
        ("upgrade", _upgrade, "bring the tables of an older version up to date"),
        ("show", _show, "tell which version the tables have"),
    ):
        one = actions.add_parser(name, help=help_text, description=help_text.capitalize() + ".")
        one.set_defaults(command=action)


def _connect(arguments: argparse.Namespace) -> Any:
    store = load(arguments.config).store
    if store.database is None:
        raise CommandError(f"{arguments.config} names no database, since its store is no postgres")
    try:
        from smpd.stores.postgres_database import connect
    except ImportError as error:
        raise CommandError(f"psycopg 3 is not installed ({error})") from None
    try:
        return connect(store.database)
    except StoreUnusable as error:
        raise CommandError(str(error)) from None


def _create(arguments: argparse.Namespace) -> None:
    _change(arguments, upgrade_only=False)


def _upgrade(arguments: argparse.Namespace) -> None:
    _change(arguments, upgrade_only=True)


def _change(arguments: argparse.Namespace, *, upgrade_only: bool) -> None:
    connection = _connect(arguments)
    from smpd.stores.postgres_database import schema_version, upgrade

    try:
        version = schema_version(connection)
        if upgrade_only and version is None:
            raise CommandError(
                'the database has no tables of this relay: "smpctl database create" makes them'
            )
        before, after = upgrade(connection)
    except StoreUnusable as error:
        raise CommandError(str(error)) from None
    finally:
        connection.close()
    if before == after:
        print(f"The tables are of version {after} already.")
    elif before:
        print(f"The tables were of version {before}, and are of version {after} now.")
    else:
        print(f"The tables are made, in version {after}.")


def _show(arguments: argparse.Namespace) -> None:
    connection = _connect(arguments)
    from smpd.stores.postgres_database import schema_steps, schema_version

    try:
        version = schema_version(connection)
    finally:
        connection.close()
    if version is None:
        print('There are no tables of this relay. "smpctl database create" makes them.')
    else:
        print(f"The tables are of version {version}; this program makes {len(schema_steps())}.")
