"""`smpctl init`: a new relay's configuration, identity and online certificate."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import quoteStringArgument

from smpd.config import DEFAULT_PATH, Settings, parse
from smpd.credentials import read_certificates
from smpd.ctl.address import print_qr_code
from smpd.ctl.certificate import ALGORITHMS, add_algorithm_to, common_name, start_of_validity
from smpd.ctl.errors import CommandError, UsageError
from smpd.endpoints import OWN_TOR, onion_endpoints
from smpd.ini import ConfigurationError, Refused, filled_in, kind_of, quoted
from smpd.onion import onion_hosts, read_key_file
from smpd.tor_settings import TorSettings
from torcfg.descriptions import SOCKET_PATH
from torcfg.onion_keys import OnionKey
from torcfg.onion_services import is_target
from torcfg.tor_process import torrc
from txsimplex.addresses import DEFAULT_SMP_PORT, Host
from txsimplex.certificates import fingerprint
from txsimplex.issuing import make_authority, make_online
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.pem import encode_certificates, encode_key
from txsimplex.scanning import to_base64url
from txsimplex.whole_files import PRIVATE, PUBLIC, create, make_directory

TEMPLATE = "smpd.ini"
_PASSWORD_SIZE = 24
"""Random bytes of a password made here."""
_LISTEN = f"tcp:{DEFAULT_SMP_PORT}"
_SOCKET = "onion.sock"
_NOT_THERE = "no onion service can be in that directory"

_EXAMPLES = """\
examples:
  smpctl init --host smp.example.com
  smpctl init --directory var --host smp.example.com --host 192.0.2.7 --random-password
  smpctl init --host smp.example.com --listen tcp:5223 --listen tcp:443
  smpctl init --directory var --onion
  smpctl init --directory var --onion --host smp.example.com
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand to the command line."""
    command = commands.add_parser(
        "init",
        help="make configuration and certificates of a new relay",
        description="Makes configuration, identity and online certificate of a new relay, and "
        "prints its address. Never overwrites an installation.",
        epilog=_EXAMPLES,
    )
    command.add_argument(
        "--directory",
        type=Path,
        default=DEFAULT_PATH.parent,
        metavar="DIR",
        help=f"where they go (default: {DEFAULT_PATH.parent})",
    )
    command.add_argument(
        "--host",
        action="append",
        type=_option("server", "hosts"),
        metavar="NAME",
        help="name or address of the relay; may be given several times, the main one first; "
        "none is needed with --onion, or an onionservice endpoint",
    )
    command.add_argument(
        "--onion",
        action="store_true",
        help="be an onion service, on a tor that the relay runs itself; without --host it is "
        "nothing else, and opens no TCP port",
    )
    command.add_argument(
        "--listen",
        action="append",
        type=_option("server", "listen"),
        metavar="DESC",
        help="Twisted endpoint to listen on; may be given several times (default: "
        f"{_LISTEN}; with --onion a Unix socket in DIR, too, or alone)",
    )
    password = command.add_mutually_exclusive_group()
    password.add_argument(
        "--password",
        type=_option("queues", "password"),
        metavar="P",
        help="what clients must know to create queues (default: no password)",
    )
    password.add_argument("--random-password", action="store_true", help="make up such a password")
    add_algorithm_to(command, "ed25519")
    command.add_argument("--no-qr", action="store_true", help="print no QR code of the address")
    command.set_defaults(command=_init)


def _option(section: str, key: str) -> Callable[[str], str]:
    """The type of an option that becomes the value of a key: its text, if the key allows it."""
    kind = kind_of(Settings, section, key)

    def check(text: str) -> str:
        try:
            kind.read(text)
        except Refused as refusal:
            found, allowed = refusal.parts[0]
            shown = "a value that is not shown" if kind.secret else found
            raise argparse.ArgumentTypeError(
                f"found {shown}; allowed: {allowed or kind.allowed}"
            ) from None
        return " ".join(text.split())

    return check


def _init(arguments: argparse.Namespace) -> None:
    directory: Path = arguments.directory
    configuration = directory / TEMPLATE
    password = arguments.password
    if arguments.random_password:
        password = secrets.token_urlsafe(_PASSWORD_SIZE)
    hosts, listen = arguments.host or [], arguments.listen
    onion = arguments.onion or onion_endpoints(" ".join(listen or ()).split())
    if not hosts and not onion:
        raise UsageError("init: a relay needs a --host, or --onion")
    if arguments.onion:
        _check_own_tor(directory.absolute())
    if arguments.onion and not listen:
        listen = [*([_LISTEN] if hosts else []), _listen_for_tor(directory.absolute() / _SOCKET)]
    text = _configuration(hosts, listen, password, onion=arguments.onion)
    try:
        settings = parse(text, str(configuration), directory)
    except ConfigurationError as error:
        # Each option is good by itself, so this is about several together.
        fault = error.faults[0]
        raise UsageError(f"{fault.key}: found {fault.found}; allowed: {fault.allowed}") from None
    contents = _credentials(settings, ALGORITHMS[arguments.algorithm or "ed25519"])
    contents[configuration] = (text.encode(), PRIVATE)
    for path in contents:
        if path.exists() or path.is_symlink():
            raise CommandError(f"{path} is there already, and no installation is overwritten")
    make_directory(directory)
    _create_all(contents)
    _report(settings, list(contents), qr=not arguments.no_qr)


def _check_own_tor(directory: Path) -> None:
    """Raises `CommandError` where a relay in a directory could not run a tor."""
    try:
        torrc(directory / TorSettings().directory, socks=True, single_hop=False)
    except ValueError as error:
        raise CommandError(f"{_NOT_THERE}: {error}") from None


def _listen_for_tor(socket: Path) -> str:
    """Where tor connects to: by a socket its connections are told apart from others.

    Raises `CommandError` where tor could not be told of it.
    """
    if not is_target(f"unix:{socket}"):
        found = quoted(str(socket))
        raise CommandError(f"{_NOT_THERE}: found {found}; allowed: {SOCKET_PATH}")
    # quoteStringArgument leaves out what stands between a name and its value.
    path = quoteStringArgument(str(socket)).replace("=", r"\=")
    return f"unix:{path}:mode=600"


def _configuration(
    hosts: list[str], listen: list[str] | None, password: str | None, *, onion: bool
) -> str:
    values = {}
    if hosts:
        values["server", "hosts"] = " ".join(hosts)
    if onion:
        values |= {("tor", "onion"): "on", ("tor", "control"): OWN_TOR}
        values["proxy", "socks_proxy"] = OWN_TOR
    if onion and all(Host.parse(host).is_onion for host in " ".join(hosts).split()):
        # A direct connection to another relay would show it where this one is.
        values["proxy", "socks_mode"] = "always"
    if listen:
        values["server", "listen"] = " ".join(listen)
    if password:
        values["queues", "password"] = password
    return filled_in(files("smpd").joinpath(TEMPLATE).read_text("utf-8"), values)


def _credentials(settings: Settings, algorithm: Algorithm) -> dict[Path, tuple[bytes, int]]:
    """The files of a new identity and its first online certificate, with their modes.

    And of the keys of onion services, if it is to be any; those of endpoints may be there.
    """
    server, tor = settings.server, settings.tor
    endpoints = [each.key for each in onion_endpoints(server.listen)]
    kept = {path: read_key_file(path) for path in endpoints if path.exists()}
    paths = [*([tor.onion_key] if tor.onion else []), *endpoints]
    made = {path: OnionKey.generate(os.urandom) for path in paths if path not in kept}
    onions = [(kept | made)[path].address for path in paths]
    name = common_name(server) or next(iter(onions), "")
    since = start_of_validity(datetime.now(UTC))
    authority_key = PrivateKey.generate(algorithm, os.urandom)
    authority = make_authority(authority_key, since, os.urandom)
    key = PrivateKey.generate(algorithm, os.urandom)
    online = make_online(name, key.public, authority, authority_key, since, os.urandom)
    keys = {path: (key.encode(), PRIVATE) for path, key in made.items()}
    return keys | {
        server.ca_certificate.with_suffix(".key"): (encode_key(authority_key), PRIVATE),
        server.ca_certificate: (encode_certificates([authority]), PUBLIC),
        server.key: (encode_key(key), PRIVATE),
        server.certificate: (encode_certificates([online]), PUBLIC),
    }


def _create_all(contents: dict[Path, tuple[bytes, int]]) -> None:
    """Writes all files, or none: what was written before a failure is removed."""
    written: list[Path] = []
    try:
        for path, (data, mode) in contents.items():
            create(path, data, mode)
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink()
        raise


def _report(settings: Settings, paths: list[Path], *, qr: bool) -> None:
    server = settings.server
    key_hash = fingerprint(read_certificates(server.ca_certificate)[0])
    address = settings.address(key_hash, onion_hosts(settings))
    assert address is not None
    print("Made " + ", ".join(map(str, paths)))
    print()
    print(f"Address:     {address}")
    print(f"Fingerprint: {to_base64url(key_hash)}")
    print()
    if qr:
        try:
            print_qr_code(address, sys.stdout)
        except CommandError as error:
            print(f"smpctl: {error}", file=sys.stderr)
    print(
        f"Take {server.ca_certificate.with_suffix('.key')} offline now: move it to a place that no "
        "network reaches.\n"
        "Whoever has it can pretend to be this relay. The relay runs without it; only\n"
        '"smpctl certificate rotate" needs it.'
    )
