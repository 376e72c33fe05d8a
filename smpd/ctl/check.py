"""`smpctl check`: uses a relay as a client would, and tells how long each step takes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from smpd.ctl.errors import CommandError
from torcfg.descriptions import LONGEST_SOCKET_PATH
from txsimplex.addresses import (
    DEFAULT_SMP_PORT,
    HostMode,
    Scheme,
    ServerAddress,
    SocksProxy,
)
from txsimplex.client.network import Network, Socks, port_of, socks_at, socks_on
from txsimplex.encoding import ParseError

DEFAULT_TIMEOUT = 30.0
_KEY_HASH_SIZE = 32
_MOST_SECONDS = 86_400
_EXAMPLES = """\
examples:
  smpctl check smp://Th...hM=@smp.example.com
  smpctl check "$(smpctl address)" --timeout 5
  smpctl check "$(smpctl address)" --socks 127.0.0.1:9050
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand to the command line."""
    command = commands.add_parser(
        "check",
        help="use a relay as a client would",
        description="Connects to a relay as a client would, creates a queue, secures it, sends "
        "and receives a message, and deletes the queue. Prints each step with its time; the exit "
        "status is 1 if one fails. The address has the password if the relay wants one.",
        epilog=_EXAMPLES,
    )
    command.add_argument("address", type=_address, metavar="ADDRESS", help="smp://...")
    command.add_argument(
        "--timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT,
        metavar="S",
        help=f"how many seconds each step may take (default: {DEFAULT_TIMEOUT:g})",
    )
    command.add_argument(
        "--socks",
        type=_socks,
        metavar="PLACE",
        help="SOCKS proxy to go through, such as Tor's: HOST:PORT, or the path of a Unix socket; "
        "the onion service is tried then, if the relay is one",
    )
    command.set_defaults(command=_run)


def _address(text: str) -> ServerAddress:
    try:
        address = ServerAddress.parse(text, Scheme.SMP)
    except ParseError:
        # Not shown, since there may be a password in it.
        raise argparse.ArgumentTypeError("this is not the address of an SMP relay") from None
    if len(address.key_hash) != _KEY_HASH_SIZE:
        raise argparse.ArgumentTypeError("the fingerprint has not the right length")
    if int(address.port or DEFAULT_SMP_PORT) not in range(1, 65536):
        raise argparse.ArgumentTypeError("the port is not from 1 to 65535")
    return address


def _socks(text: str) -> Socks:
    if "/" in text:
        if len(os.fsencode(text)) > LONGEST_SOCKET_PATH:
            raise argparse.ArgumentTypeError(
                f"allowed: a path of at most {LONGEST_SOCKET_PATH} bytes"
            )
        return socks_on(Path(text))
    try:
        # Without a colon it would be a host with a port of its own.
        proxy = SocksProxy.parse(text) if ":" in text else None
    except ParseError:
        proxy = None
    if proxy is None or not proxy.port:
        # Not shown, since there may be a password in it.
        raise argparse.ArgumentTypeError("allowed: HOST:PORT, or a path with a / in it")
    return socks_at(proxy)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"allowed: seconds above 0, up to {_MOST_SECONDS}")
    return seconds


def _run(arguments: argparse.Namespace) -> None:
    # Not imported before, since the other commands have no use for a reactor.
    from smpd.ctl.trial import run_trial

    address: ServerAddress = arguments.address
    mode = HostMode.PUBLIC if arguments.socks is None else HostMode.ONION_VIA_SOCKS
    network = Network(arguments.socks, host_mode=mode, required=arguments.socks is None)
    host = network.host(address.location)
    if host is None:
        raise CommandError("the address has onion hosts only: say with --socks where Tor is")
    by_tor = "" if arguments.socks is None else ", by SOCKS"
    print(f"{host}, port {port_of(address.location)}{by_tor}")
    run_trial(address, network, arguments.timeout, _print_step)
    print("The relay does what it should.")


def _print_step(name: str, seconds: float, note: str) -> None:
    print(f"  {name:<16}{seconds * 1000:9.1f} ms  {note}".rstrip(), flush=True)
