"""`smpctl database`: makes the tables of a PostgreSQL store, and brings them up to date."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from smpd.config import load
from smpd.ctl.configuration import add_configuration_to
from smpd.ctl.errors import CommandError
from smpd.stores.drivers import without_postgres

if TYPE_CHECKING:
    from smpd.stores.postgres_database import Connection

_ACTIONS_EXAMPLES = {
    "create": "examples:\n  smpctl database create\n",
    "upgrade": "examples:\n  smpctl --config var/smpd.ini database upgrade\n",
    "show": "examples:\n  smpctl database show\n",
}
_EXAMPLES = """\
examples:
  smpctl database create
  smpctl database upgrade
  smpctl database show
"""
_NO_TABLES = 'the database has no tables of this relay: "smpctl database create" makes them'


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
        one = actions.add_parser(
            name,
            help=help_text,
            description=help_text.capitalize() + ".",
            epilog=_ACTIONS_EXAMPLES[name],
        )
        add_configuration_to(one)
        one.set_defaults(command=action)


@contextmanager
def _connected(arguments: argparse.Namespace) -> Iterator[Connection]:
    """A connection to the database of the configuration. Raises `StoreUnusable`."""
    store = load(arguments.config).store
    if store.database is None:
        raise CommandError(f"{arguments.config} names no database, since its store is no postgres")
    try:
        from smpd.stores.postgres_database import connect
    except ImportError as error:
        raise without_postgres(error) from None
    connection = connect(store.database)
    try:
        yield connection
    finally:
        connection.close()


def _create(arguments: argparse.Namespace) -> None:
    with _connected(arguments) as connection:
        _change(connection)


def _upgrade(arguments: argparse.Namespace) -> None:
    with _connected(arguments) as connection:
        from smpd.stores.postgres_database import known_version

        if known_version(connection) is None:
            raise CommandError(_NO_TABLES)
        _change(connection)


def _change(connection: Connection) -> None:
    from smpd.stores.postgres_database import known_version, schema_steps, upgrade
    from smpd.stores.postgres_presence import take_alone

    version = known_version(connection)
    if version is not None and version < len(schema_steps()):
        take_alone(connection)
    before, after = upgrade(connection)
    if before == after:
        print(f"The tables are of version {after} already.")
    elif before:
        print(f"The tables were of version {before}, and are of version {after} now.")
    else:
        print(f"The tables are made, in version {after}.")


def _show(arguments: argparse.Namespace) -> None:
    with _connected(arguments) as connection:
        from smpd.stores.postgres_database import known_version, schema_steps

        version = known_version(connection)
        if version is None:
            raise CommandError(_NO_TABLES)
        print(f"The tables are of version {version}; this program makes {len(schema_steps())}.")
