"""smpctl: the sysadmin's command for the SMP relay.

Each subcommand is a module of this package with a function that takes the
parsed arguments, prints its answer, and raises `CommandError` (or an error of
files, configuration, credentials or stores) when it cannot do its work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from textwrap import fill
from typing import Any, NoReturn

from smpd.config import DEFAULT_PATH
from smpd.credentials import CredentialsError
from smpd.ctl import (
    address,
    certificate,
    check,
    database,
    installation,
    onion,
    status,
    store,
)
from smpd.ctl.configuration import add_configuration_to
from smpd.ctl.errors import CommandError, UsageError
from smpd.ini import ConfigurationError
from smpd.stores.interface import StoreUnusable

_EXAMPLES = """\
examples:
  smpctl init --directory /etc/smpd --host smp.example.com
  smpctl address --qr
  smpctl certificate rotate --ca-key /media/usb/ca.key
  smpctl check smp://Th...hM=@smp.example.com
  smpctl store convert sqlite:/var/lib/smpd/store postgres:dbname=smpd
"""


class _Parser(argparse.ArgumentParser):
    """A parser with examples below its help and errors of one line; so are those it makes."""

    def __init__(self, *, description: str, **options: Any) -> None:
        super().__init__(
            description=fill(description, 79),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Ends with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The command line: `smpctl [--config PATH] COMMAND`."""
    whole = _Parser(prog="smpctl", description="Looks after an SMP relay.", epilog=_EXAMPLES)
    whole.set_defaults(config=DEFAULT_PATH)
    add_configuration_to(whole)
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    installation.add_to(commands)
    address.add_to(commands)
    status.add_to(commands)
    certificate.add_to(commands)
    onion.add_to(commands)
    check.add_to(commands)
    database.add_to(commands)
    store.add_to(commands)
    return whole


def run(arguments: Sequence[str]) -> int:
    """Does what the arguments say; the exit status is 0, 1 for a failure or 2 for wrong usage."""
    try:
        namespace = parser().parse_args(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    try:
        namespace.command(namespace)
    except ConfigurationError as error:
        for fault in error.faults:
            _complain(str(fault))
    except UsageError as error:
        _complain(str(error))
        return 2
    except (CommandError, CredentialsError, StoreUnusable) as error:
        _complain(str(error))
    except OSError as error:
        _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    else:
        return 0
    return 1


def _complain(sentence: str) -> None:
    print(f"smpctl: {sentence}", file=sys.stderr)


def main() -> None:
    """The entry point of the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A path or password that the terminal's encoding does not have is still told.
            stream.reconfigure(errors="backslashreplace")
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
