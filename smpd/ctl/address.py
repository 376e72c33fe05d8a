"""`smpctl address`: the relay's address, also as a QR code."""

from __future__ import annotations

import argparse
import sys
from typing import Any, TextIO

import qrcode

from smpd.config import load
from smpd.credentials import read_certificates
from smpd.ctl.configuration import add_configuration_to
from smpd.ctl.errors import CommandError
from smpd.onion import onion_hosts
from txsimplex.addresses import ServerAddress
from txsimplex.certificates import fingerprint

_EXAMPLES = """\
examples:
  smpctl address
  smpctl --config var/smpd.ini address --qr
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand to the command line."""
    command = commands.add_parser(
        "address",
        help="print the relay's address",
        description="Prints the relay's address, with the password for creating queues if the "
        "configuration sets one. Give it to those who may create queues.",
        epilog=_EXAMPLES,
    )
    command.add_argument("--qr", action="store_true", help="print it as a QR code too")
    add_configuration_to(command)
    command.set_defaults(command=_address)


def _address(arguments: argparse.Namespace) -> None:
    settings = load(arguments.config)
    authority = read_certificates(settings.server.ca_certificate)
    address = settings.address(fingerprint(authority[0]), onion_hosts(settings))
    if address is None:
        raise CommandError(f"{arguments.config} sets no hosts, so there is no address to print")
    print(address)
    if arguments.qr:
        print_qr_code(address, sys.stdout)


def print_qr_code(address: ServerAddress, out: TextIO) -> None:
    """Prints an address as a QR code of block characters; in colours that suit it on a terminal.

    Raises `CommandError` when `out` is of an encoding that has no such characters.
    """
    try:
        "▀▄█".encode(out.encoding or "ascii")
    except UnicodeEncodeError:
        raise CommandError(f"a QR code cannot be printed in {out.encoding}") from None
    code = qrcode.QRCode(border=2)
    code.add_data(str(address))
    code.make()
    code.print_ascii(out=out, tty=out.isatty())
